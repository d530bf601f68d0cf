"""What every reranker does: scores of pairs, and documents in their order.

P pairs.
"""

import abc
import time
import warnings
from collections.abc import Sequence

import numpy as np

from polyvec.embed.encoding import check_text
from polyvec.errors import InputError, ModelError, SettingsError, TruncationWarning

BLOCK = 8  # documents between two looks at the clock


class Reranker(abc.ABC):
    """A model that scores (query, document); a higher score is more relevant.

    A subclass has `scores`. Its scores compare documents of one query; a subclass says whether
    they mean more. `orders_lists`: a document's score depends on the others of its query, so that
    all are read in one call.
    """

    orders_lists = False

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
        """Places of the documents with their scores, the best first; ties in their order.

        Equal documents are read once. Raises InputError for an empty query or what is no list of
        texts, ModelError for a score that is not finite, naming the pair.
        """
        check_asked(query, documents)
        found = dict.fromkeys(documents)
        pairs = [(query, document) for document in found]
        scores_P = self.scores(pairs, [instruction] * len(pairs)) if pairs else np.zeros(0)
        check_scores(scores_P, pairs)
        score_of = dict(zip(found, scores_P.tolist(), strict=True))
        scores = [score_of[document] for document in documents]
        order = sorted(range(len(documents)), key=lambda place: -scores[place])
        return [(place, scores[place]) for place in order]


class Budgeted(Reranker):
    """A reranker that stops when its time is up: the documents come best first, and it begins
    with those.

    It reads them in blocks, at least one, and no further block that would not be done in time if
    it took as long as the last. What it has not read follows in the order in which it came, each
    with a score that is 1 below the one before: an order, no measure. `num_read` of `num_given`
    documents of all calls of `rank` were read. `scores` has no budget.
    """

    def __init__(self, reranker: Reranker, seconds: float, block: int = BLOCK) -> None:
        """Raises SettingsError for no time, or for a reranker that orders lists."""
        name = type(reranker).__name__
        if reranker.orders_lists:
            raise SettingsError(
                f"reranker: {name} begins with the last documents, so there is nothing to stop "
                "early; give it fewer documents instead of seconds"
            )
        if not seconds > 0 or block < 1:
            raise SettingsError(
                f"reranker: seconds is {seconds} and block {block}, expected more than 0"
            )
        self.reranker, self.seconds, self.block = reranker, seconds, block
        self.num_read = self.num_given = 0

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        return self.reranker.scores(pairs, instructions)

    def rank(
        self, query: str, documents: Sequence[str], instruction: str | None = None
    ) -> list[tuple[int, float]]:
        check_asked(query, documents)
        found: list[tuple[int, float]] = []
        began = time.perf_counter()
        last_s = 0.0
        for start in range(0, len(documents), self.block):
            before_s = time.perf_counter() - began
            if start and before_s + last_s > self.seconds:
                break
            block = documents[start : start + self.block]
            ranked = self.reranker.rank(query, block, instruction)
            found += [(start + place, score) for place, score in ranked]
            last_s = time.perf_counter() - began - before_s
        found.sort(key=lambda pair: (-pair[1], pair[0]))
        self.num_read += len(found)
        self.num_given += len(documents)
        lowest = found[-1][1] if found else 0.0
        rest = range(len(found), len(documents))
        return found + [(place, lowest - 1 - place + rest.start) for place in rest]


def check_asked(query: object, documents: object) -> None:
    """Raises InputError for an empty query, a document that is no text, or no list of them."""
    if not isinstance(query, str) or not query.strip():
        shown = "empty" if isinstance(query, str) else type(query).__name__
        raise InputError(f"rank: the query is {shown}, expected a text")
    if isinstance(documents, str) or not isinstance(documents, Sequence):
        kind = "a string" if isinstance(documents, str) else type(documents).__name__
        raise InputError(f"rank: documents is {kind}, expected a list of texts")
    for place, document in enumerate(documents):
        check_text(document, place)


def check_scores(scores_P: np.ndarray, pairs: Sequence[tuple[str, str]]) -> None:
    """Raises ModelError unless there is one finite score for each pair, naming one."""
    if np.shape(scores_P) != (len(pairs),):
        raise ModelError(
            f"the reranker gave scores of shape {np.shape(scores_P)} for {len(pairs)} pairs"
        )
    wrong = np.flatnonzero(~np.isfinite(scores_P))
    if len(wrong):
        query, document = pairs[wrong[0]]
        raise ModelError(
            f"the reranker's score of query {query[:60]!r} and document {document[:60]!r} is NaN "
            "or infinite; try dtype float32"
        )


def warn_truncated(num: int, total: int, limit: str) -> None:
    """One warning for all documents of which a reranker reads the beginning only."""
    if num:
        warnings.warn(
            f"{num} of {total} texts are longer than the {limit} that the reranker reads; it reads "
            "their beginnings: rank chunks of them instead",
            TruncationWarning,
            stacklevel=4,
        )


def with_instruction(query: str, instruction: str | None) -> str:
    """The query with its instruction behind it, as FollowIR has it (arXiv:2403.15246)."""
    return f"{query} {instruction}".strip() if instruction else query


def instructed(
    pairs: Sequence[tuple[str, str]], instructions: Sequence[str | None] | None
) -> list[tuple[str, str]]:
    """The pairs with each one's instruction behind its query, checked.

    Raises InputError, naming the pair, for what is no text, or instructions of another number.
    """
    given = [None] * len(pairs) if instructions is None else list(instructions)
    if len(given) != len(pairs):
        raise InputError(f"{len(given)} instructions for {len(pairs)} pairs")
    return [
        (with_instruction(check_text(query, place), instruction), check_text(document, place))
        for place, ((query, document), instruction) in enumerate(zip(pairs, given, strict=True))
    ]


def by_query(pairs: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
    """The places of each query's pairs, in their order."""
    found: dict[str, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        found.setdefault(query, []).append(place)
    return found
