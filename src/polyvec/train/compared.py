"""What a pairwise loss sees of a batch: vectors of queries and documents, and who belongs to whom.

B queries, N documents, E vector size, G vector size of a guide model.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Compared:
    """Vectors of a batch; of all processes, in the order of the whole batch, where it is shared.

    query_BE, document_NE: as the model's projections leave them; losses normalise if they compare
        by cosine.
    owner_N: the query that each document was given with; positive_N: whether it matches it.
    known_BN: pairs that must not count as negatives: positives, and documents whose text is equal
        to a positive of the query or to the query itself. None: only own positives.
    score_B: gold similarity of each query to its first positive; label_B: its class.
    teacher_N: a teacher's score of each document for its owner.
    guide_query_BG, guide_document_NG: vectors of a model that tells false negatives.
    """

    query_BE: Tensor
    document_NE: Tensor
    owner_N: Tensor
    positive_N: Tensor
    known_BN: Tensor | None = None
    score_B: Tensor | None = None
    label_B: Tensor | None = None
    teacher_N: Tensor | None = None
    guide_query_BG: Tensor | None = None
    guide_document_NG: Tensor | None = None

    @classmethod
    def pairs(cls, query_BE: Tensor, document_NE: Tensor, **more: Tensor) -> "Compared":
        """Document i belongs to query i; documents beyond B are negatives of i mod B."""
        num_queries, num_documents = len(query_BE), len(document_NE)
        places_N = torch.arange(num_documents, device=query_BE.device)
        return cls(query_BE, document_NE, places_N % num_queries, places_N < num_queries, **more)

    @property
    def first_positive(self) -> Tensor:
        """Place of each query's first positive among the documents, [B]."""
        own_BN = self.own_positives
        return own_BN.int().argmax(dim=1)

    @property
    def own_positives(self) -> Tensor:
        """Whether a document is a positive that was given with the query."""
        rows_B1 = torch.arange(len(self.query_BE), device=self.owner_N.device)[:, None]
        return (self.owner_N[None] == rows_B1) & self.positive_N[None]

    @property
    def no_negatives(self) -> Tensor:
        """Pairs that must not count as negatives."""
        return self.own_positives if self.known_BN is None else self.known_BN

    def truncated(self, dimensions: int) -> "Compared":
        """The same with the first dimensions of each vector."""
        return replace(
            self,
            query_BE=self.query_BE[:, :dimensions],
            document_NE=self.document_NE[:, :dimensions],
        )
