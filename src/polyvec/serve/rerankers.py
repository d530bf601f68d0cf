"""Rerankers in a server: the pairs of a request pass the same kind of queue as texts do.

P pairs.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyvec.errors import TruncationWarning
from polyvec.rerank.reranker import Reranker, check_scores
from polyvec.serve.batching import Batcher, Report, Ticket, TooLargeError
from polyvec.serve.models import CHARACTERS_A_TOKEN, WARM_UP, Read
from polyvec.serve.reading import Reader, TextError, check_text, most_characters, parts, too_large
from polyvec.serve.settings import ServerSettings

Pair = tuple[str, str]


@dataclass(eq=False)
class ServedReranker:
    """A reranker under a name, with its queue and its threads.

    An item of the queue is a pair; of a reranker that orders lists, all pairs of a request.
    """

    name: str
    reranker: Reranker
    settings: ServerSettings
    on_batch: Callable[[Report], None] = lambda report: None
    created: int = 0
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self._run, self.settings, self.on_batch)
        self._reader = Reader()

    @property
    def max_tokens(self) -> int | None:
        """Of a query with a document, where the reranker says."""
        return getattr(self.reranker, "max_length", None)

    async def warm_up(self) -> None:
        """Score one full batch, so that the rate is known; one pair, where lists are ordered."""
        try:
            read = await self.read_pairs("warm", [WARM_UP], truncate=True)
        except TooLargeError:
            return  # the server takes less than this pair, and the first request is the first
        most = min(self.settings.max_batch_tokens, self.settings.max_queued_tokens)
        copies = most // read.total
        if self.reranker.orders_lists:
            copies = 1
        if copies:
            read = Read(read.payloads * copies, read.tokens * copies, [], [None] * copies)
            await self.submit(read, timeout=float("inf")).answer

    async def read_pairs(
        self, query: str, documents: Sequence[str], *, truncate: bool, client: Hashable = None
    ) -> Read:
        """The pairs.

        Raises TextError for one that is longer than the reranker reads, TooLargeError for more
        tokens than may wait.
        """
        most = most_characters(self.max_tokens, self.settings)
        check_text(query, None if truncate else most, None, "query")
        for place, document in enumerate(documents):
            check_text(document, None if truncate else most, place, "documents")
        pairs, lengths, cut = [], [], []
        for first, part in parts(documents, beside=min(most, len(query))):
            found = [(query[:most], str(document)[:most]) for document in part]
            part_lengths, part_cut = await self._reader.run(client, self._lengths, found)
            if any(part_cut) and not truncate:
                raise TextError(
                    first + part_cut.index(True),
                    f"with the query it is longer than the {self.max_tokens} tokens that the "
                    "reranker reads; split the text, or ask for truncate=true",
                    "documents",
                )
            pairs += found
            lengths += part_lengths
            cut += [
                was or max(len(query), len(document)) > most
                for was, document in zip(part_cut, part, strict=True)
            ]
            if sum(lengths) > self.settings.max_queued_tokens:
                raise too_large(sum(lengths), self.settings.max_queued_tokens)
        if self.reranker.orders_lists:
            return Read([pairs], [sum(lengths)], cut, [None])
        return Read([[pair] for pair in pairs], lengths, cut, [None] * len(pairs))

    def submit(
        self, read: Read, timeout: float, *, client: Hashable = None, spent: float = 0.0
    ) -> Ticket:
        """Into the queue, as one request; arguments and errors are those of `Batcher.submit`."""
        return self.batcher.submit(
            read.payloads, read.tokens, read.keys, timeout, client=client, spent=spent
        )

    def relevance(self, ticket: Ticket) -> np.ndarray:
        """Scores of the request's documents: of a cross-encoder the sigmoid, else its own."""
        scores_P = np.concatenate(ticket.answer.result()).astype(np.float64)
        # Here, since most servers rerank nothing, and it needs transformers.
        from polyvec.rerank.cross_encoder import CrossEncoder

        if isinstance(self.reranker, CrossEncoder):
            # As tanh, which does not overflow.
            scores_P = 0.5 * (1 + np.tanh(scores_P / 2))
        return scores_P

    def close(self) -> None:
        """Ends its threads after what they do now."""
        self.batcher.close()
        self._reader.close()

    # ---- in the threads ---------------------------------------------------------------------

    def _lengths(self, pairs: list[Pair]) -> tuple[list[int], list[bool]]:
        """Tokens of each pair, and whether more was cut; a guess, where the reranker says none."""
        tokens: Any = getattr(self.reranker, "tokens", None)
        if tokens is None:
            lengths = [1 + sum(map(len, pair)) // CHARACTERS_A_TOKEN for pair in pairs]
            return lengths, [False] * len(pairs)
        read = tokens(pairs)
        return [len(each) for each in read], [bool(each.truncated) for each in read]

    def _run(self, _: Any, payloads: list[list[Pair]]) -> Sequence[np.ndarray]:
        pairs = [pair for part in payloads for pair in part]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # the answer's header says so
            # A reranker that orders lists knows them by their query, so one list at a time.
            parts = payloads if self.reranker.orders_lists else [pairs]
            scores_P = np.concatenate([self.reranker.scores(part) for part in parts])
        check_scores(scores_P, pairs)
        return np.split(scores_P, np.cumsum([len(part) for part in payloads])[:-1])
