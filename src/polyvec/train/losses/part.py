"""What losses share: the table's types, what they need of a batch, similarities, own pairs.

A loss is a function of a batch and of its settings, or a module of its settings whose forward
takes the batch: a scalar in float32. B queries, N documents, M pairs of a query and a document
that was given with it, C candidates, E vector size.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.embed.part import wide
from polyvec.embed.projection.similarity import similarity_matrix, similarity_pairs
from polyvec.errors import DataError, SettingsError
from polyvec.registry import Fact
from polyvec.train.compared import Compared

Loss = Callable[..., Any]  # (batch: Compared, *, settings) -> Tensor, or a module of settings
Similarity = Literal["cosine", "dot"]
Distance = Literal["euclidean", "manhattan", "cosine"]
# Which documents of other queries are negatives beside the query's own: all, their positives,
# their negatives, or none.
InBatch = bool | Literal["positives", "negatives"]
VectorSize = Annotated[int, Fact("vector_size")]

L = TypeVar("L", bound=Loss)

# What a field of Compared is called in errors, and where the rows' own come from.
FROM_ROWS = {
    "score_B": "a column score",
    "label_B": "a column label",
    "teacher_N": "pos_scores and neg_scores, or a list in label or scores, or set teacher",
}
NEEDS = {
    "score_B": "a score of each row",
    "label_B": "a label of each row",
    "teacher_N": "a teacher's score of each document",
    "guide_query_BG": "vectors of a guide model",
    "teacher_query_BS": "vectors of a teacher",
    "key_NE": "vectors of a momentum encoder",
    "base_query_BE": "vectors before a projection",
    "view_NKE": "several vectors of each document",
    "layer_query_BLE": "vectors of earlier layers",
    "step": "the number of the step",
}


class Need(NamedTuple):
    """A field of the batch that a loss reads, always or if a setting is true or not 0."""

    field: str
    setting: str | None = None


def needs(field: str, setting: str | None = None) -> Callable[[L], L]:
    """Marks a loss that reads a field of the batch which not every task fills."""

    def mark(loss: L) -> L:
        loss.needs = (*getattr(loss, "needs", ()), Need(field, setting))  # type: ignore[attr-defined]
        return loss

    return mark


def reads(field: str) -> Callable[[L], L]:
    """Marks a loss that reads a field of the batch where the data have it, and else does without.

    It stands for a judgement of each pair, so it must be there for all rows or for none.
    """

    def mark(loss: L) -> L:
        loss.reads = field  # type: ignore[attr-defined]
        return loss

    return mark


def once(loss: L) -> L:
    """Marks a loss that is computed of whole vectors, not of their first dimensions too."""
    loss.once = True  # type: ignore[attr-defined]
    return loss


def needed(loss: Loss, settings: Mapping[str, Any]) -> frozenset[str]:
    """Fields of the batch that a loss with these settings reads."""
    found = getattr(loss, "needs", ())
    return frozenset(
        need.field for need in found if need.setting is None or settings.get(need.setting)
    )


def given(batch: Compared, field: str, loss: str) -> Any:
    """A field of the batch; DataError if it is missing."""
    value = getattr(batch, field)
    if value is None:
        raise DataError(f"loss {loss!r} needs {NEEDS[field]}, which the batch does not have")
    return value


def positive_number(where: str, **values: float) -> None:
    """Raises SettingsError for a value that is not above 0."""
    for name, value in values.items():
        if isinstance(value, Tensor) or value > 0:
            continue
        raise SettingsError(f"{where}: {name} is {value}, expected more than 0")


class Pairs(NamedTuple):
    """Queries and documents that were given with them, by their places in the batch."""

    row_M: Tensor
    column_M: Tensor

    @classmethod
    def positives(cls, batch: Compared) -> "Pairs":
        return cls.of(batch, batch.positive_N)

    @classmethod
    def of(cls, batch: Compared, kept_N: Tensor | None = None) -> "Pairs":
        """All pairs, or those of the documents that are kept; in the order of the queries."""
        order_N = batch.owner_N.argsort(stable=True)
        if kept_N is not None:
            order_N = order_N[kept_N[order_N]]
        return cls(batch.owner_N[order_N], order_N)

    @property
    def weight(self) -> Tensor:
        """Weights that give each query the same sum, and all of them 1."""
        queries, place_M, count = self.row_M.unique(return_inverse=True, return_counts=True)
        return 1 / (count[place_M].float() * len(queries))

    @property
    def rank(self) -> Tensor:
        """Place of the document among those of its query, from 0."""
        _, place_M, count = self.row_M.unique(return_inverse=True, return_counts=True)
        start = count.cumsum(0) - count
        return torch.arange(len(self.row_M), device=self.row_M.device) - start[place_M]

    def table(self, value_M: Tensor, empty: float, num_queries: int) -> Tensor:
        """A row for each query, its documents' values in order, then `empty`, [B, K]."""
        rank_M = self.rank
        width = int(rank_M.max()) + 1 if len(rank_M) else 0
        found_BK = value_M.new_full((num_queries, width), empty)
        return found_BK.index_put((self.row_M, rank_M), value_M)


def own_scores(batch: Compared, pairs: Pairs, similarity: str) -> Tensor:
    """Similarity of each pair, [M]."""
    query_ME, document_ME = batch.query_BE[pairs.row_M], batch.document_NE[pairs.column_M]
    return pair_similarity(query_ME, document_ME, similarity)


def pair_similarity(a_ME: Tensor, b_ME: Tensor, similarity: str) -> Tensor:
    return similarity_pairs(a_ME, b_ME, similarity)


def matrix(a_ME: Tensor, b_CE: Tensor, similarity: str) -> Tensor:
    return similarity_matrix(a_ME, b_CE, similarity)


def distances(a_ME: Tensor, b_ME: Tensor, distance: str) -> Tensor:
    """Distance of each pair; of equal vectors 0 with a gradient of 0."""
    a_ME, b_ME = wide(a_ME), wide(b_ME)
    if distance == "cosine":
        return 1 - F.cosine_similarity(a_ME, b_ME, dim=-1)
    return -similarity_pairs(a_ME, b_ME, distance)


def distance_matrix(a_BE: Tensor, b_NE: Tensor, distance: str) -> Tensor:
    """Distance of every a to every b, [B, N]."""
    if distance == "cosine":
        return 1 - similarity_matrix(a_BE, b_NE, "cosine")
    return -similarity_matrix(a_BE, b_NE, distance)


def negatives(batch: Compared, in_batch: InBatch) -> Tensor:
    """Documents that are a query's negatives, [B, N]."""
    own_BN = batch.own
    kept_BN = own_BN & ~batch.positive_N
    if in_batch is True:
        kept_BN = kept_BN | ~own_BN
    elif in_batch == "positives":
        kept_BN = kept_BN | (~own_BN & batch.positive_N)
    elif in_batch == "negatives":
        kept_BN = kept_BN | (~own_BN & ~batch.positive_N)
    return kept_BN & ~batch.no_negatives


class Triples(NamedTuple):
    """Places of queries, of their positives and of their own negatives."""

    query_T: Tensor
    positive_T: Tensor
    negative_T: Tensor

    @classmethod
    def of(cls, batch: Compared, loss: str) -> "Triples":
        """All that were given; DataError if none were."""
        pairs = Pairs.positives(batch)
        place_T, negative_T = negatives(batch, False)[pairs.row_M].nonzero(as_tuple=True)
        if not len(place_T):
            raise DataError(f"loss {loss!r} needs negatives, and no row of the batch has one")
        return cls(pairs.row_M[place_T], pairs.column_M[place_T], negative_T)


def masked(values: Tensor, kept: Tensor, empty: float = float("-inf")) -> Tensor:
    """The values that are kept, `empty` elsewhere."""
    return torch.where(kept, values, empty)
