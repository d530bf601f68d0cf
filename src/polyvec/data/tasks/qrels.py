"""Relevance judgements: the one parser of qrels files."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from polyvec.data.texts import read_lines
from polyvec.errors import DataError

# Grades are read as floats, which hold whole numbers up to this one.
LARGEST_GRADE = 2**53
HEADERS = ("query-id", "query_id", "qid")  # first cells of the header lines in use


class Judgement(NamedTuple):
    """One line: its number in the file, the ids, and the grade."""

    line: int
    query: str
    document: str
    grade: float


def read_qrels(path: Path) -> Iterator[Judgement]:
    """Judgements of a file with BEIR's three columns or TREC's four, with or without a header.

    BEIR: query, document, grade, separated by tabs. TREC has an unused column after the query,
    and may be separated by spaces. Raises DataError naming file and line.
    """
    for number, line in read_lines(path):
        # BEIR's ids may hold spaces, so tabs come first.
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and cells[0] in HEADERS):
            continue
        if len(cells) not in (3, 4):
            raise DataError(
                f"{path}:{number}: {len(cells)} columns, expected 3 (query, document, grade) "
                "or TREC's 4"
            )
        yield Judgement(number, cells[0], cells[-2], _grade(path, number, cells[-1]))


def read_id_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, id, id) of a file of two columns below a header, as BUCC's gold pairs."""
    for number, line in read_lines(path):
        if number == 1 or not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != 2:
            raise DataError(f"{path}:{number}: {len(cells)} columns, expected 2 ids")
        yield number, cells[0], cells[1]


def whole_grade(path: Path, judgement: Judgement) -> int:
    """The grade as an int; DataError for a fraction, which nDCG's gains are not defined for.

    Also for one that is too large to be a grade.
    """
    if not judgement.grade.is_integer():
        raise DataError(f"{path}:{judgement.line}: grade {judgement.grade} is not a whole number")
    if abs(judgement.grade) > LARGEST_GRADE:
        raise DataError(
            f"{path}:{judgement.line}: grade {judgement.grade:.0f} is not between -2^53 and 2^53"
        )
    return int(judgement.grade)


def _grade(path: Path, number: int, cell: str) -> float:
    try:
        value = float(cell) if "_" not in cell else math.nan  # Python's 1_0 is 10
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}:{number}: grade {cell!r} is not a finite number")
    return value
