"""Documents in, chunks out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from polyvec.data.chunking.headers import Header, headings, no_header, title
from polyvec.data.chunking.splitters import Fixed, Recursive, Sentence
from polyvec.data.chunking.tokens import TokenSpans
from polyvec.data.texts import Record
from polyvec.data.units import Span
from polyvec.errors import DataError, SettingsError
from polyvec.registry import Registry

LATE = "late"  # the kind of chunks that are cut by one of CHUNKERS
# A text's spans: in order, each a stretch of it that is not empty.
Splitter = Callable[[str], list[Span]]
CHUNKERS: Registry[Callable[..., Splitter]] = Registry(
    "chunker", {"fixed": Fixed, "recursive": Recursive, "sentence": Sentence}
)
HEADERS: Registry[Header] = Registry(
    "header", {"headings": headings, "none": no_header, "title": title}
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a document: `text` is document[start:end], in characters.

    `header` is no part of the range: it is read before the text when the chunk is embedded.
    """

    id: str
    text: str
    document: str
    start: int
    end: int
    header: str = ""

    @property
    def embedded(self) -> str:
        """What a model reads: the header, an empty line, the text."""
        return f"{self.header}\n\n{self.text}" if self.header else self.text


@dataclass(frozen=True, slots=True)
class Chunker:
    """How documents are cut, and what is put before their chunks.

    `header` is a name in HEADERS, or a function from a document and a chunk's first character to
    a text, such as what a language model writes on it (contextual retrieval). `name` says both,
    for an index that must know how it was made. `late`: a chunk's vector is pooled from the states
    of the whole document (late chunking), which has no header.
    """

    split: Splitter
    header: str | Callable[[Record, int], str] = "none"
    name: str = "a function"
    late: bool = False

    def chunks(self, record: Record) -> Iterator[Chunk]:
        """The chunks of a document, "ID#0", "ID#1", ...; none of one that is blank."""
        text, own = record.text, self.header
        before = HEADERS.find(own)(text) if isinstance(own, str) else None
        for number, (start, end) in enumerate(self.split(text)):
            if not 0 <= start < end <= len(text):
                raise DataError(
                    f"document {record.id!r}: the chunker {self.name} gave the span "
                    f"({start}, {end}) of {len(text)} characters"
                )
            header = before(start) if before else own(record, start)  # type: ignore[operator]
            yield Chunk(f"{record.id}#{number}", text[start:end], record.id, start, end, header)


def load_chunker(
    table: Mapping[str, Any], token_spans: TokenSpans | None = None, *, where: str = "--chunk"
) -> Chunker:
    """The chunker of {"kind": name, setting: value ...}; `header` is a setting of every kind.

    token_spans: the places of the model's tokens in a text (`TextTokenizer.spans`), which sizes
    count; without it words and marks. {"kind": "late"} is late chunking of what another kind
    cuts, its setting `by`. Raises SettingsError for an unknown kind or setting.

    >>> chunker = load_chunker({"kind": "sentence", "size": 4})
    >>> [each.text for each in chunker.chunks(Record("d", "A cat sat. It left."))]
    ['A cat sat.', 'It left.']
    """
    if not isinstance(table.get("kind"), str):
        raise SettingsError(f"{where}: no kind of chunker. Known: {', '.join(CHUNKERS)}, {LATE}.")
    settings = dict(table)
    kind, header = settings.pop("kind"), settings.pop("header", "none")
    HEADERS.find(header, where=where)
    if kind == LATE:
        if header != "none":
            raise SettingsError(f"{where}: late chunks have no header; the model reads all before")
        by = settings.pop("by", "recursive")
        cut = load_chunker({**settings, "kind": by}, token_spans, where=f"{where} {LATE}")
        return replace(cut, name=f"{LATE} by={cut.name}", late=True)
    split = CHUNKERS.build(kind, settings, {"token_spans": token_spans}, where=where)
    words = [kind, *(f"{name}={value}" for name, value in sorted(settings.items()))]
    return Chunker(split, header, " ".join([*words, f"header={header}"]))


def is_late(name: str) -> bool:
    """Whether a chunker of this name is one of late chunks."""
    return name.split(" ")[0] == LATE


def chunks(records: Iterable[Record], chunker: Chunker) -> Iterator[Chunk]:
    """The chunks of documents, in order, one document at a time."""
    for record in records:
        yield from chunker.chunks(record)
