"""A model as the protocols see it: texts in, vectors out, with the prompt that a task calls for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polyvec.interfaces import Prompt, RunOptions
from polyvec.storage.vector_cache import EmbeddingCache, Entries

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder

CHUNK = 4096  # texts computed before they are kept: what an interrupted run loses at most


@dataclass(slots=True)
class Work:
    """What a task asked for, and what of it had to be computed."""

    num_texts: int = 0
    num_computed: int = 0
    num_truncated: int = 0
    encode_s: float = 0.0
    prompts: dict[str, str] = field(default_factory=dict)
    sample: list[np.ndarray] = field(default_factory=list)


class TaskEncoder:
    """An embedder with a task's prompts, each distinct text computed once and kept.

    The prompt is the first of these that the model has, as in mteb: "<task>-<role>", "<task>",
    "<kind>-<role>", "<kind>", then the role's own, then the model's default. Where a model has no
    place for an instruction of the data it stands behind the text, as for mteb's models.
    """

    def __init__(
        self,
        embedder: "Embedder",
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
        self.model_sha256 = model_sha256 or (vector_fingerprint(embedder) if cache else "")
        self.work = Work()

    def encode(
        self, texts: Sequence[str], role: str | None = None, instruction: str | None = None
    ) -> np.ndarray:
        """Vectors in the order of the texts, float32 [N, E]."""
        began = time.perf_counter()
        if instruction is not None and not self._has_place(role):
            texts, instruction = [f"{text} {instruction}" for text in texts], None
        chosen = self._prompt(role, instruction)
        first: dict[str, int] = {}
        places = np.array([first.setdefault(text, len(first)) for text in texts], np.int64)
        unique = list(first)
        vectors_UE, truncated_U = self._vectors(unique, chosen)
        self.work.num_texts += len(texts)
        self.work.num_truncated += int(truncated_U[places].sum())
        self.work.encode_s += time.perf_counter() - began
        # A task of two passes over equal texts is sampled from both; geometry() draws again.
        self.work.sample.append(vectors_UE[:: max(1, len(vectors_UE) // 2000)])
        return vectors_UE if len(unique) == len(texts) else vectors_UE[places]

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.embedder.similarity(torch.from_numpy(a), torch.from_numpy(b)).numpy()

    def similarity_pairwise(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return self.embedder.similarity_pairwise(torch.from_numpy(a), torch.from_numpy(b)).numpy()

    @property
    def similarity_name(self) -> str:
        return self.embedder.similarity_fn_name

    def _has_template(self) -> bool:
        return getattr(self.embedder, "template", None) is not None

    def _has_place(self, role: str | None) -> bool:
        """Whether the model's template reads an instruction on this side."""
        template = getattr(self.embedder, "template", None)
        return template is not None and "instruction" in template.slots(role)

    def _prompt(self, role: str | None, instruction: str | None) -> dict[str, Any]:
        """How encode is called: words of the data, else a stored prompt by name, else the role."""
        told = {"role": role} if role else {}
        if instruction is not None:
            return {**told, "prompt": instruction}
        if self._has_template() and not self._has_place(role):
            return told
        stored = self.embedder.prompts
        for name in self.names:
            for key in (f"{name}-{role}", name) if role else (name,):
                if stored.get(key):
                    return {**told, "prompt_name": key}
        return told

    def _vectors(self, texts: list[str], chosen: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of distinct texts, and which were truncated."""
        if self.cache is None:
            return self._computed(texts, chosen)
        entries = self._entries(chosen)
        hits = entries.get(texts)
        vectors_UE = np.empty((len(texts), entries.dimension), np.float32)
        truncated_U = np.zeros(len(texts), bool)
        vectors_UE[hits.rows], truncated_U[hits.rows] = hits.vectors, hits.truncated
        missing = np.setdiff1d(np.arange(len(texts)), hits.rows)
        for start in range(0, len(missing), CHUNK):
            rows = missing[start : start + CHUNK]
            some = [texts[row] for row in rows]
            vectors_UE[rows], truncated_U[rows] = self._computed(some, chosen)
            if np.isfinite(vectors_UE[rows]).all():
                entries.put(some, vectors_UE[rows], truncated_U[rows])
        return vectors_UE, truncated_U

    def _computed(self, texts: list[str], chosen: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        vectors, report = self.embedder.encode_with_report(texts, options=self.options, **chosen)
        cut = np.zeros(len(texts), bool)
        cut[report.truncated] = True
        self.work.num_computed += len(texts)
        words: Prompt = report.prompt
        self.work.prompts[chosen.get("role", "")] = words.text
        return np.asarray(vectors, np.float32), cut

    def _entries(self, chosen: dict[str, Any]) -> Entries:
        assert self.cache is not None
        dimension = self.embedder.get_embedding_dimension()
        resolve = getattr(self.embedder, "prompt_for", None)
        if resolve is None:  # several models, each with prompts of its own
            return self.cache.entries(self.model_sha256, [sorted(chosen.items())], dimension)
        prompt: Prompt = resolve(
            chosen.get("prompt"), chosen.get("prompt_name"), chosen.get("role")
        )
        self.work.prompts[chosen.get("role", "")] = prompt.text
        # Without a template the role only names the prompt, and equal words give equal vectors.
        side = prompt.role if self._has_template() else None
        return self.cache.entries(self.model_sha256, [prompt.text, side], dimension)


def vector_fingerprint(embedder: "Embedder") -> str:
    """sha256 over all that decides a text's vector but the prompt."""
    if isinstance(embedder, torch.nn.Module):
        return embedder.vectors_fingerprint()
    return embedder.fingerprint()
