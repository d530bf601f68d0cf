"""The parts of an Embedder: its constructor's keywords, as reading and writing pass them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
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
from polyvec.errors import InputError, known


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


# What each part is. Similarity and dimension are checked by value, where they are used.
KINDS: dict[str, tuple[type, ...]] = {
    "backbone": (Backbone,),
    "text_tokenizer": (TextTokenizer,),
    "pooling": (str, Sequence, PoolingModule),
    "pool_prompt": (bool,),
    "layers": (WeightedLayers, type(None)),
    "projections": (Iterable,),
    "prompts": (PromptTable, type(None)),
    "template": (Template, type(None)),
    "variants": (TextVariants, type(None)),
    "calibration": (Calibration, type(None)),
    "routes": (Mapping, type(None)),
    "default_route": (str, type(None)),
}
# Names that options of `encode` and of the constructor have, and no attribute.
OF_ENCODE = {
    "batch_size", "convert_to_numpy", "convert_to_tensor", "examples", "normalize_embeddings",
    "output_value", "precision", "prompt", "prompt_name", "role", "show_progress_bar", "truncate",
}  # fmt: skip
OF_LOADING = {"attention", "base_model", "layout", "merge_adapters", "output", "revision"}
OTHERWISE = {
    "device": "move it: embedder.to(device)",
    "dtype": "convert it: embedder.to(dtype)",
    "max_length": "set max_seq_length",
    "model_max_length": "set max_seq_length",
}


def check_part(name: str, part: object) -> None:
    """Raises InputError, with what is expected, for a part of another type."""
    kinds = KINDS.get(name)
    if kinds is not None and not isinstance(part, kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise InputError(f"{name} is {type(part).__name__} {str(part)[:60]!r}, expected {wanted}")


def check_parts(parts: Mapping[str, Any]) -> None:
    """Raises InputError for a part that is not known, or of another type."""
    names = [field.name for field in dataclasses.fields(EmbedderParts)]
    for name, part in parts.items():
        if name not in names:
            raise InputError(
                f"Embedder.from_parts: part {name!r} is not known.{known(name, names)}"
            )
        check_part(name, part)


def check_assigned(name: str, value: object) -> None:
    """Raises InputError for a part of another type, and for an option that is no attribute."""
    if name in OF_ENCODE:
        raise InputError(f"assigning {name} does nothing; pass it to encode")
    if name in OF_LOADING:
        raise InputError(f"assigning {name} does nothing; pass it to Embedder(name, {name}=...)")
    if name in OTHERWISE:
        raise InputError(f"assigning {name} does nothing; {OTHERWISE[name]}")
    # The setter of `prompts` takes a plain table, and makes it the prompt_table.
    if name != "prompts":
        check_part({"prompt_table": "prompts"}.get(name, name), value)
