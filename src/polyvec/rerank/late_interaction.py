"""Late interaction as a reranker: the best match of each token of the query, added up.

P pairs, T tokens of a text, E numbers a vector.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyvec.embed.embedder import Embedder
from polyvec.embed.multi_vectors import MultiVectorEmbedder
from polyvec.embed.projection.late_interaction import max_similarities
from polyvec.embed.projection.token_pooling import pool_tokens
from polyvec.errors import InputError
from polyvec.interfaces import MultiVectors, RunOptions
from polyvec.rerank.reranker import Reranker, by_query, instructed, warn_truncated

KEPT_TOKENS = 200_000  # vectors of documents that are kept, 0.3 GB of 384 numbers


class LateInteraction(Reranker):
    """MaxSim of query and document (ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832).

    With a MultiVectorEmbedder by its own vectors and similarity. With an Embedder, whose token
    states were never trained for this, by its last states at length 1, without those of special
    tokens: no training, no second model.

    factor: token vectors of documents are pooled, about so many into one (`pool_tokens`). Vectors
    of documents that were read last are kept, `kept_tokens` of them, since queries share
    documents.
    """

    def __init__(
        self,
        embedder: MultiVectorEmbedder | Embedder,
        *,
        factor: int = 1,
        kept_tokens: int = KEPT_TOKENS,
    ) -> None:
        """Raises InputError for a model that has no vectors of tokens."""
        if not isinstance(embedder, MultiVectorEmbedder | Embedder):
            raise InputError(
                f"late interaction: {type(embedder).__name__} has no vectors of tokens; expected "
                "a MultiVectorEmbedder or an Embedder"
            )
        pool_tokens(np.zeros((1, 1), np.float32), factor)  # refuses a factor below 1
        self.embedder, self.factor, self.kept_tokens = embedder, factor, kept_tokens
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._num_kept = 0

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """MaxSim of each pair, float32 [P]; an instruction stands behind the query."""
        read = instructed(pairs, instructions)
        places = by_query(read)
        queries = list(places)
        vectors = self._vectors(queries, "query")[0] if queries else []
        documents = self.document_vectors([document for _, document in read])
        name = getattr(self.embedder, "similarity_fn_name", "maxsim")
        name = name if isinstance(self.embedder, MultiVectorEmbedder) else "maxsim"
        found_P = np.empty(len(read), np.float32)
        for query, vectors_TE in zip(queries, vectors, strict=True):
            mine = [documents[place] for place in places[query]]
            found_P[places[query]] = max_similarities([vectors_TE], mine, name)[0].numpy()
        return found_P

    def document_vectors(self, documents: Sequence[str]) -> list[np.ndarray]:
        """The pooled vectors of each document, [T, E], for a store of them."""
        new = [each for each in dict.fromkeys(documents) if each not in self._kept]
        found, num_truncated = self._vectors(new, "document") if new else ([], 0)
        warn_truncated(num_truncated, len(new), f"{self._limit} tokens")
        pooled = {
            text: pool_tokens(vectors_TE, self.factor)
            for text, vectors_TE in zip(new, found, strict=True)
        }
        out = [pooled[text] if text in pooled else self._kept[text] for text in documents]
        for text, vectors_TE in pooled.items():
            self._keep(text, vectors_TE)
        return out

    @property
    def _limit(self) -> int | None:
        late = getattr(self.embedder, "late", None)
        own = None if late is None else late.length("document")
        return own or self.embedder.max_seq_length

    def _keep(self, text: str, vectors_TE: np.ndarray) -> None:
        self._kept[text] = vectors_TE
        self._num_kept += len(vectors_TE)
        while self._num_kept > self.kept_tokens and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._num_kept -= len(oldest)

    def _vectors(self, texts: Sequence[str], role: str) -> tuple[list[np.ndarray], int]:
        """The vectors of each text, and how many texts were cut."""
        options = RunOptions(truncate="silent", show_progress_bar=False)
        if isinstance(self.embedder, MultiVectorEmbedder):
            found, report = self.embedder.encode_vectors(texts, options=options, role=role)
            return [found[row] for row in range(len(found))], report.num_truncated
        states, report = self.embedder.encode_vectors(
            texts, options=options, role=role, output_value="token_embeddings"
        )
        assert isinstance(states, MultiVectors)
        return [self._words(states[row]) for row in range(len(states))], report.num_truncated

    def _words(self, states_TE: np.ndarray) -> np.ndarray:
        """The states at length 1, without the special tokens around the text if it has others."""
        contract: Any = self.embedder.text_tokenizer.contract
        inner = states_TE[len(contract.prefix) : len(states_TE) - len(contract.suffix)]
        states_TE = inner if len(inner) else states_TE
        lengths_T1 = np.linalg.norm(states_TE, axis=1, keepdims=True)
        units: np.ndarray = states_TE / np.where(lengths_T1 > 0, lengths_T1, 1)
        return units
