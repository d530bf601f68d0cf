"""Reports that the tests share, and a reader of pages."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np

from polyvec.evaluate.outcome import Item, Outcome
from polyvec.evaluate.report import Compared, Report, TaskReport
from polyvec.evaluate.significance import spearman

MODEL_SHA256 = "ab" * 32
GEOMETRY = {"isotropy": 0.9, "effective_rank": 120.0, "mean_cosine": 0.05, "own_figure": 2.0}


@dataclass
class Result:
    """The fields of a task's result that a report reads."""

    task: str
    kind: str
    main_measure: str
    scores: dict[str, float]
    split: str = "test"
    subset: str = ""
    num_texts: int = 100
    num_truncated: int = 0
    seconds: float = 2.0
    encode_seconds: float = 1.5
    data_sha256: str = "cd" * 32
    model_sha256: str = MODEL_SHA256
    official_task: str = ""
    published: float | None = None
    note: str = ""


def mean(items: np.ndarray) -> float:
    return float(items[:, 0].mean())


def task(name: str, outcome: Outcome, geometry: dict[str, float] | None = None, **facts: Any):
    result = Result(name, outcome.kind, outcome.main_measure, outcome.scores, **facts)
    return TaskReport(result, outcome, GEOMETRY if geometry is None else geometry)


def sts_outcome(num: int = 60, seed: int = 0) -> Outcome:
    draw = np.random.default_rng(seed)
    gold = draw.integers(0, 51, num) / 10
    found = gold / 5 + 0.3 * draw.standard_normal(num)
    texts = [(f"first {'word ' * int(n)}", f"second {n}") for n in draw.integers(1, 30, num)]
    rows = enumerate(zip(texts, found.tolist(), gold.tolist(), strict=True))
    items = tuple(Item(f"pair-{i}", pair, value, score) for i, (pair, value, score) in rows)
    paired = np.stack([found, gold], axis=1)
    scores = {"spearman": spearman(paired), "pearson": float(np.corrcoef(found, gold)[0, 1])}
    return Outcome("sts", "spearman", scores, items, paired, spearman, {"pairs": found})


def retrieval_outcome(num: int = 40, seed: int = 1) -> Outcome:
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 5, num) / 4
    items = tuple(
        Item(
            f"q{i}",
            (f"query {'word ' * (i % 12)}{i}", f"wanted {i}"),
            float(value),
            None,
            ((f"d{i}", f"found {i}", 0.9, int(value == 1)), (f"e{i}", f"other {i}", 0.5, 0)),
        )
        for i, value in enumerate(values)
    )
    scores = {f"ndcg@{k}": float(values.mean()) for k in (10, 1, 3, 5, 20, 100)}
    scores |= {f"recall@{k}": 0.5 for k in (1, 3, 5, 10, 100)} | {"map": 0.4}
    groups = {"relevant": draw.normal(0.6, 0.1, num), "other": draw.normal(0.2, 0.1, 300)}
    return Outcome("retrieval", "ndcg@10", scores, items, values[:, None], mean, groups)


def classification_outcome(num: int = 80, seed: int = 2) -> Outcome:
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 11, num) / 10
    labels = [f"label {n}" for n in draw.integers(0, 5, num)]
    items = tuple(
        Item(
            str(i),
            (f"text {'word ' * (i % 7)}",),
            float(value),
            label,
            (("label 9", "", 1 - value, 0),),
        )
        for i, (value, label) in enumerate(zip(values, labels, strict=True))
    )
    scores = {"accuracy": float(values.mean()), "f1": 0.5}
    return Outcome("classification", "accuracy", scores, items, values[:, None], mean)


def clustering_outcome() -> Outcome:
    return Outcome("clustering", "v_measure", {"v_measure": 0.4312})


def bitext_outcome(seed: int, num: int = 30) -> Outcome:
    draw = np.random.default_rng(seed)
    values = (draw.random(num) < draw.random()).astype(float)
    items = tuple(
        Item(str(i), (f"sentence {i}", f"translation {i}"), value, str(i))
        for i, value in enumerate(values.tolist())
    )
    scores = {"f1": float(values.mean()), "accuracy": float(values.mean())}
    return Outcome("bitext", "f1", scores, items, values[:, None], mean)


def report_of(*tasks: TaskReport, model: str = "some/model", **facts: Any) -> Report:
    settings = {"batch_size": 32, "tokens": {"max_length": 256}}
    return Report(
        model, MODEL_SHA256, settings, {"polyvec": "0.1.0"}, "2026-01-02", tuple(tasks), **facts
    )


def mixed_report() -> Report:
    """A report with every kind of section."""
    languages = [
        task("tatoeba", bitext_outcome(n), {}, subset=f"l{n:03d}-eng", num_texts=60)
        for n in range(24)
    ]
    return report_of(
        task("stsb", sts_outcome(), official_task="STSBenchmark", published=0.8203),
        task("sts16", sts_outcome(seed=5), official_task="STS16", published=0.9),
        task("scifact", retrieval_outcome(), num_truncated=37, note="a part of the documents"),
        task("banking77", classification_outcome()),
        task("short", clustering_outcome()),
        *languages,
        comparison=(
            Compared("stsb", 0.82, 0.84, 0.02, 0.01, 0.03, 0.002, True),
            Compared("scifact", 0.64, 0.63, -0.01, -0.02, 0.01, 0.4, False),
        ),
        compared=("model a", "model b"),
        notes=("Some tasks were training data.",),
    )


@dataclass
class Tag:
    """An element: its name, its attributes, the text within, and its children."""

    name: str
    attributes: dict[str, str]
    children: list["Tag"] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def all(self, name: str = "", **wanted: str) -> list["Tag"]:
        """Elements within, by name and by attributes (kind stands for class), in their order."""
        found = []
        for child in self.children:
            if "kind" in wanted:
                fits = wanted["kind"] in child.attributes.get("class", "").split()
            else:
                fits = all(child.attributes.get(key) == value for key, value in wanted.items())
            found += [child] if fits and name in ("", child.name) else []
            found += child.all(name, **wanted)
        return found

    def one(self, name: str = "", **wanted: str) -> "Tag":
        return self.all(name, **wanted)[0]


class _Reader(HTMLParser):
    VOID = frozenset(("meta", "br", "link", "img", "input", "hr"))

    def __init__(self) -> None:
        super().__init__()
        self.open = [Tag("root", {})]

    def handle_starttag(self, tag, attrs):
        found = Tag(tag, {key: value or "" for key, value in attrs})
        assert len(found.attributes) == len(attrs), f"{tag} has an attribute twice"
        self.open[-1].children.append(found)
        if tag not in self.VOID:
            self.open.append(found)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data):
        for one in self.open:
            one.pieces.append(data)


def read(page: str) -> Tag:
    """The page's elements; every element that is opened is closed in its turn."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].name}> is not closed"
    return reader.open[0]
