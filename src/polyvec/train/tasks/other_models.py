"""Other embedders whose vectors a loss reads: a guide that tells false negatives, a teacher.

N texts, G their vector size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.embedder import Embedder


class OtherModel:
    """An embedder that is not trained; vectors of texts it has seen are kept."""

    def __init__(self, name: str) -> None:
        self.embedder = Embedder.from_pretrained(name)
        self.kept: dict[tuple[str, str], np.ndarray] = {}

    def vectors(self, texts: Sequence[str], role: str) -> Tensor:
        """Vectors of texts of a side, [N, G], on the CPU in float32."""
        new = list(dict.fromkeys(text for text in texts if (role, text) not in self.kept))
        if new:
            encode = (
                self.embedder.encode_query if role == "query" else self.embedder.encode_document
            )
            found = encode(new, show_progress_bar=False)
            self.kept.update({(role, text): each for text, each in zip(new, found, strict=True)})
        return torch.from_numpy(np.stack([self.kept[role, text] for text in texts]))

    def pair_scores(self, queries_NG: Tensor, documents_NG: Tensor) -> Tensor:
        """The similarity of each pair, [N]."""
        return self.embedder.similarity_pairwise(queries_NG, documents_NG)
