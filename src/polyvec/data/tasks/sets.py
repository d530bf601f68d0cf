"""What a task's data looks like once it is read: one frozen dataclass a kind of task.

Pairs with a score and retrieval are in sets.py. Every set carries its name, split and the hash
of what was read, so that a score names the data that it was measured on.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StsSet:
    """Pairs of sentences and their gold similarity: `<split>.jsonl[.gz]`."""

    name: str
    split: str
    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    scores: tuple[float, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Corpus, queries and graded relevance: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

    `corpus` maps ids to "title text", `queries` holds those that the split judges,
    `identical` names those that are themselves documents: of equal id and equal text.
    `candidates`, where given, are the documents of each query to put in order (reranking);
    `excluded` documents of a query are never counted (BRIGHT, arXiv:2407.12883).
    """

    name: str
    split: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(repr=False)
    sha256: str = ""
    identical: frozenset[str] = frozenset()
    candidates: dict[str, tuple[str, ...]] = field(repr=False, default_factory=dict)
    excluded: dict[str, frozenset[str]] = field(repr=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClassificationSet:
    """Texts with a label each; a classifier learns on the train part, [train] and [test]."""

    name: str
    split: str
    train_texts: tuple[str, ...]
    train_labels: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    sha256: str = ""
    samples_per_label: int = 8


@dataclass(frozen=True, slots=True)
class ClusteringSet:
    """Texts and the cluster that each belongs to.

    `protocol` is "bootstrap" (ten draws of 16,384 with replacement, MTEB's fast clustering) or
    "sets" (each of `parts`, row numbers, clustered as a whole: MTEB's first version).
    """

    name: str
    split: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    sha256: str = ""
    protocol: str = "bootstrap"
    parts: tuple[tuple[int, ...], ...] = ()
    max_texts: int | None = None
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs of texts that belong together (1) or do not (0)."""

    name: str
    split: str
    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    labels: tuple[int, ...]
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class BitextSet:
    """Sentences of two languages; `gold` pairs a row of the first with one of the second."""

    name: str
    split: str
    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    gold: tuple[tuple[int, int], ...]
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class SummarySet:
    """Texts, their human summaries, and machine summaries with a human's score each."""

    name: str
    split: str
    texts: tuple[str, ...]
    human: tuple[tuple[str, ...], ...]
    machine: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class ConditionalStsSet:
    """Pairs whose similarity is judged under a condition (C-STS, arXiv:2305.15093)."""

    name: str
    split: str
    sentences1: tuple[str, ...]
    sentences2: tuple[str, ...]
    conditions: tuple[str, ...]
    scores: tuple[float, ...]
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """Queries under several instructions, and what is relevant under each.

    `instructions[query]` names its instructions in order; `qrels[query][i]` holds the judgements
    under the i-th. `changed` says that there are two and the second narrows the first (FollowIR,
    arXiv:2403.15246: p-MRR); otherwise any number (InstructIR, arXiv:2402.14334: robustness@10).
    `candidates[query]`, where given, are the documents to rank.
    """

    name: str
    split: str
    corpus: dict[str, str]
    queries: dict[str, str]
    instructions: dict[str, tuple[str, ...]]
    qrels: dict[str, tuple[dict[str, int], ...]] = field(repr=False, default_factory=dict)
    candidates: dict[str, tuple[str, ...]] = field(repr=False, default_factory=dict)
    changed: bool = False
    sha256: str = ""
