"""What an embedder is: its settings as plain values, and a few lines for a person."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.onnx_layers import MOST_TOKENS
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.embed.inputs.tables import TableTokenizer
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import TextTokenizer
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.modules import WeightedLayers
from polyvec.embed.variants import TextVariants

# Settings that choose a prompt or a score, and change no vector of a text under a given prompt.
NOT_OF_VECTORS = ("prompts", "default_prompt_name", "similarity_fn_name")


class Described(Protocol):
    """What a description reads of an embedder."""

    backbone: Backbone
    text_tokenizer: TextTokenizer
    pooling: tuple[str, ...]
    pooling_module: PoolingModule | None
    pool_prompt: bool
    layers: WeightedLayers | None
    projections: nn.ModuleList
    prompt_table: PromptTable
    template: Template | None
    variants: TextVariants | None
    similarity_fn_name: str
    truncate_dim: int | None
    default_route: str | None

    @property
    def routes(self) -> Mapping[str, Any]: ...

    def get_embedding_dimension(self) -> int: ...


def settings(embedder: Described) -> dict[str, Any]:
    """Everything beside the weights that decides a vector, as plain values.

    A change of a name or value here changes all fingerprints, and with them stored indexes.
    """
    backbone, template, variants = embedder.backbone, embedder.template, embedder.variants
    prepending = backbone.prepending
    described = {
        "backbone": backbone.family,
        "attention": str(backbone.spec),
        "blocked": [list(pair) for pair in backbone.spec.blocked],
        "pooling": list(embedder.pooling),
        "pooling_module": part(embedder.pooling_module),
        "pool_prompt": embedder.pool_prompt,
        "weighted_layers_from": embedder.layers.layer_start if embedder.layers else None,
        "projections": [part(step) for step in embedder.projections],
        "template": template.as_dict() if template else None,
        "variants": variants.settings() if variants else None,
        "prepending": dataclasses.asdict(prepending) if prepending else None,
        "prompts": dict(embedder.prompt_table.by_name),
        "default_prompt_name": embedder.prompt_table.default_name,
        "similarity_fn_name": embedder.similarity_fn_name,
        "truncate_dim": embedder.truncate_dim,
        "lower_case": embedder.text_tokenizer.lower_case,
        "tokenizer_contract": embedder.text_tokenizer.contract.as_dict(),
    }
    # Only where there are any, so that other models keep their fingerprints.
    if isinstance(embedder.text_tokenizer, TableTokenizer):
        described |= embedder.text_tokenizer.table_settings()
    if embedder.text_tokenizer.parses_texts:
        described["special_tokens"] = "parse"
    if backbone.fast:
        described["dtype"] = backbone.fast
    if embedder.routes:
        described["routes"] = {task: settings(route) for task, route in embedder.routes.items()}
        described["default_route"] = embedder.default_route
    return described


def settings_hash(values: Mapping[str, Any]) -> str:
    """A hash of settings."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def lines(embedder: Described) -> list[str]:
    """How the model is run and what it sees, a line each."""
    backbone = embedder.backbone
    verdict = backbone.verdict or "not run: the model takes no bare texts"
    pooling = part(embedder.pooling_module) or "+".join(embedder.pooling)
    return [
        f"{backbone.family}: {backbone.num_layers} layers, "
        f"{embedder.get_embedding_dimension()} dimensions",
        f"attention {backbone.spec}; leak probe: {verdict}",
        f"batches {backbone.layout} ({backbone.mechanism}: {backbone.layout_reason})",
        f"products of {backbone.products}{_short(backbone)}",
        f"pooling {pooling}; template {embedder.template.name if embedder.template else 'none'}",
    ]


def _short(backbone: Any) -> str:
    short = f"; a text of up to {MOST_TOKENS} tokens, alone, by ONNX Runtime"
    return short if backbone.computes_short_apart else ""


def part(module: nn.Module | None) -> Any:
    """A part's class name, and its settings if it has any."""
    if module is None:
        return None
    describe = getattr(module, "settings", None)
    kind = type(module)
    own = kind.__module__.startswith("polyvec.")
    # A user's part with its module: two packages may have parts of the same name.
    name = kind.__name__ if own else f"{kind.__module__}:{kind.__qualname__}"
    return {name: describe()} if callable(describe) else name
