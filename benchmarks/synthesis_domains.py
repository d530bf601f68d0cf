"""Domains of synthesis_effects.py: what is measured, the texts to write for, and gold data.

A domain's documents are known, its test queries are not: rows are written for the documents that
are searched, as Promptagator and InPars do.
"""

import functools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_free import drawn, part

from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import RetrievalSet, TaskSet
from polyvec.data.texts import Record, read_texts
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import training_rows

Table = Mapping[str, Any]
NUM_SHOTS = 3
SHOT_WORDS = 60  # of a document in a demonstration


@dataclass(frozen=True)
class Domain:
    """document, query: what prompts call them. gold: training pairs, as a `data` table.

    task: what is measured, from the folder of data sets and two sizes (queries, documents).
    """

    document: str
    query: str
    gold: Table
    task: Callable[[Path, int, int], RetrievalSet]
    shown: str  # how papers and tables call it


def _folder_task(name: str) -> Callable[[Path, int, int], RetrievalSet]:
    def read(folder: Path, num_queries: int, num_documents: int) -> RetrievalSet:
        found = read_folder(folder / name, "test")
        assert isinstance(found, RetrievalSet)
        return part(found, num_queries, num_documents)

    return read


def _held_out_task(name: str) -> Callable[[Path, int, int], RetrievalSet]:
    """Queries that training leaves out, and their documents."""

    def read(folder: Path, num_queries: int, num_documents: int) -> RetrievalSet:
        rows = training_rows({"name": name, "part": "held_out"}, folder)
        rows = sorted(rows, key=lambda row: (row.place, row.query))
        rows = random.Random(0).sample(rows, min(num_documents, len(rows)))
        ids: dict[str, str] = {}
        relevant: dict[str, set[str]] = {}
        for row in rows:
            number = ids.setdefault(row.positives[0], f"d{len(ids)}")
            relevant.setdefault(row.query, set()).add(number)
        asked = dict(list(enumerate(relevant))[:num_queries])
        return RetrievalSet(
            name,
            "held_out",
            {number: text for text, number in ids.items()},
            {f"q{number}": query for number, query in asked.items()},
            {f"q{n}": dict.fromkeys(relevant[query], 1) for n, query in asked.items()},
        )

    return read


COSQA_DEV = {
    "path": "cosqa/qa_dev.jsonl.gz",
    "format": "judged",
    "columns": {"document": "code"},
    "where": {"label": 1},
}
DOMAINS: Mapping[str, Domain] = {
    "scifact": Domain(
        "Abstract", "Finding", {"name": "scifact"}, _folder_task("scifact"), "SciFact"
    ),
    "nl2bash": Domain("Command", "Task", {"name": "nl2bash"}, _held_out_task("nl2bash"), "NL2Bash"),
    "cosqa": Domain("Code", "Search query", COSQA_DEV, _folder_task("cosqa"), "CosQA"),
    "medquad": Domain(
        "Answer", "Question", {"name": "medquad"}, _held_out_task("medquad"), "MedQuAD"
    ),
    "squad": Domain(
        "Passage",
        "Question",
        {"name": "squad_qg_pairs"},
        _folder_task("squad11_dev"),
        "SQuAD dev",
    ),
}
# Queries and documents of a domain; pairs of an STS set ("tiny" is for trying).
SIZES = {"small": (150, 700), "nano": (60, 200), "tiny": (8, 24)}
PAIRS = {"nano": 400, "tiny": 40}


class Tasks(Mapping[str, TaskSet]):
    """What is measured, by the name of its column; each is read when it is first asked for."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder, self.size = folder, size
        self._found: dict[str, TaskSet] = {}

    def __getitem__(self, column: str) -> TaskSet:
        if column not in self._found:
            self._found[column] = self._read(column)
        return self._found[column]

    def __iter__(self) -> Any:
        yield from ("stsb test", "sick test", "sts16 test", *DOMAINS)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def asked(self, texts: str | None) -> list[str]:
        """What rows for these texts must not hold: a domain's queries, or all STS sentences."""
        columns = (texts,) if texts in DOMAINS else ("stsb test", "sick test", "sts16 test")
        return [text for column in columns for text in self[column].asked_texts()]

    def _read(self, column: str) -> TaskSet:
        if column in DOMAINS:
            return DOMAINS[column].task(self.folder, *SIZES[self.size])
        found: Any = read_folder(self.folder / column.removesuffix(" test"), "test")
        if self.size in PAIRS:
            return drawn(found, PAIRS[self.size])
        return drawn(found, 1500) if column == "sick test" else found


def table_of(table: Table, folder: Path) -> Table:
    """The `data` table with its path below the folder of data sets."""
    path = table.get("path")
    return table if path is None or Path(path).is_absolute() else {**table, "path": folder / path}


def gold_rows(domain: str, folder: Path) -> list[TrainingRow]:
    table = table_of(DOMAINS[domain].gold, folder)
    return training_rows({k: str(v) if k == "path" else v for k, v in table.items()}, folder)


def records_of(texts: str, tasks: Tasks, limit: int) -> list[Record]:
    """The texts to write for: a domain's documents, or sentences of Wikipedia, drawn."""
    if texts in DOMAINS:
        corpus = tasks[texts].corpus  # type: ignore[attr-defined]
        found = [Record(number, text) for number, text in corpus.items() if text.strip()]
    else:
        path = tasks.folder / "wiki_sentences" / "sentences.jsonl.gz"
        every = read_texts(path, column="text")
        found = [each for each in every if 8 <= len(each.text.split()) <= 20]
    return random.Random(0).sample(found, min(limit, len(found)))


@functools.cache
def shots(domain: str, folder: Path) -> tuple[tuple[str, str], ...]:
    """Document and query of training pairs with short documents, drawn: the demonstrations."""
    rows = gold_rows(domain, folder)
    drawn_rows = random.Random(1).sample(rows, min(200, len(rows)))
    short = sorted(drawn_rows, key=lambda row: len(row.positives[0].split()) > SHOT_WORDS)
    return tuple((row.positives[0], row.query) for row in short[:NUM_SHOTS])


def write_prompt(domain: str, folder: Path, path: Path, *, shown: bool = True) -> Path:
    """A prompt file for the domain, with demonstrations or without."""
    names = DOMAINS[domain]
    asked = f"{names.document}: {{document}}\n{names.query}:"
    lines = [
        'source = "ours"',
        "plain = true",
        f"template = {_toml('{demonstrations}' + asked)}",
        f"demonstration = {_toml(asked + ' {query}' + chr(10) * 2)}",
        f"num_demonstrations = {NUM_SHOTS if shown else 0}",
        "[slots.document]",
        'field = "positive"',
        "max_words = 120",
        "[answer]",
        'kind = "first_line"',
        'to = "anchor"',
        'stop = ["\\n"]',
        "max_new_tokens = 32",
    ]
    for document, query in shots(domain, folder) if shown else ():
        cut = " ".join(document.split()[:SHOT_WORDS])
        lines += ["[[demonstrations]]", f"document = {_toml(cut)}", f"query = {_toml(query)}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def _toml(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")
