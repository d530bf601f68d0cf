"""What the rooms ask of each other: a model that turns texts into vectors, and those vectors.

`TextEncoder` is all that index, rerank, evaluate and serve know of a model: an Embedder, a
HybridEmbedder, an API service or a model of before LLMs. N texts, E numbers a vector, Z numbers
that are not zero, T tokens of all texts.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from polyvec.errors import InputError, ShapeError

Role = Literal["query", "document"]
ROLES: tuple[Role, ...] = ("query", "document")
Truncate = Literal["warn", "error", "silent"]
CHUNK_SIZE = 8192  # texts whose vectors are held at a time


@dataclass(frozen=True, slots=True)
class DenseVectors:
    """One vector a text, float32 [N, E]."""

    values_NE: np.ndarray

    def __len__(self) -> int:
        return len(self.values_NE)

    @property
    def dimension(self) -> int:
        return int(self.values_NE.shape[1])

    def to_dense(self) -> np.ndarray:
        """The vectors as float32 [N, E]."""
        return self.values_NE


@dataclass(frozen=True, slots=True)
class SparseVectors:
    """One vector a text, most of it zeros, as compressed sparse rows (CSR).

    Row i has `values_Z[indptr[i]:indptr[i + 1]]` in the columns `indices_Z` of the same places,
    as in `scipy.sparse.csr_array((values_Z, indices_Z, indptr), shape=(N, dimension))`.
    """

    indptr: np.ndarray
    indices_Z: np.ndarray
    values_Z: np.ndarray
    dimension: int

    @classmethod
    def of(cls, values_NE: np.ndarray) -> "SparseVectors":
        """The sparse form of dense vectors."""
        rows_Z, indices_Z = np.nonzero(values_NE)
        counts_N = np.bincount(rows_Z, minlength=len(values_NE))
        indptr = np.concatenate([[0], counts_N.cumsum()]).astype(np.int64)
        values_Z = values_NE[rows_Z, indices_Z].astype(np.float32)
        return cls(indptr, indices_Z.astype(np.int32), values_Z, int(values_NE.shape[1]))

    @classmethod
    def joined(cls, parts: Sequence["SparseVectors"], dimension: int) -> "SparseVectors":
        """The rows of all parts, in order."""
        starts = np.cumsum([0, *(part.indptr[-1] for part in parts)])
        ends = [part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)]
        return cls(
            np.concatenate([np.zeros(1, np.int64), *ends]),
            np.concatenate([np.empty(0, np.int32), *(part.indices_Z for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.values_Z for part in parts)]),
            dimension,
        )

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def to_dense(self) -> np.ndarray:
        """The vectors as float32 [N, E]."""
        out_NE = np.zeros((len(self), self.dimension), np.float32)
        rows_Z = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        out_NE[rows_Z, self.indices_Z] = self.values_Z
        return out_NE


@dataclass(frozen=True, slots=True)
class MultiVectors:
    """Several vectors a text, such as one a token: text i has rows offsets[i] to offsets[i + 1]."""

    values_TE: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[np.ndarray], dimension: int) -> "MultiVectors":
        """One array [tokens, E] a text, joined."""
        lengths = [len(each) for each in texts]
        values_TE = np.concatenate([np.empty((0, dimension), np.float32), *texts])
        return cls(values_TE, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """The vectors of one text, [tokens, E]."""
        row = range(len(self))[row]  # counts from the end below 0, and raises IndexError
        return self.values_TE[self.offsets[row] : self.offsets[row + 1]]

    @property
    def dimension(self) -> int:
        return int(self.values_TE.shape[1])

    def to_dense(self) -> np.ndarray:
        """Raises ShapeError: several vectors of a text are not one."""
        raise ShapeError(
            "a text has several vectors here; pool them, or search with late interaction"
        )


Vectors = DenseVectors | SparseVectors | MultiVectors


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one call puts around its texts: a stored name, if it has one, and the literal text.

    With a template the text is its instruction; `role` says which side is read, and `examples`
    (None: the template's own) the demonstrations. `given` means that the call asked for this
    text: a template without a slot for it then refuses.
    """

    name: str | None = None
    text: str = ""
    role: str | None = None
    examples: Any = None
    given: bool = False

    def __post_init__(self) -> None:
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the prompt has a lone surrogate at character {error.start}, which is not valid "
                "text (a terminal gives one for a byte that is not UTF-8)"
            ) from None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run: nothing here may change a vector."""

    batch_size: int | None = None
    batch_tokens: int | None = None
    show_progress_bar: bool | None = None
    truncate: Truncate = "warn"
    num_texts: int | None = None  # of a stream, if it is known, for the progress bar

    def __post_init__(self) -> None:
        if self.truncate not in ("warn", "error", "silent"):
            raise InputError(
                f"truncate={self.truncate!r} is not known. Known: error, silent, warn."
            )
        for name in ("batch_size", "batch_tokens"):
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                raise InputError(f"{name} is {value!r}, expected a whole number from 1")


@dataclass(slots=True)
class EncodeReport:
    """What one encode run did: which prompt it used, what it truncated, where the time went.

    `num_tokens` are those the model read, `num_computed_tokens` with padding; wall seconds.
    `truncated` holds the index of each distinct text that was truncated, its first occurrence.
    """

    prompt: Prompt = field(default_factory=Prompt)
    num_texts: int = 0
    num_tokens: int = 0
    num_computed_tokens: int = 0
    num_truncated: int = 0
    first_truncated: tuple[int, int] | None = None
    truncated: list[int] = field(default_factory=list)
    tokenize_s: float = 0.0
    forward_s: float = 0.0

    def add_truncated(self, index: int, full_length: int, count: int) -> None:
        """Count a text of `full_length` tokens that occurs `count` times."""
        self.num_truncated += count
        self.truncated.append(index)
        if self.first_truncated is None:
            self.first_truncated = (index, full_length)

    def truncation_message(self, max_length: int | None) -> str:
        """One line that counts the truncated texts and says what to do."""
        index, length = self.first_truncated or (0, 0)
        return (
            f"{self.num_truncated} of {self.num_texts} texts were longer than the model's "
            f"{max_length} tokens and were truncated (first: index {index}, {length} tokens); "
            "split them, raise max_seq_length, or pass truncate='error' or 'silent'"
        )


class PromptChoice(TypedDict, total=False):
    """Which prompt a call uses: its text, else a stored one by name, else the role's."""

    prompt: str | None
    prompt_name: str | None
    role: str | None


class TextEncoder(abc.ABC):
    """A model that turns texts into vectors.

    A new kind of model writes `encode_iter`, `similarity`, `similarity_pairwise`,
    `get_embedding_dimension` and `fingerprint`; the rest follows from these.
    """

    # One of "cosine", "dot", "euclidean", "manhattan", which search knows how to compute in
    # blocks, or a name of the model's own: then only `similarity` knows how to score.
    similarity_fn_name: str = "cosine"

    @abc.abstractmethod
    def encode_iter(
        self,
        inputs: Iterable[str],
        *,
        chunk_size: int = CHUNK_SIZE,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> Iterator[np.ndarray]:
        """Float32 arrays [at most `chunk_size`, E], in order, in bounded memory.

        `report` is filled in as texts are encoded. Raises InputError, naming the index, for
        what is not a text.
        """

    @abc.abstractmethod
    def similarity(self, a: Any, b: Any) -> Any:
        """Similarity of every vector in `a` to every one in `b`, a tensor [N, M]."""

    @abc.abstractmethod
    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        """Similarity of each vector in `a` to the one beside it in `b`, a tensor [N].

        Raises InputError for a model whose pairs have no score of their own.
        """

    @abc.abstractmethod
    def get_embedding_dimension(self) -> int:
        """Numbers in a vector."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that decides a vector: equal if and only if vectors are. Cheap to repeat."""

    def vectors_fingerprint(self) -> str:
        """Hash of all that decides a vector but the prompt, for caches that keep prompts apart."""
        return self.fingerprint()

    @property
    def prompts(self) -> Mapping[str, str]:
        """The stored prompts by name."""
        return {}

    def takes_instruction(self, role: str | None = None) -> bool:
        """Whether an instruction of the data has a slot of its own on this side.

        Where it has none, evaluation appends the instruction to the text, as MTEB does.
        """
        return False

    def takes_prompt(self, role: str | None = None) -> bool:
        """Whether a prompt changes what is read on this side."""
        return bool(self.prompts)

    def default_instruction(self, role: str | None = None) -> str:
        """What the instruction's slot holds if no instruction is given; "" for nothing."""
        return ""

    def prompt_key(
        self, prompt: str | None = None, prompt_name: str | None = None, role: str | None = None
    ) -> tuple[str | None, ...]:
        """What of a prompt decides vectors: with equal keys, equal texts have equal vectors.

        The first is the literal text of the prompt, for people to read.
        """
        text = self.prompts.get(prompt_name or "") if prompt is None else prompt
        return text, prompt_name, role

    @property
    def max_seq_length(self) -> int | None:
        """Most tokens that are read; None if there is no limit, or if it is not known."""
        return None

    @property
    def num_parameters(self) -> int | None:
        """Numbers in its weights, if it has weights here."""
        return None

    def settings(self) -> dict[str, Any]:
        """Everything beside the weights that decides a vector, as plain values."""
        return {}

    def described(self) -> list[str]:
        """How the model is run, a line each, for a person."""
        return [f"{type(self).__name__}: {self.get_embedding_dimension()} dimensions"]

    def encode_vectors(
        self,
        inputs: Sequence[str],
        *,
        options: RunOptions | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> tuple[Vectors, EncodeReport]:
        """The vectors of the texts, in order, and a report."""
        report = EncodeReport()
        chunks = self.encode_iter(inputs, options=options, report=report, **prompt)
        empty = np.empty((0, self.get_embedding_dimension()), np.float32)
        values_NE = np.concatenate([empty, *chunks])
        if len(values_NE) != len(inputs):
            raise ShapeError(
                f"{type(self).__name__}.encode_iter gave {len(values_NE)} vectors for "
                f"{len(inputs)} texts"
            )
        return DenseVectors(values_NE), report

    def encode(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """Float32 vectors [N, E], or [E] for a single string; options are `encode_vectors`'."""
        single = isinstance(inputs, str)
        rows: Sequence[str] = [inputs] if isinstance(inputs, str) else inputs
        vectors, _ = self.encode_vectors(rows, **options)
        found_NE = vectors.to_dense()
        return found_NE[0] if single else found_NE

    def encode_query(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """`encode` of queries, with the model's prompt for them if it has one."""
        return self.encode(inputs, role="query", **options)

    def encode_document(self, inputs: str | Sequence[str], **options: Any) -> Any:
        """`encode` of documents, with the model's prompt for them if it has one."""
        return self.encode(inputs, role="document", **options)
