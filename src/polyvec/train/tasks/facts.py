"""What a contrastive loss needs of a batch beside the vectors: who belongs to whom.

B queries, N documents.
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyvec.data.training.files import RowsOnDisk
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.errors import DataError
from polyvec.train.compared import NO_LABEL
from polyvec.train.losses.part import FROM_ROWS, NEEDS
from polyvec.train.losses.terms import Term
from polyvec.train.task import Share


@dataclass(frozen=True, slots=True)
class Facts:
    """A batch as its loss sees it, beside the vectors.

    queries, documents: places of their vectors among the results of all processes. `fields` of
    Compared that are not vectors of the embedder. num_duplicates: documents whose text occurs
    before in the batch.
    """

    queries: Tensor
    documents: Tensor
    owner_N: Tensor
    positive_N: Tensor
    known_BN: Tensor
    num_duplicates: int
    datasets: tuple[str, ...] = ()
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()  # of the rows, for negatives that are replaced


def places(documents: Sequence[Sequence[str]], shares: Sequence[Share]) -> tuple[Tensor, Tensor]:
    """Where queries and documents are among all results: each process has its queries first."""
    queries: list[int] = []
    found: list[int] = []
    start = 0
    for share in shares:
        stop = start + share.stop - share.start
        queries += range(start, stop)
        start = stop + sum(len(documents[row]) for row in range(share.start, share.stop))
        found += range(stop, start)
    return torch.tensor(queries), torch.tensor(found)


def numbered(queries: Sequence[str], documents: Sequence[str]) -> dict[str, Tensor]:
    """Numbers that are equal for equal texts."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys([*queries, *documents]))}
    return {
        "query_text_B": torch.tensor([numbers[text] for text in queries]),
        "document_text_N": torch.tensor([numbers[text] for text in documents]),
    }


def known_matches(
    rows: Sequence[TrainingRow], documents: Sequence[Sequence[str]], texts: Sequence[str]
) -> Tensor:
    """Which documents are no negatives of a query: equal to it, or to one of its positives.

    Of a row whose `in_batch` is false, the documents of all other rows.
    """
    found: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        found.setdefault(text, []).append(place)
    known = torch.zeros(len(rows), len(texts), dtype=torch.bool)
    start = 0
    for number, (row, each) in enumerate(zip(rows, documents, strict=True)):
        for text in {row.query, *each[: max(1, len(row.positives))]}:
            known[number, found.get(text, [])] = True
        if not row.in_batch:
            known[number, :start] = True
            known[number, start + len(each) :] = True
        start += len(each)
    return known


def column(
    name: str, values: Sequence[float | int | None], length: int | None = None
) -> dict[str, Tensor]:
    """The values by name; nothing if none is given, or fewer than `length`.

    Where some rows have none, as in a batch of several data sets, they are NaN or `NO_LABEL`.
    """
    given = [value for value in values if value is not None]
    if not given or (length is not None and len(given) != length):
        return {}
    missing = NO_LABEL if all(isinstance(value, int) for value in given) else math.nan
    return {name: torch.tensor([missing if value is None else value for value in values])}


def check_given(
    terms: Iterable[Term], sets: Sequence[TrainingSet], filled: Container[str], where: str
) -> None:
    """Raises DataError for a row that lacks what a loss reads of each row.

    Its batch would stop the run, perhaps hours later. Of rows on disk the first is looked at.
    filled: fields that do not come from the rows.
    """
    for term in terms:
        own = [each for each in sets if not term.datasets or each.name in term.datasets]
        for name, columns in FROM_ROWS.items():
            asked = name not in filled and (name in term.needs or name == term.reads)
            for each in own if asked else ():
                rows = each.rows[:1] if isinstance(each.rows, RowsOnDisk) else each.rows
                lacking = [row for row in rows if not _has(row, name)]
                if lacking and (name in term.needs or len(lacking) < len(rows)):
                    place = lacking[0].place or "a row"
                    raise DataError(
                        f"{where} loss {term.name!r} needs {NEEDS[name]}, which data set "
                        f"{each.name!r} lacks at {place}. Give {columns}, or name other data sets "
                        "in the loss's datasets"
                    )


def _has(row: TrainingRow, field: str) -> bool:
    """Whether the row has what fills this field of a batch."""
    if field == "teacher_N":
        return bool(row.teacher_scores)
    return (row.score if field == "score_B" else row.label) is not None
