"""What goes into an index and what comes out: records, checked, and hits.

N texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from polyvec.data.texts import Record
from polyvec.embed.encoding import check_text
from polyvec.errors import DataError, InputError
from polyvec.index.filters import Kind, Value, kind_of
from polyvec.interfaces import EncodeReport


@dataclass(frozen=True, slots=True)
class Component:
    """One way that a text was found: its place from 1 in that ranking, and its score there."""

    name: str
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Share:
    """What a stretch of the text, `text[start:end]`, adds to a score."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a text was found.

    components: its rank and score in each ranking: dense, words, fused, reranked. shares: what
    its words add to the dense score, in their order. method: "token states", when the vector is
    the mean of the tokens' states, and the shares and `rest` (other tokens) add up to the score;
    "left out", the score less that of the text without the words; or "" without shares. terms:
    the words of the query that the text holds, with what each adds to the score of words.
    """

    components: tuple[Component, ...]
    shares: tuple[Share, ...] = ()
    rest: float = 0.0
    method: Literal["token states", "left out", ""] = ""
    terms: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A text that was found: its id, its score (higher is better), the text and its metadata.

    Of a chunk of a document, the metadata has `document`, and the chunk is its characters `start`
    to `end`.
    """

    id: str
    score: float
    text: str
    metadata: Mapping[str, Value] = field(default_factory=dict)
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did: texts in all, texts encoded now (others were known), the encode run.

    num_written: rows that are new or changed; num_deleted: rows that were deleted.
    """

    num_texts: int
    num_embedded: int
    encode: EncodeReport
    num_written: int = 0
    num_deleted: int = 0


def as_records(records: object) -> list[Record]:
    """The records as a list, checked; InputError for what is no list of them."""
    if isinstance(records, str) or not hasattr(records, "__iter__"):
        raise InputError(f"records is {type(records).__name__}; pass a list of Record(id, text)")
    items = list(records)
    check_ids(items)
    return items


def grown(fields: Mapping[str, Kind], items: Sequence[Record]) -> dict[str, Kind]:
    """The fields of an index once it holds these records, too.

    A new field of whole numbers and others is one of floats. Raises DataError for a value of
    another kind than the field's, naming the record.
    """
    from polyvec.index.engines.checks import check_metadata

    found: dict[str, Kind] = {}
    for item in items:
        for name, value in item.metadata.items():
            kind = kind_of(value)
            if name not in fields and {kind, found.setdefault(name, kind)} == {"int", "float"}:
                found[name] = "float"
    every = {**found, **fields}
    for item in items:
        check_metadata(item.id, item.metadata, every)
    return every


def check_embedder(embedder: object) -> None:
    """Raises InputError for a model's name, or another object that is no embedder."""
    if isinstance(embedder, type) or not hasattr(embedder, "encode_vectors"):
        raise InputError(
            f"embedder is {embedder!r}, expected an embedder: Embedder.from_pretrained(name)"
        )


def check_ids(items: Sequence[Record]) -> None:
    """Raises DataError unless each id is text and occurs once, with a string to embed."""
    place_of: dict[str, int] = {}
    for place, item in enumerate(items, start=1):
        # isprintable is quick, and False for the lone surrogates that no file can hold.
        if not isinstance(item, Record):
            raise DataError(
                f"text {place} is a {type(item).__name__}, expected a Record(id, text); "
                "data.texts.read_texts reads them from files"
            )
        if not isinstance(item.id, str) or (not item.id.isprintable() and not _is_text(item.id)):
            raise DataError(f"text {place}: id {item.id!r} is not a valid string; give another id")
        if not isinstance(item.text, str):
            raise DataError(
                f"text {place} (id {item.id!r}) is {type(item.text).__name__}, not a string"
            )
        check_text(item.text, place - 1)
        first = place_of.setdefault(item.id, place)
        if first != place:
            raise DataError(f"duplicate id {item.id!r} (texts {first} and {place}); ids are unique")


def _is_text(text: str) -> bool:
    return text.encode(errors="ignore").decode() == text


def read_as(text: str, metadata: Mapping[str, Value]) -> str:
    """What a model reads of a text: of a chunk of a document with a header, that first."""
    header = metadata.get("header")
    is_chunk = "document" in metadata and "start" in metadata
    return f"{header}\n\n{text}" if header and is_chunk else text
