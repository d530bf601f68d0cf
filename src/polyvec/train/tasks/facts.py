"""What a contrastive loss needs of a batch beside the vectors: who belongs to whom.

B queries, N documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyvec.data.training.rows import TrainingRow
from polyvec.train.compared import NO_LABEL
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
