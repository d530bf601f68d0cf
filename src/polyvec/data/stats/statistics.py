"""Statistics of a folder of data: rows, text lengths, languages, labels, judgements.

They include the columns of a survey's table of data sets (queries, passages, labels, language)
and signs of defects: empty texts, duplicates, judged documents that do not exist. Files are read
row by row; only the lengths and two hashes of each text are stored.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.data.stats.fields import Field
from polyvec.data.stats.files import DataFile, data_files, leaves, read_rows
from polyvec.data.stats.languages import guesser, shares
from polyvec.data.stats.retrieval import RetrievalStats, retrieval_stats
from polyvec.data.tasks.qrels import read_qrels
from polyvec.errors import DataError

MAX_FIELDS = 500  # per file; further nested fields are merged as "parent.*"
TOKEN_BATCH = 1024

Text = tuple[str, str]  # name of the field, text
CountTokens = Callable[[list[str]], Sequence[int]]
Progress = Callable[[str, int], None]  # file name, rows read since the last call
PROGRESS_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Spread:
    """Minimum, median, mean, 95th percentile and maximum."""

    min: float
    median: float
    mean: float
    p95: float
    max: float

    @classmethod
    def of(cls, numbers: Any) -> "Spread":
        values = np.asarray(numbers, np.float64)
        if not len(values):
            return cls(0.0, 0.0, 0.0, 0.0, 0.0)
        middle, high = np.percentile(values, [50, 95])
        return cls(*(float(x) for x in (values.min(), middle, values.mean(), high, values.max())))


@dataclass(frozen=True, slots=True)
class TextStats:
    """A field of texts. Lengths and shares exclude empty texts.

    `num_duplicates` texts equal an earlier one except for white space, `num_near_duplicates`
    except for case and punctuation too. `languages` has shares estimated on a sample;
    `num_too_long` texts have more `tokens` than the model's maximum length.
    """

    name: str
    num_texts: int
    num_empty: int
    num_duplicates: int
    num_near_duplicates: int
    characters: Spread
    words: Spread
    languages: Mapping[str, float]
    tokens: Spread | None = None
    num_too_long: int | None = None


@dataclass(frozen=True, slots=True)
class LabelStats:
    """A field of repeated values with the number of rows of each, the most frequent first.

    `counts` is empty if there are too many distinct values.
    """

    name: str
    num_values: int
    num_labels: int
    counts: Mapping[str, int]
    is_language: bool = False


@dataclass(frozen=True, slots=True)
class NumberStats:
    name: str
    num_values: int
    min: float
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class FileStats:
    """A file; `others` are the fields with ids, without values, or with values of other types."""

    name: str
    num_rows: int
    texts: tuple[TextStats, ...] = ()
    labels: tuple[LabelStats, ...] = ()
    numbers: tuple[NumberStats, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FolderStats:
    """A folder's files, and each of its qrels files.

    `guess` is "language" if languages were identified, and "script" if only scripts were.
    `unread` lists the files of unknown types.
    """

    path: str
    files: tuple[FileStats, ...]
    retrieval: tuple[RetrievalStats, ...]
    unread: tuple[str, ...]
    guess: str

    @property
    def num_texts(self) -> int:
        return sum(text.num_texts for file in self.files for text in file.texts)


def folder_stats(
    source: str | Path,
    *,
    guess: str | None = None,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    progress: Progress = lambda name, rows: None,
) -> FolderStats:
    """Statistics of every data file in a folder and its subfolders, or of one file.

    `guess` is "language", "script" or None (languages if py3langid is installed). `count_tokens`
    returns the number of tokens of each text, and `max_tokens` is the model's maximum length.
    Raises DataError with file and line, and for a folder without texts.
    """
    files, unread = data_files(source)
    guess = guesser(guess)
    found = []
    for file in files:
        if file.is_qrels:
            found.append(FileStats(file.name, sum(1 for _ in read_qrels(file.path))))
            continue
        fields, num_rows = _read(file, progress)
        tokens = _tokens(file, fields, count_tokens) if count_tokens else {}
        found.append(_file_stats(file.name, num_rows, fields, guess, tokens, max_tokens))
    stats = FolderStats(
        str(source), tuple(found), tuple(retrieval_stats(files)), tuple(unread), guess
    )
    if not stats.num_texts:
        names = {name for file in stats.files for name in _field_names(file)}
        shown = ", ".join(sorted(names)) or "none"
        raise DataError(f"{source}: no field holds texts. Fields: {shown}.")
    return stats


def _field_names(file: FileStats) -> list[str]:
    labels, numbers = (field.name for field in file.labels), (field.name for field in file.numbers)
    return [*labels, *numbers, *file.others]


def text_rows(
    file: DataFile, names: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any], list[Text]]]:
    """(line number, row, non-empty texts in the named fields) of each row."""
    wanted = set(names)
    for number, row in read_rows(file):
        found = [(n, v) for n, v in leaves(row) if n in wanted and isinstance(v, str) and v.strip()]
        yield number, row, found


# ---- reading ------------------------------------------------------------------------------------


def _read(file: DataFile, progress: Progress) -> tuple[dict[str, Field], int]:
    fields: dict[str, Field] = {}
    num_rows = 0
    for number, row in read_rows(file):
        num_rows += 1
        if num_rows % PROGRESS_ROWS == 0:
            progress(file.name, PROGRESS_ROWS)
        for path, value in leaves(row):
            name = path
            if name not in fields and len(fields) >= MAX_FIELDS:
                name = f"{path.rpartition('.')[0]}.*"
            try:
                field = fields.get(name) or fields.setdefault(name, Field(name))
                field.add(value)
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{file.path}:{number}: {name!r} has a lone surrogate at character "
                    f"{error.start}; it cannot be encoded as UTF-8"
                ) from None
            except OverflowError:
                raise DataError(
                    f"{file.path}:{number}: {name!r} is an integer too large for a float"
                ) from None
    progress(file.name, num_rows % PROGRESS_ROWS)
    return fields, num_rows


def _tokens(
    file: DataFile, fields: Mapping[str, Field], count: CountTokens
) -> dict[str, np.ndarray]:
    """Token counts of each text in each text field; this reads the file a second time."""
    names = [name for name, field in fields.items() if field.kind == "text"]
    lengths = {name: array("Q") for name in names}
    waiting: dict[str, list[str]] = {name: [] for name in names}
    for _, _, texts in text_rows(file, names):
        for name, text in texts:
            waiting[name].append(text)
            if len(waiting[name]) == TOKEN_BATCH:
                lengths[name].extend(count(waiting[name]))
                waiting[name] = []
    for name, rest in waiting.items():
        if rest:
            lengths[name].extend(count(rest))
    return {name: np.asarray(found) for name, found in lengths.items()}


# ---- figures ------------------------------------------------------------------------------------


def _file_stats(
    name: str,
    num_rows: int,
    fields: Mapping[str, Field],
    guess: str,
    tokens: Mapping[str, np.ndarray],
    max_tokens: int | None,
) -> FileStats:
    by_kind: dict[str, list[Field]] = {}
    for field in fields.values():
        by_kind.setdefault(field.kind, []).append(field)
    labels = [*by_kind.get("language", ()), *by_kind.get("label", ())]
    return FileStats(
        name,
        num_rows,
        tuple(
            _text_stats(f, guess, tokens.get(f.name), max_tokens) for f in by_kind.get("text", ())
        ),
        tuple(_label_stats(field) for field in labels),
        tuple(_number_stats(field) for field in by_kind.get("number", ())),
        tuple(field.name for field in by_kind.get("other", ())),
    )


def _text_stats(
    field: Field, guess: str, tokens: np.ndarray | None, max_tokens: int | None
) -> TextStats:
    num_too_long = None
    if tokens is not None and max_tokens is not None:
        num_too_long = int(np.count_nonzero(tokens > max_tokens))
    return TextStats(
        field.name,
        num_texts=field.num_strings,
        num_empty=field.num_empty,
        num_duplicates=field.num_strings - field.num_distinct,
        num_near_duplicates=field.num_strings - len(np.unique(np.asarray(field.near))),
        characters=Spread.of(field.characters),
        words=Spread.of(field.words),
        languages=shares(field.sample, guess),
        tokens=None if tokens is None else Spread.of(tokens),
        num_too_long=num_too_long,
    )


def _label_stats(field: Field) -> LabelStats:
    counts = dict(field.counts.most_common()) if field.counts is not None else {}
    num_labels = len(counts) or field.num_distinct
    total = field.num_strings + field.num_numbers
    return LabelStats(field.name, total, num_labels, counts, field.kind == "language")


def _number_stats(field: Field) -> NumberStats:
    mean = field.total / field.num_numbers
    return NumberStats(field.name, field.num_numbers, field.low, mean, field.high)
