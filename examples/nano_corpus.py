"""The corpus of polyvec-nano: which texts, how often, and none that an evaluation uses.

    python examples/nano_corpus.py ../shared/data      # read, check, print the report

A document is dropped if it repeats another, or if it shares 8 words in a row with any evaluation
text, or a whole sentence of 4 to 7 words. Evaluation text is every string in every file of the data
folder but those of SOURCES and other sets' training splits, so also the corpora of retrieval sets.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 4000  # characters: a longer document is cut at paragraphs
NGRAM = 8
WORD = re.compile(r"[a-z0-9]+")
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Source:
    """`fields` of the rows of `files`; at most `cap` characters, each read `repeat` times."""

    name: str
    files: tuple[str, ...]
    fields: tuple[str, ...]
    licence: str
    cap: int = 10**9
    repeat: int = 1


# Caps and repeats make the mix of a run of about 14 million tokens: no source is most of it, and
# the little there is of encyclopedic and scientific English is read twice.
SOURCES = (
    Source("english_novels", ("text_a", "text_b"), ("text",), "public domain", cap=14_000_000),
    Source("medquad", ("pairs",), ("answer",), "CC BY 4.0", cap=8_000_000),
    Source("newsgroups20", ("train",), ("text",), "research collection, no explicit licence"),
    Source("multi30k", ("captions_train",), ("captions",), "CC BY-NC-SA 4.0", cap=5_000_000),
    Source("peps", ("peps",), ("text",), "public domain / CC0-1.0", cap=2_500_000),
    Source("rust_book", ("chapters",), ("text",), "MIT or Apache-2.0"),
    Source("personachat_personas", ("dev_dialogs",), ("conv",), "CC BY 4.0"),
    Source("tiny_text", ("us_speeches",), ("text",), "public domain", cap=2_000_000),
    Source("tiny_text", ("tinystories_sample",), (), "CDLA-Sharing-1.0"),
    Source("wiki_sentences", ("sentences",), ("text",), "CC BY-SA 3.0", repeat=2),
    Source("wikitext2", ("wiki.valid.tokens",), (), "CC BY-SA 3.0", repeat=2),
    Source("squad_qg_pairs", ("test",), ("sentence", "question"), "CC BY-SA 4.0"),
    Source("scitldr", ("train",), ("title", "abstract", "tldr"), "Apache-2.0", repeat=2),
    Source("pubmedqa", ("labeled",), ("question", "abstract", "long_answer"), "MIT", repeat=2),
)  # fmt: skip
DOCSTRINGS = Source("python_docstrings", (), (), "PSF License Version 2", cap=4_000_000)


@dataclass
class Corpus:
    """Documents to train on and how often each is read, documents held out, and the report."""

    train: list[str]
    repeats: list[int]
    held_out: list[str]  # one document in a hundred, of every source
    novels: list[str]  # the held-out books: every tenth, whole
    report: str


# ---- reading ------------------------------------------------------------------------------------


def lines_of(path: Path) -> Iterator[str]:
    """Lines of a text file, gzipped or not."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from file


def find(folder: Path, stem: str) -> Path:
    """The file of a set by its name without endings."""
    for ending in (".jsonl", ".jsonl.gz", ".txt", ".txt.gz"):
        if (folder / (stem + ending)).exists():
            return folder / (stem + ending)
    raise FileNotFoundError(f"nano_corpus: no file {stem} in {folder}")


def documents(source: Source, data: Path) -> Iterator[str]:
    """The source's texts as they are, before cutting and checking."""
    for stem in source.files:
        path = find(data / source.name, stem)
        if ".jsonl" not in path.name:
            yield from plain_documents("".join(lines_of(path)))
            continue
        for line in lines_of(path):
            row = json.loads(line)
            parts = [row[field] for field in source.fields]
            yield "\n".join("\n".join(part) if isinstance(part, list) else part for part in parts)


def plain_documents(text: str) -> Iterator[str]:
    """A text file cut at its titles (WikiText's ` = Title = `) or else at blank lines."""
    text = text.replace("<unk> ", "")  # a hole in the word-level release, not English
    titles = re.split(r"\n(?= = [^=])", text)
    yield from titles if len(titles) > 1 else re.split(r"\n\s*\n", text)


def docstrings() -> Iterator[str]:
    """Docstrings of the installed standard library: text that every machine with Python has."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(path.parts):
            yield from _docstrings_in(path)


def _docstrings_in(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # lib2to3's and others' broken samples
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most about PIECE characters, cut at line ends."""
    part = ""
    for line in text.strip().splitlines(keepends=True):
        if part and len(part) + len(line) > PIECE:
            yield part.strip()
            part = ""
        part += line
    if len(part.strip()) >= 20:
        yield part.strip()


# ---- what evaluations use -----------------------------------------------------------------------


def strings_in(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


def evaluation_texts(data: Path) -> Iterator[str]:
    """Strings of every evaluation file: all files but SOURCES' own and other training splits."""
    own = {(source.name, stem) for source in SOURCES for stem in source.files}
    for path in sorted(data.rglob("*")):
        stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
        readable = path.name.removesuffix(".gz").endswith((".jsonl", ".txt", ".tsv"))
        if (
            not readable
            or "train" in stem
            or (path.parent.name, stem) in own
            or "qrels" in path.parts
        ):
            continue
        for line in lines_of(path):
            yield from strings_in(json.loads(line)) if ".jsonl" in path.name else [line]


class Overlap:
    """Word n-grams and short sentences of evaluation text, as sorted 64-bit hashes."""

    def __init__(self, texts: Iterable[str]):
        self.words: dict[str, int] = {}
        grams, sentences = [np.empty(0, np.uint64)], set()
        for batch in _batches(texts, 20_000):
            ids, owner = self._ids(batch, grow=True)
            grams.append(np.unique(_ngrams(ids, owner)[0]))
            sentences |= {s for text in batch for s in _short_sentences(text)}
        self.grams, self.sentences = np.unique(np.concatenate(grams)), sentences

    def found_in(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Which texts share an n-gram, and which a short sentence: two boolean arrays."""
        ids, owner = self._ids(texts, grow=False)
        hashes, owners = _ngrams(ids, owner)
        gram = np.zeros(len(texts), bool)
        place = np.searchsorted(self.grams, hashes).clip(max=max(0, len(self.grams) - 1))
        if len(self.grams):
            gram[owners[self.grams[place] == hashes]] = True
        short = [any(s in self.sentences for s in _short_sentences(text)) for text in texts]
        return gram, np.array(short, bool)

    def _ids(self, texts: list[str], *, grow: bool) -> tuple[np.ndarray, np.ndarray]:
        """Word ids, texts end to end, and whose each is; new words grow the table, or are 0."""
        lists = [WORD.findall(text.lower()) for text in texts]
        owner = np.repeat(np.arange(len(texts)), [len(words) for words in lists])
        known = self.words
        if grow:
            ids = [known.setdefault(word, len(known) + 1) for words in lists for word in words]
        else:
            ids = [known.get(word, 0) for words in lists for word in words]
        return np.array(ids, dtype=np.uint64), owner


def _ngrams(ids: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of NGRAM known words inside one text, and the text of each."""
    count = max(0, len(ids) - NGRAM + 1)
    hashes, known = np.zeros(count, np.uint64), np.ones(count, bool)
    for i in range(NGRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[i : i + count]
        hashes ^= hashes >> np.uint64(29)
        known &= ids[i : i + count] > 0
    inside = known & (owner[:count] == owner[NGRAM - 1 : NGRAM - 1 + count])
    return hashes[inside], owner[:count][inside]


def _short_sentences(text: str) -> Iterator[str]:
    for sentence in SENTENCE.split(text):
        if len(sentence) < 80 and 4 <= len(words := WORD.findall(sentence.lower())) < NGRAM:
            yield " ".join(words)


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


# ---- the corpus ---------------------------------------------------------------------------------


def held_out_books(data: Path) -> set[str]:
    """Every tenth book by author and title: whole books, so no chapter of a test book is read."""
    rows = (
        json.loads(line)
        for stem in ("text_a", "text_b")
        for line in lines_of(find(data / "english_novels", stem))
    )
    books = sorted({f"{row['author']}_{row['title']}" for row in rows})
    return set(books[9::10])


def novels(data: Path, *, held_out: bool) -> Iterator[str]:
    """Chunks of the held-out books, or of the others."""
    test = held_out_books(data)
    for stem in ("text_a", "text_b"):
        for line in lines_of(find(data / "english_novels", stem)):
            row = json.loads(line)
            if (f"{row['author']}_{row['title']}" in test) == held_out:
                yield row["text"]


def number_of(text: str) -> int:
    """A fixed pseudo-random number of a text: what is held out depends on nothing else."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def capped(texts: list[str], cap: int) -> list[str]:
    """A pseudo-random part of the texts of at most about `cap` characters, in their old order."""
    total = sum(map(len, texts))
    return (
        texts
        if total <= cap
        else [t for t in texts if number_of(t) % 10_000 < 10_000 * cap / total]
    )


def read_corpus(data: Path | None, *, caps: bool = True) -> Corpus:
    """Read, cut, deduplicate, check against evaluations, split. Without `data`: docstrings only."""
    sources = (*(SOURCES if data else ()), DOCSTRINGS)
    test_novels = list(novels(data, held_out=True)) if data else []
    overlap = Overlap([*(evaluation_texts(data) if data else ()), *test_novels])
    corpus, seen, rows = Corpus([], [], [], test_novels, ""), set(), []
    for source in sources:
        if source is DOCSTRINGS:
            raw: Iterable[str] = docstrings()
        elif source.name == "english_novels":
            raw = novels(data, held_out=False)  # type: ignore[arg-type]
        else:
            raw = documents(source, data)  # type: ignore[arg-type]
        found = list(dict.fromkeys(piece for text in raw for piece in pieces(text)))
        fresh = [text for text in found if text not in seen]
        seen.update(fresh)
        gram, short = overlap.found_in(fresh)
        clean = [text for text, bad in zip(fresh, gram | short, strict=True) if not bad]
        kept = capped(clean, source.cap if caps else 10**12)
        held = [text for text in kept if number_of(text) % 100 == 37]
        used = [text for text in kept if number_of(text) % 100 != 37]
        corpus.train += used
        corpus.held_out += held
        corpus.repeats += [source.repeat] * len(used)
        rows.append(
            (
                source,
                len(fresh),
                int(gram.sum()),
                int((short & ~gram).sum()),
                len(used),
                sum(map(len, used)),
            )
        )
    corpus.report = report(rows, overlap)
    return corpus


def report(rows: list[tuple[Source, int, int, int, int, int]], overlap: Overlap) -> str:
    """What was read and what was dropped, as a Markdown table."""
    lines = [
        "| source | licence of the texts | pieces | dropped: 8 words in common with evaluations "
        "| dropped: a sentence of 4-7 words in common | trained on | characters | read |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for source, found, gram, short, used, characters in rows:
        name = source.name + (f" ({', '.join(source.files)})" if source.files else "")
        lines.append(
            f"| {name} | {source.licence} | {found} | {gram} | {short} | {used} "
            f"| {characters:,} | {source.repeat}x |"
        )
    total = sum(row[-1] for row in rows)
    end = (
        f"In all {total:,} characters. Checked against {len(overlap.grams):,} word {NGRAM}-grams "
        f"and {len(overlap.sentences):,} short sentences of evaluation text; no document that is "
        "trained on shares one. Held out, by sha256 of the text: one piece in a hundred of every "
        "source; of the novels also every tenth book (by author and title)."
    )
    return "\n".join(lines) + f"\n\n{end}\n"


if __name__ == "__main__":
    print(read_corpus(Path(sys.argv[1]) if len(sys.argv) > 1 else None).report)
