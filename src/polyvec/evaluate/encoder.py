"""A model as the protocols see it: texts in, vectors out, under the prompt that a task asks for.

N texts, U distinct texts, E numbers a vector.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyvec.evaluate.prompts import stored_prompt
from polyvec.interfaces import RunOptions, TextEncoder
from polyvec.storage.vector_cache import EmbeddingCache

CHUNK = 4096  # texts encoded before they are cached: the most that an interrupted run loses
SAMPLE = 2000  # vectors of each call that the geometry may draw from


@dataclass(slots=True)
class Work:
    """What a task asked for, and how much of it was computed rather than read from the cache."""

    num_texts: int = 0
    num_computed: int = 0
    num_truncated: int = 0
    encode_s: float = 0.0
    prompts: dict[str, str] = field(default_factory=dict)
    sample: list[np.ndarray] = field(default_factory=list)


class TaskEncoder:
    """A model with a task's prompts, which encodes each distinct text once.

    The prompt is the first of these that the model has, as in mteb: "<task>-<role>", "<task>",
    "<kind>-<role>", "<kind>", then the role's own, then the model's default; documents may be
    called "passage" or "corpus", too, and an empty prompt is one. Where a model has no
    slot for an instruction of the data, the instruction follows the text, as for mteb's models.
    """

    def __init__(
        self,
        embedder: TextEncoder,
        *,
        names: Sequence[str] = (),
        cache: EmbeddingCache | None = None,
        options: RunOptions | None = None,
        model_sha256: str | None = None,
    ) -> None:
        self.embedder = embedder
        self.names = tuple(name for name in names if name)
        self.cache = cache
        self.options = options or RunOptions(truncate="silent")
        self.model_sha256 = model_sha256 or (embedder.vectors_fingerprint() if cache else "")
        self.work = Work()

    def encode(
        self, texts: Sequence[str], role: str | None = None, instruction: str | None = None
    ) -> np.ndarray:
        """Vectors in the order of the texts, float32 [N, E]."""
        began = time.perf_counter()
        if instruction is not None and not self.embedder.takes_instruction(role):
            texts, instruction = [f"{text} {instruction}" for text in texts], None
        chosen = self._prompt(role, instruction)
        first: dict[str, int] = {}
        places_N = np.array([first.setdefault(text, len(first)) for text in texts], np.int64)
        vectors_UE, truncated_U = self._vectors(list(first), chosen)
        self.work.prompts[role or ""] = self.embedder.prompt_key(**chosen)[0] or ""
        self.work.num_texts += len(texts)
        self.work.num_truncated += int(truncated_U[places_N].sum())
        self.work.encode_s += time.perf_counter() - began
        # A task that encodes equal texts twice is sampled twice; geometry_of removes duplicates.
        self.work.sample.append(vectors_UE[:: max(1, len(vectors_UE) // SAMPLE)])
        return vectors_UE if len(first) == len(texts) else vectors_UE[places_N]

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(self.embedder.similarity(a, b))

    def similarity_pairwise(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(self.embedder.similarity_pairwise(a, b))

    @property
    def similarity_name(self) -> str:
        return self.embedder.similarity_fn_name

    def _prompt(self, role: str | None, instruction: str | None) -> dict[str, Any]:
        """How encode is called: the data's instruction, else a stored prompt, else the role."""
        chosen = {"role": role} if role else {}
        if instruction is not None:
            return {**chosen, "prompt": instruction}
        name = stored_prompt(self.embedder, self.names, role)
        return chosen if name is None else {**chosen, "prompt_name": name}

    def _vectors(self, texts: list[str], chosen: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of distinct texts, and which were truncated."""
        if self.cache is None:
            return self._computed(texts, chosen)
        dimension = self.embedder.get_embedding_dimension()
        key = self.embedder.prompt_key(**chosen)
        entries = self.cache.entries(self.model_sha256, key, dimension)
        hits = entries.get(texts)
        vectors_UE = np.empty((len(texts), dimension), np.float32)
        truncated_U = np.zeros(len(texts), bool)
        vectors_UE[hits.rows], truncated_U[hits.rows] = hits.vectors, hits.truncated
        missing = np.setdiff1d(np.arange(len(texts)), hits.rows)
        for start in range(0, len(missing), CHUNK):
            rows = missing[start : start + CHUNK]
            some = [texts[row] for row in rows]
            vectors_UE[rows], truncated_U[rows] = self._computed(some, chosen)
            # The protocol reports NaN with the task and the text; a cached one would stay.
            if np.isfinite(vectors_UE[rows]).all():
                entries.put(some, vectors_UE[rows], truncated_U[rows])
        return vectors_UE, truncated_U

    def _computed(self, texts: list[str], chosen: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        vectors, report = self.embedder.encode_vectors(texts, options=self.options, **chosen)
        truncated_U = np.zeros(len(texts), bool)
        truncated_U[report.truncated] = True
        self.work.num_computed += len(texts)
        return vectors.to_dense(), truncated_U
