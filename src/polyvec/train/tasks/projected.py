"""Vectors before and after the embedder's trained projections.

The backbone is often frozen then: its vectors are computed once for each text, and kept.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import SettingsError
from polyvec.train.tasks.encode import Texts, means, model_of

MOST_KEPT = 2**28  # numbers that are kept: 1 GB


def num_fixed(embedder: Embedder, where: str) -> int:
    """How many projections stand before the first that has weights.

    Raises SettingsError if none has, or if the later ones change the size of the vectors.
    """
    weighted = [any(True for _ in each.parameters()) for each in embedder.projections]
    if not any(weighted):
        raise SettingsError(
            f"{where}: a loss compares vectors with those before a projection, and the embedder "
            'has none with weights: add projections = [{ kind = "residual_adapter" }]'
        )
    place = weighted.index(True)
    size = getattr(embedder.projections[place], "in_features", embedder.full_dimension)
    if size != embedder.full_dimension:
        raise SettingsError(
            f"{where}: a loss compares vectors of {embedder.full_dimension} dimensions with "
            f"those before the projections, which have {size}"
        )
    return place


class BothSides:
    """The job "encode" with two vectors a text: before the projections from `start` on, and after.

    keep: where nothing before them is trained, what a text gave once, without dropout, is given
    again; not for two readings of a text that dropout tells apart.
    """

    def __init__(self, start: int, *, keep: bool = True) -> None:
        self.start, self.keep = start, keep
        self.kept: dict[bytes, Tensor] = {}
        self.num_spared = 0

    def take_spared(self) -> int:
        """Tokens, with padding, whose vectors were kept already, since the last call."""
        found, self.num_spared = self.num_spared, 0
        return found

    def __call__(self, embedder: Embedder, texts: Texts) -> Tensor:
        """[texts, 2, E]."""
        model = model_of(embedder, texts.role)
        if self.keep and self._is_fixed(model):
            before = self._known(model, texts)
        else:
            before = model(texts.batch, num_projections=self.start)
        after = before
        for step in list(model.projections)[self.start :]:
            after = step(after)
        return means(torch.stack([before, after], dim=1), texts.num_inputs)

    def _is_fixed(self, model: Embedder) -> bool:
        """Not under FSDP, whose processes must all compute each piece."""
        parts = [model.backbone, model.pooling_module, model.layers]
        modules = [*parts, *list(model.projections)[: self.start]]
        weights = [each for part in modules if part is not None for each in part.parameters()]
        return not any(each.requires_grad or hasattr(each, "full_tensor") for each in weights)

    @torch.no_grad()
    def _known(self, model: Embedder, texts: Texts) -> Tensor:
        keys = [bytes(str(texts.role), "utf-8") + key for key in _keys(texts.batch)]
        if any(key not in self.kept for key in keys):
            was_training = model.training
            model.eval()
            found = model(texts.batch, num_projections=self.start)
            model.train(was_training)
            if found.shape[1] * (len(self.kept) + len(keys)) > MOST_KEPT:
                return found
            self.kept.update(zip(keys, found.detach().cpu().clone(), strict=True))
        else:
            lengths = texts.batch.lengths
            packed = model.backbone.layout == "packed"
            self.num_spared += sum(lengths) if packed else max(lengths) * len(lengths)
        device = next(model.parameters()).device
        return torch.stack([self.kept[key] for key in keys]).to(device)


def _keys(batch: TokenBatch) -> Iterator[bytes]:
    """What tells texts of a side apart: their tokens, and which of them are pooled."""
    ends = np.cumsum(batch.lengths)[:-1]
    parts = (batch.ids_T, batch.pooled_T, batch.text_T, batch.segments_T)
    for each in zip(*(np.split(part, ends) for part in parts), strict=True):
        yield b"".join(part.tobytes() for part in each)
