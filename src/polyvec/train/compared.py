"""What a pairwise loss sees of a batch: vectors of queries and documents, and who belongs to whom.

B queries, N documents, E vector size, G vector size of a guide model, S of a teacher; L earlier
layers, K views of a document.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NO_LABEL = -(2**63)  # of a row that has no class, beside rows that have one


@dataclass(frozen=True, slots=True)
class Compared:
    """Vectors of a batch; of all processes, in the order of the whole batch, where it is shared.

    query_BE, document_NE: as the model's projections leave them; losses normalise if they compare
        by cosine.
    owner_N: the query that each document was given with; positive_N: whether it matches it.
    known_BN: pairs that must not count as negatives: positives, and documents whose text is equal
        to a positive of the query or to the query itself. None: only own positives.
    query_text_B, document_text_N: numbers that are equal for equal texts, in one numbering; for
        losses that compare queries with queries or documents with documents.
    score_B: gold similarity of each query to its positives, NaN where a row has none; label_B:
        its class, or NO_LABEL. Losses see those of `complete`: of all queries, or None.
    teacher_N: a teacher's score of each document for its owner.
    guide_query_BG, guide_document_NG: vectors of a model that tells false negatives.
    teacher_query_BS, teacher_document_NS: vectors of a teacher.
    key_NE: documents by the momentum encoder, without gradient.
    base_query_BE, base_document_NE: vectors before the projections that have weights.
    view_NKE: several vectors of each document, the one of document_NE last (DEBATER).
    layer_query_BLE, layer_document_NLE: vectors by earlier layers, the first layer first.
    datasets: the data set of each query.
    step: number of the optimiser's step, from 0; None where nobody counts.
    """

    query_BE: Tensor
    document_NE: Tensor
    owner_N: Tensor
    positive_N: Tensor
    known_BN: Tensor | None = None
    query_text_B: Tensor | None = None
    document_text_N: Tensor | None = None
    score_B: Tensor | None = None
    label_B: Tensor | None = None
    teacher_N: Tensor | None = None
    guide_query_BG: Tensor | None = None
    guide_document_NG: Tensor | None = None
    teacher_query_BS: Tensor | None = None
    teacher_document_NS: Tensor | None = None
    key_NE: Tensor | None = None
    base_query_BE: Tensor | None = None
    base_document_NE: Tensor | None = None
    view_NKE: Tensor | None = None
    layer_query_BLE: Tensor | None = None
    layer_document_NLE: Tensor | None = None
    datasets: tuple[str, ...] = ()
    step: int | None = None

    @classmethod
    def pairs(cls, query_BE: Tensor, document_NE: Tensor, **more: Any) -> "Compared":
        """Document i belongs to query i; documents beyond B are negatives of i mod B."""
        num_queries, num_documents = len(query_BE), len(document_NE)
        places_N = torch.arange(num_documents, device=query_BE.device)
        return cls(query_BE, document_NE, places_N % num_queries, places_N < num_queries, **more)

    @property
    def own(self) -> Tensor:
        """Whether a document was given with the query."""
        rows_B1 = torch.arange(len(self.query_BE), device=self.owner_N.device)[:, None]
        return self.owner_N[None] == rows_B1

    @property
    def own_positives(self) -> Tensor:
        """Whether a document is a positive that was given with the query."""
        return self.own & self.positive_N[None]

    @property
    def first_positive(self) -> Tensor:
        """Place of each query's first positive among the documents, [B]."""
        return self.own_positives.int().argmax(dim=1)

    @property
    def no_negatives(self) -> Tensor:
        """Pairs that must not count as negatives."""
        positive_BN = self.own_positives
        return positive_BN if self.known_BN is None else positive_BN | self.known_BN

    def truncated(self, dimensions: int, *, normalize: bool = False) -> "Compared":
        """The same with the first dimensions of each vector; `normalize` makes their length 1."""

        def cut(vectors: Tensor | None) -> Tensor | None:
            if vectors is None:
                return None
            vectors = vectors[..., :dimensions]
            return F.normalize(vectors, dim=-1) if normalize else vectors

        names = ["query_BE", "document_NE", "key_NE", "view_NKE"]
        names += ["layer_query_BLE", "layer_document_NLE"]
        found: dict[str, Any] = {name: cut(getattr(self, name)) for name in names}
        return replace(self, **found)

    def of_datasets(self, names: tuple[str, ...]) -> "Compared | None":
        """The queries of some data sets with their documents; None if there are none."""
        kept = [place for place, name in enumerate(self.datasets) if name in names]
        if len(kept) == len(self.datasets):
            return self
        return self.of_queries(torch.tensor(kept, device=self.owner_N.device)) if kept else None

    def complete(self) -> "Compared":
        """The same without scores or classes that some of the queries lack."""
        gaps: dict[str, Any] = {}
        if self.score_B is not None and bool(self.score_B.isnan().any()):
            gaps["score_B"] = None
        if self.label_B is not None and bool((self.label_B == NO_LABEL).any()):
            gaps["label_B"] = None
        return replace(self, **gaps) if gaps else self

    def of_queries(self, rows_M: Tensor) -> "Compared":
        """The queries at some places with the documents that were given with them."""
        new_place_B = torch.full((len(self.query_BE),), -1, device=self.owner_N.device)
        new_place_B[rows_M] = torch.arange(len(rows_M), device=self.owner_N.device)
        columns = (new_place_B[self.owner_N] >= 0).nonzero().squeeze(1)
        found: dict[str, Any] = {"owner_N": new_place_B[self.owner_N[columns]]}
        for name in ("query_BE", "query_text_B", "score_B", "label_B"):
            found[name] = _rows(getattr(self, name), rows_M)
        for name in ("guide_query_BG", "teacher_query_BS", "layer_query_BLE", "base_query_BE"):
            found[name] = _rows(getattr(self, name), rows_M)
        for name in ("document_NE", "positive_N", "document_text_N", "teacher_N", "key_NE"):
            found[name] = _rows(getattr(self, name), columns)
        for name in ("guide_document_NG", "teacher_document_NS", "view_NKE", "layer_document_NLE"):
            found[name] = _rows(getattr(self, name), columns)
        found["base_document_NE"] = _rows(self.base_document_NE, columns)
        if self.known_BN is not None:
            found["known_BN"] = self.known_BN[rows_M][:, columns]
        if self.datasets:
            found["datasets"] = tuple(self.datasets[row] for row in rows_M.tolist())
        return replace(self, **found)


def _rows(values: Tensor | None, places: Tensor) -> Tensor | None:
    return None if values is None else values[places]
