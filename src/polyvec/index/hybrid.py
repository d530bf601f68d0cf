"""Several embedders as one ranking: each scores the documents, the scores are fused."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.embedder import Embedder
from polyvec.embed.projection.similarity import similarity_matrix
from polyvec.errors import InputError, ModelError
from polyvec.index.fusion import min_max_fusion
from polyvec.interfaces import EncodeReport
from polyvec.storage.files import atomic_file

FILE = "hybrid.json"


class HybridEmbedder:
    """Embedders side by side; a query's scores by each are scaled to 0 ... 1 and added.

    PromptReps' hybrid (Zhuang et al. 2024, arXiv:2404.18424) is a dense and a sparse embedder
    with weights of one half. `encode` lays the vectors of all side by side, [N, E1 + E2 + ...];
    only `similarity` knows how to score them, since each query's scores are scaled over all the
    documents it is scored against.
    """

    similarity_fn_name = "min-max"

    def __init__(
        self, embedders: Sequence[Embedder], weights: Sequence[float] | None = None
    ) -> None:
        self.embedders = tuple(embedders)
        self.weights = tuple(weights or [1 / len(self.embedders)] * len(self.embedders))
        if len(self.embedders) < 2 or len(self.weights) != len(self.embedders):
            raise InputError(
                f"hybrid: {len(self.embedders)} embedders and {len(self.weights)} weights, "
                "at least 2 and as many of both are needed"
            )

    @property
    def backbone(self):
        """The first embedder's, whose verdict is shown."""
        return self.embedders[0].backbone

    @property
    def prompts(self) -> dict[str, str]:
        return self.embedders[0].prompts

    def to(self, device: str) -> "HybridEmbedder":
        for each in self.embedders:
            each.to(device)
        return self

    def described(self) -> list[str]:
        """A few lines for a person: how each embedder is run."""
        return [line for each in self.embedders for line in each.described()]

    def get_embedding_dimension(self) -> int:
        return sum(each.get_embedding_dimension() for each in self.embedders)

    def encode(self, texts: str | Iterable[str], **options: Any) -> np.ndarray:
        """Vectors of every embedder side by side, float32 [N, E], or [E] for a single string."""
        single = isinstance(texts, str)
        rows: list[str] = [texts] if single else list(texts)  # type: ignore[list-item]
        found = np.concatenate([each.encode(rows, **options) for each in self.embedders], axis=1)
        return found[0] if single else found

    def encode_with_report(self, texts: Iterable[str], **options: Any) -> tuple[Any, EncodeReport]:
        """The vectors, and the first embedder's report."""
        rows = list(texts)
        found = [each.encode_with_report(rows, **options) for each in self.embedders]
        return np.concatenate([vectors for vectors, _ in found], axis=1), found[0][1]

    def similarity(self, a: Any, b: Any) -> Tensor:
        """Fused scores of each a with each b, [N, M], every row scaled over all of b."""
        scores = [
            similarity_matrix(
                torch.as_tensor(one), torch.as_tensor(two), each.similarity_fn_name
            ).numpy()
            for each, one, two in zip(self.embedders, self._split(a), self._split(b), strict=True)
        ]
        return torch.from_numpy(min_max_fusion(scores, self.weights))

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """Raises InputError: one pair alone has nothing to be scaled over."""
        raise InputError(
            "hybrid: a pair has no score of its own, scores are scaled over a query's documents; "
            "measure it on retrieval, or its parts on pairs"
        )

    def fingerprint(self) -> str:
        """sha256 over the embedders' and the weights."""
        parts = [each.fingerprint() for each in self.embedders]
        return hashlib.sha256(json.dumps([parts, self.weights]).encode()).hexdigest()

    def save_pretrained(self, path: str | Path) -> None:
        """A folder with a folder for each embedder, and hybrid.json with the weights."""
        folder = Path(path)
        for number, each in enumerate(self.embedders):
            each.save_pretrained(folder / str(number))
        with atomic_file(folder / FILE, "w") as file:
            json.dump({"weights": self.weights, "fusion": "min-max"}, file)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "HybridEmbedder":
        """The embedders of a folder that save_pretrained wrote."""
        folder = Path(path)
        try:
            raw = json.loads((folder / FILE).read_text("utf-8"))
            weights = [float(weight) for weight in raw["weights"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder / FILE}: cannot be read ({error})") from None
        parts = [folder / str(number) for number in range(len(weights))]
        return cls([Embedder.from_pretrained(part, **options) for part in parts], weights)

    def _split(self, vectors: Any) -> list[np.ndarray]:
        ends = np.cumsum([each.get_embedding_dimension() for each in self.embedders])
        array = np.atleast_2d(np.asarray(vectors, np.float32))
        if array.shape[1] != ends[-1]:
            raise InputError(f"hybrid: vectors of {array.shape[1]} dimensions, not {ends[-1]}")
        return np.split(array, ends[:-1], axis=1)
