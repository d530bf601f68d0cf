"""Fitting the parts of an embedder that are fitted on vectors of a sample, not trained."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from polyvec.embed.encoding import EncodeRun, Model
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.layers import RouterWeights
from polyvec.embed.projection.fitted import Fitted
from polyvec.errors import ModelError
from polyvec.interfaces import EncodeReport, Prompt, RunOptions


class FittedModel(Model, Protocol):
    """What fitting asks of an embedder."""

    pooling_module: PoolingModule | None
    projections: nn.ModuleList


def fit(model: FittedModel, texts: Sequence[str], prompt: Prompt) -> None:
    """Fit what is not fitted yet, in order, each part on the vectors that reach it.

    Raises ModelError if there is nothing to fit.
    """
    found = False
    pooling = model.pooling_module
    if isinstance(pooling, RouterWeights) and pooling.fits and not pooling.standardize.fitted:
        with pooling.collect():
            sample = _vectors(model, 0, texts, prompt)
        pooling.fit(sample)
        found = True
    for place, step in enumerate(model.projections):
        if isinstance(step, Fitted) and not step.fitted:
            step.fit(_vectors(model, place, texts, prompt))
            found = True
    if not found:
        raise ModelError("nothing to fit: no part is fitted on a sample, or all of them are fitted")


def _vectors(
    model: FittedModel, num_projections: int, texts: Sequence[str], prompt: Prompt
) -> np.ndarray:
    """Vectors of texts after the first projections only, [N, E]."""
    run = EncodeRun(
        model,
        prompt,
        RunOptions(truncate="silent"),
        EncodeReport(),
        num_projections=num_projections,
    )
    return torch.stack([vector for window in run.windows(texts) for vector in window]).numpy()
