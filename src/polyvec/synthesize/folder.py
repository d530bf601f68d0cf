"""The folder of a run: what each step made, so that a run that was killed goes on there.

steps/NN-KIND.jsonl: rows that a step kept; .rejected.jsonl: those it rejected, with reasons;
.json, written last: what they depend on, and counts. A step whose dependences have changed, and
all after it, are done again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvec.data.texts import json_line, read_jsonl
from polyvec.errors import DataError
from polyvec.storage.files import atomic_file
from polyvec.synthesize.rows import Changed, Rejected, Row

NO_ANSWER = "no answer"  # begins the reason of a row whose call failed
FORMAT = 1  # a part of every fingerprint: raise it when a step gives other rows


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did, in figures. reasons: counts of what rows were rejected for."""

    number: int
    kind: str
    num_in: int
    num_out: int
    num_rejected: int
    reasons: Mapping[str, int]
    asked: int = 0
    cached: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    unfinished: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.number:02d}-{self.kind}"


def fingerprint(*values: object) -> str:
    """A hash of what a step depends on."""
    text = json.dumps([FORMAT, *values], default=str, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def file_hash(path: str) -> str:
    """The hash of a file, or of all files of a folder; DataError if there is none."""
    root = Path(path)
    files = sorted(each for each in root.rglob("*") if each.is_file()) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for each in files:
        try:
            digest.update(f"{each.relative_to(root)}\0".encode())
            with each.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class StepFiles:
    """The files of a step."""

    folder: Path
    name: str

    @property
    def kept(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    @property
    def rejected(self) -> Path:
        return self.folder / f"{self.name}.rejected.jsonl"

    @property
    def state(self) -> Path:
        return self.folder / f"{self.name}.json"

    def found(self, depends: str) -> tuple[Changed, StepReport] | None:
        """What the step made, if it is complete and nothing has changed since.

        A step with rows whose call failed is done again: the cache has the other answers.
        """
        if not (self.state.is_file() and self.kept.is_file() and self.rejected.is_file()):
            return None
        try:
            state = dict(json.loads(self.state.read_text("utf-8")))
        except (ValueError, TypeError):  # a damaged file: the answers are in the cache
            return None
        if state.pop("depends", None) != depends or state.pop("sha256", None) != self._sums():
            return None
        report = StepReport(**state)
        if report.unfinished is not None or NO_ANSWER in report.reasons:
            return None
        kept = [Row.of(raw, f"{self.kept}:{i}") for i, raw in read_jsonl(self.kept)]
        rejected = list(self._read_rejected())
        return Changed(kept, rejected, notes=dict(report.notes)), report

    def _read_rejected(self) -> Iterable[Rejected]:
        for number, raw in read_jsonl(self.rejected):
            yield Rejected(Row.of(raw["row"], f"{self.rejected}:{number}"), raw["reason"])

    def write(self, changed: Changed, report: StepReport, depends: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state.unlink(missing_ok=True)  # until it is written again, the step is not done
        write_rows(self.kept, (row.as_json() for row in changed.kept))
        write_rows(
            self.rejected,
            ({"reason": each.reason, "row": each.row.as_json()} for each in changed.rejected),
        )
        state = {**dataclasses.asdict(report), "depends": depends, "sha256": self._sums()}
        with atomic_file(self.state, "w") as file:
            json.dump(state, file, ensure_ascii=False, indent=1)

    def _sums(self) -> list[str]:
        return [file_hash(str(self.kept)), file_hash(str(self.rejected))]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines that appears whole or not at all."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(json_line(row))


def training_line(row: Row) -> dict[str, Any]:
    """A row as `polyvec train` reads it: query, pos, neg and prompt, or a pair with its score.

    Negatives stand beside a score, too.
    """
    if row.score is not None:
        pair = {"anchor": row.anchor, "positive": row.positive, "score": row.score}
        return {**pair, "negative": list(row.negatives)} if row.negatives else pair
    line: dict[str, Any] = {"query": row.anchor, "pos": [row.positive], "neg": list(row.negatives)}
    return line if row.instruction is None else {**line, "prompt": row.instruction}


def training_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows that can be trained on: those with an anchor and a positive."""
    return [
        training_line(row) for row in rows if row.anchor is not None and row.positive is not None
    ]
