"""The parts of an Embedder: its constructor's keywords, as reading and writing pass them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.modules import WeightedLayers
from polyvec.embed.projection.quantization import Calibration
from polyvec.embed.variants import TextVariants


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderParts:
    """The parts of an Embedder: `Embedder(**parts.keywords())` puts them together.

    `pooling` is a name, several names whose vectors are concatenated, or a module. `routes` are
    the parts for each task of a model whose queries and documents go through different parts;
    the others here are then those of `default_route`.
    """

    backbone: Backbone
    text_tokenizer: TextTokenizer
    pooling: str | tuple[str, ...] | PoolingModule = "mean"
    pool_prompt: bool = True
    layers: WeightedLayers | None = None
    projections: Sequence[nn.Module] = ()
    prompts: PromptTable | None = None
    template: Template | None = None
    variants: TextVariants | None = None
    similarity_fn_name: str = "cosine"
    truncate_dim: int | None = None
    calibration: Calibration | None = None
    routes: "Mapping[str, EmbedderParts]" = dataclasses.field(default_factory=dict)
    default_route: str | None = None

    def keywords(self) -> dict[str, Any]:
        """The parts by the names that `Embedder` takes; not copied."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
