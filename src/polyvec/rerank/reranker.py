"""What every reranker does: scores of pairs, and documents in their order.

P pairs.
"""

import abc
from collections.abc import Sequence

import numpy as np

from polyvec.errors import InputError


class Reranker(abc.ABC):
    """A model that scores (query, document); a higher score is more relevant.

    A subclass has `scores`. Its scores compare documents of one query; a subclass says whether
    they mean more.
    """

    @abc.abstractmethod
    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """Float32 [P] of pairs (query, document), each under its instruction if there is one."""

    def rank(
        self, query: str, documents: Sequence[str], instruction: str | None = None
    ) -> list[tuple[int, float]]:
        """Places of the documents with their scores, the best first; ties in their order."""
        if isinstance(documents, str):
            raise InputError("rank: documents is a string, expected a list of them")
        pairs = [(query, document) for document in documents]
        scores_P = self.scores(pairs, [instruction] * len(pairs))
        order = np.argsort(-scores_P, kind="stable").tolist()
        return [(place, float(scores_P[place])) for place in order]


def with_instruction(query: str, instruction: str | None) -> str:
    """The query with its instruction behind it, as FollowIR has it (arXiv:2403.15246)."""
    return f"{query} {instruction}".strip() if instruction else query
