"""Fitting the parts of an embedder that are fitted on vectors of a sample, not trained."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polyvec.embed import encoding
from polyvec.embed.encoding import EncodeReport, RunOptions
from polyvec.embed.pooling.layers import RouterWeights
from polyvec.embed.projection.fitted import Fitted
from polyvec.errors import ModelError

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder


def fit(embedder: "Embedder", texts: list[str], prompt: dict[str, Any]) -> None:
    """See Embedder.fit."""
    found = False
    pooling = embedder.pooling_module
    routed = isinstance(pooling, RouterWeights) and pooling.mode == "concat"
    if isinstance(pooling, RouterWeights) and routed and not pooling.standardize.fitted:
        pooling.fit(_vectors(embedder, 0, texts, prompt))
        found = True
    for place, step in enumerate(embedder.projections):
        if isinstance(step, Fitted) and not step.fitted:
            step.fit(_vectors(embedder, place, texts, prompt))
            found = True
    if not found:
        raise ModelError("there is nothing to fit: no part is fitted on a sample, or all are")


def _vectors(
    embedder: "Embedder", num_steps: int, texts: list[str], prompt: dict[str, Any]
) -> np.ndarray:
    """Vectors of texts after the first projections only, [N, E]."""
    embedder.num_steps = num_steps
    try:
        windows = encoding.run(
            embedder, texts, embedder.prompt_for(**prompt), RunOptions(truncate="silent"),
            EncodeReport(),
        )  # fmt: skip
        return torch.stack([vector for window in windows for vector in window]).numpy()
    finally:
        embedder.num_steps = None
