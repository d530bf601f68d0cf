"""What a place that keeps an index does: one file per engine, all with these verbs.

N texts, Q queries, K found, E numbers a vector.
"""

import abc
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from polyvec.errors import IndexStoreError
from polyvec.index.filters import Filter, Kind, Value
from polyvec.interfaces import DenseVectors, MultiVectors, SparseVectors, Vectors

Form = Literal["dense", "sparse", "multi"]  # how a text is stored; a model has one or several
FORMS: Mapping[Form, type[Vectors]] = {
    "dense": DenseVectors,
    "sparse": SparseVectors,
    "multi": MultiVectors,
}
FORMAT = 3  # 1 and 2 are the plain files of `polyvec.index.folder`


@dataclass(frozen=True, slots=True)
class Description:
    """What an index contains and what made it; kept beside its rows, checked on opening.

    dimensions: numbers in a vector of each form. fields: the kind of each field of the metadata.
    The others say which model, read how, made the vectors: those of `folder.Manifest`.
    """

    model: str
    model_sha256: str
    similarity: str
    dimensions: Mapping[Form, int]
    prompt: str = ""
    fields: Mapping[str, Kind] = field(default_factory=dict)
    scale: str = ""
    attention: str = ""
    options: str = ""
    asked: str = ""
    chunking: str = ""
    format: int = FORMAT

    @property
    def built_with(self) -> str:
        """The model's name with its options of the command line."""
        from polyvec.index.folder import built_with

        return built_with(self.model, self.scale, self.attention, self.options)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Description.read` reads them."""
        return asdict(self)

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """`read` of JSON; IndexStoreError for a text that is none."""
        try:
            raw = json.loads(text)
        except ValueError:
            raise IndexStoreError(
                f"{where}: its description is damaged; build the index again"
            ) from None
        return cls.read(raw, where)

    @classmethod
    def read(cls, raw: Mapping[str, Any], where: str) -> Self:
        """Raises IndexStoreError for another format, an unknown key or a wrong type."""
        from polyvec.errors import PolyvecError
        from polyvec.settings import fill

        if raw.get("format") != FORMAT:
            raise IndexStoreError(
                f"{where}: index format {raw.get('format')!r}, this version reads {FORMAT}; "
                "use a newer polyvec, or build the index again"
            )
        try:
            found: Self = fill(cls, dict(raw), where)
        except PolyvecError as error:
            raise IndexStoreError(f"{where}: damaged ({error}); build the index again") from None
        return found


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts with their metadata and vectors, in columns of equal length.

    metadata: the fields that a text has, one of `fields`' kinds each. vectors: one entry for each
    form of the index.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    metadata: Sequence[Mapping[str, Value]]
    vectors: Mapping[Form, Vectors] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that was found; a higher score is better."""

    id: str
    score: float
    text: str
    metadata: Mapping[str, Value] = field(default_factory=dict)


class Engine(abc.ABC):
    """A collection of rows in one place.

    What has returned is kept: after a kill, everything that was acknowledged is there, and nothing
    is half there. Ids are unique; writing an id again replaces its row. Errors of the library
    behind it become IndexStoreError (what is there is wrong, or cannot be reached) or InputError
    (what was asked).
    """

    name: str
    forms: frozenset[Form]  # which it can store and search
    has_words: bool  # whether `words` works: BM25 or the engine's own ranking
    # How far a number may differ from what was written, beside the largest of its vector.
    precision: float = 1e-5

    @classmethod
    @abc.abstractmethod
    def create(cls, where: str, description: Description) -> Self:
        """A new, empty collection; IndexStoreError if there is one, or it cannot be reached."""

    @classmethod
    @abc.abstractmethod
    def open(cls, where: str) -> Self:
        """The collection that is there; IndexStoreError if there is none, or a newer format."""

    @classmethod
    def exists(cls, where: str) -> bool:
        """Whether there is a collection; IndexStoreError if that cannot be known."""
        try:
            cls.open(where).close()
        except IndexStoreError:
            return False
        return True

    @classmethod
    def pending(cls, where: str, description: Description) -> Self:
        """A collection that takes the place of the one that is there when it is published.

        Of an engine that cannot, a new one, if there is none.
        """
        return cls.create(where, description)

    def publish(self) -> None:  # noqa: B027 - most engines have nothing to do
        """Put a pending collection in its place; before, whoever opens the place sees the old."""

    @property
    @abc.abstractmethod
    def description(self) -> Description:
        """What the collection contains, as it is stored now."""

    @abc.abstractmethod
    def describe(self, description: Description) -> None:
        """Replace the stored description: new fields of metadata, another name of the model."""

    @abc.abstractmethod
    def upsert(self, rows: Rows) -> None:
        """Add rows, in place of those of equal ids: all of them or, after an error, none."""

    @abc.abstractmethod
    def delete(self, ids: Sequence[str]) -> int:
        """Delete these ids; how many there were."""

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Inside, several writes are one stretch of work: no other process writes.

        IndexStoreError if another process holds it. By default nothing.
        """
        return contextlib.nullcontext()

    def find_texts(self, texts: Sequence[str]) -> Rows:
        """Rows with vectors that have one of these texts, one a text; none where it is costly."""
        return Rows([], [], [])

    @abc.abstractmethod
    def get(self, ids: Sequence[str], *, vectors: bool = False) -> Rows:
        """The rows of these ids that exist, in their order; `vectors` with all forms."""

    @abc.abstractmethod
    def count(self, filter: Filter | None = None) -> int:
        """Rows that the filter lets through, or all."""

    @abc.abstractmethod
    def near(
        self,
        queries: Vectors,
        k: int,
        *,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Candidate]]:
        """The nearest rows of each query vector, best first; their form is that of the queries.

        The score is the similarity that the description names (of multi-vectors MaxSim; of
        euclidean and manhattan the negative distance), at most k a query. With `exact` no
        approximate index is used.
        """

    @abc.abstractmethod
    def words(
        self, queries: Sequence[str], k: int, *, filter: Filter | None = None
    ) -> list[list[Candidate]]:
        """Rows whose texts share words with the query, best first; InputError without has_words."""

    def term_scores(self, terms: Sequence[str], ids: Sequence[str]) -> list[dict[str, float]]:
        """Of each id, what each term adds to its score of words; empty where it is not known."""
        return [{} for _ in ids]

    @abc.abstractmethod
    def scan(self, *, batch_size: int = 1024, vectors: bool = True) -> Iterator[Rows]:
        """All rows in batches, each id once, in bounded memory."""

    @abc.abstractmethod
    def optimize(self) -> None:
        """Compact, and bring indexes up to date; nothing where the engine does so itself."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of connections and locks."""
