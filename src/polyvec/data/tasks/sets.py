"""The data of a task in memory: one frozen dataclass for each kind of task."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class TaskSet:
    """What all data sets have: a name, a split and the hash of the files they were read from.

    The hash goes into every result, so that a score names the data it was measured on.
    """

    KIND: ClassVar[str] = ""  # the entry of kinds.KINDS

    name: str
    split: str
    sha256: str = field(default="", kw_only=True)

    @property
    def kind(self) -> str:
        """Name of its kind of task."""
        return self.KIND

    def asked_texts(self) -> Iterator[str]:
        """Texts that must not be in training data: the queries, or all texts if there are none.

        A corpus may be. A kind with other fields has a method of its own.
        """
        queries = getattr(self, "queries", None)
        if queries is not None:
            yield from queries.values()
            return
        for name in ("texts", "sentences1", "sentences2"):
            yield from getattr(self, name, ())


@dataclass(frozen=True, slots=True)
class StsSet(TaskSet):
    """Pairs of sentences and their gold similarity."""

    KIND = "sts"

    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ConditionalStsSet(TaskSet):
    """Pairs of sentences whose similarity is judged under a condition (C-STS, arXiv:2305.15093)."""

    KIND = "conditional_sts"

    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    conditions: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PairClassificationSet(TaskSet):
    """Pairs of texts with a label: 1 for a match (paraphrase, entailment), else 0."""

    KIND = "pair_classification"

    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BitextMiningSet(TaskSet):
    """Sentences of two languages; `gold` pairs a row of the first with one of the second."""

    KIND = "bitext_mining"

    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    gold: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SummarizationSet(TaskSet):
    """Texts, their human summaries, and machine summaries with a human score each."""

    KIND = "summarization"

    texts: tuple[str, ...]
    human: tuple[tuple[str, ...], ...]
    machine: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ClassificationSet(TaskSet):
    """Labelled texts to score, and labelled texts that the classifier is trained on."""

    KIND = "classification"

    train_texts: tuple[str, ...]
    train_labels: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    samples_per_label: int = 8


@dataclass(frozen=True, slots=True)
class ClusteringSet(TaskSet):
    """Texts and the label of the cluster of each.

    `protocol` is "bootstrap" (ten draws of 16,384 with replacement, MTEB's fast clustering) or
    "sets" (each of `parts`, row numbers, clustered as a whole: MTEB's first version).
    `max_texts` or `fraction` limits the texts that "bootstrap" encodes.
    """

    KIND = "clustering"

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    protocol: str = "bootstrap"
    parts: tuple[tuple[int, ...], ...] = ()
    max_texts: int | None = None
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class RetrievalSet(TaskSet):
    """Corpus, queries and graded relevance; reranking if `candidates` are given.

    `corpus` maps ids to "title text", `queries` holds those with judgements. `identical` names
    queries that are documents too, with equal id and equal text. `candidates` are the documents
    to rank for each query; `excluded` documents of a query never count (BRIGHT,
    arXiv:2407.12883).
    """

    KIND = "retrieval"

    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(repr=False)
    identical: frozenset[str] = frozenset()
    candidates: dict[str, tuple[str, ...]] = field(repr=False, default_factory=dict)
    excluded: dict[str, frozenset[str]] = field(repr=False, default_factory=dict)

    @property
    def kind(self) -> str:
        return "reranking" if self.candidates else self.KIND


@dataclass(frozen=True, slots=True)
class InstructionRetrievalSet(TaskSet):
    """Queries under several instructions, and what is relevant under each.

    `instructions[query]` holds its instructions in order; `qrels[query][i]` the judgements under
    the i-th. With `changed` there are two and the second narrows the first (FollowIR,
    arXiv:2403.15246: p-MRR); otherwise any number (InstructIR, arXiv:2402.14334: robustness@10).
    `candidates[query]`, where given, are the documents to rank.
    """

    KIND = "instruction_retrieval"

    corpus: dict[str, str]
    queries: dict[str, str]
    instructions: dict[str, tuple[str, ...]]
    qrels: dict[str, tuple[dict[str, int], ...]] = field(repr=False, default_factory=dict)
    candidates: dict[str, tuple[str, ...]] = field(repr=False, default_factory=dict)
    changed: bool = False

    @property
    def kind(self) -> str:
        return "instruction_reranking" if self.changed else self.KIND
