"""A new kind of task: its class, reader, entry and protocol are all that it takes."""

import json
from dataclasses import dataclass

from polyvec.data.tasks.kinds import KINDS, TaskKind
from polyvec.data.tasks.sets import TaskSet
from polyvec.evaluate import protocols
from polyvec.evaluate.outcome import Outcome
from polyvec.evaluate.report.wording import kind_names
from polyvec.evaluate.selection import select
from polyvec.evaluate.tasks import Evaluator
from polyvec.registry import Registry


@dataclass(frozen=True, slots=True)
class OddOneOutSet(TaskSet):
    KIND = "odd_one_out"

    texts: tuple[tuple[str, ...], ...]
    odd: tuple[int, ...]


def read(files) -> OddOneOutSet:
    rows = files.rows()
    texts = tuple(row.strings("texts") for row in rows)
    odd = tuple(row.value("odd") for row in rows)
    return OddOneOutSet(files.name, files.split, texts, odd, sha256=files.sha256())


def odd_one_out(encoder, data: OddOneOutSet) -> Outcome:
    """Share of rows whose odd text is the least similar to the others."""
    found = []
    for texts in data.texts:
        vectors_NE = encoder.encode(texts)
        found.append(int(encoder.similarity(vectors_NE, vectors_NE).sum(axis=1).argmin()))
    right = [odd == one for odd, one in zip(data.odd, found, strict=True)]
    return Outcome(data.kind, "accuracy", {"accuracy": sum(right) / len(right)})


def test_a_new_kind_is_read_measured_and_named(tmp_path, monkeypatch, minilm):
    kind = TaskKind(
        name="odd_one_out",
        read=read,
        main_measure="accuracy",
        mteb_type="OddOneOut",
        heading="Odd one out",
        items=("row", "rows"),
        fields=("texts", "odd"),
    )
    monkeypatch.setitem(KINDS, "odd_one_out", kind)
    parts = {**protocols.PROTOCOLS, "odd_one_out": odd_one_out}
    monkeypatch.setattr(protocols, "PROTOCOLS", Registry("protocol", parts))
    rows = [
        {"texts": ["a cat", "a kitten", "the stock market"], "odd": 2},
        {"texts": ["bond prices", "rain and snow", "stormy weather"], "odd": 0},
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (chosen,) = select([str(tmp_path)])
    result = Evaluator(minilm).measure(chosen.read()).result
    assert (result.kind, result.main_measure, result.main_score) == ("odd_one_out", "accuracy", 1)
    assert kind_names(result.kind) == ("Odd one out", "row", "rows")
    # By --kind too, in any spelling.
    (given,) = select([str(tmp_path)], kind="OddOneOut")
    assert given.read() == chosen.read()
