"""Projections by name: those of sentence-transformers, those that are trained, those fitted."""

import inspect

from torch import nn

from polyvec.embed.projection.dense import Dense, LayerNorm, Normalize
from polyvec.embed.projection.fitted import FITTED
from polyvec.embed.projection.trained import PROJECTORS
from polyvec.registry import Registry

# A program adds its own with `PROJECTIONS.register("name")`.
PROJECTIONS: Registry[type[nn.Module]] = Registry(
    "projection",
    {
        "dense": Dense,
        "layer_norm": LayerNorm,
        "normalize": Normalize,
        **PROJECTORS,
        **FITTED,
    },
    accepts=lambda found: inspect.isclass(found) and issubclass(found, nn.Module),
    expected="a subclass of Projector or Fitted",
)
