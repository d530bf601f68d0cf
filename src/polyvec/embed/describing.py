"""What an embedder is: its settings as plain values, its fingerprint, a few lines for a person."""

import dataclasses
import hashlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder


def settings(embedder: "Embedder") -> dict[str, Any]:
    """See Embedder.settings."""
    backbone, template, variants = embedder.backbone, embedder.template, embedder.variants
    prepending = backbone.prepending
    return {
        "backbone": type(backbone.model).__name__,
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
        "prompts": embedder.prompts,
        "default_prompt_name": embedder.prompt_table.default_name,
        "similarity_fn_name": embedder.similarity_fn_name,
        "truncate_dim": embedder.truncate_dim,
        "lower_case": embedder.text_tokenizer.lower_case,
        "tokenizer_contract": embedder.text_tokenizer.contract.as_dict(),
    }


def fingerprint(embedder: "Embedder", *, without: Collection[str] = ()) -> str:
    """See Embedder.fingerprint; the settings named in `without` do not enter it."""
    told = {key: value for key, value in settings(embedder).items() if key not in without}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    digest.update(embedder.tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(embedder.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def lines(embedder: "Embedder") -> list[str]:
    """See Embedder.described."""
    backbone = embedder.backbone
    verdict = backbone.verdict or "not probed: the model takes no bare texts"
    pooling = part(embedder.pooling_module) or "+".join(embedder.pooling)
    return [
        f"{type(backbone.model).__name__}: {backbone.num_layers} layers, "
        f"{embedder.get_embedding_dimension()} dimensions",
        f"attention {backbone.spec}; leak probe: {verdict}",
        f"batches {backbone.layout} ({backbone.mechanism}: {backbone.layout_reason})",
        f"pooling {pooling}; template {embedder.template.name if embedder.template else 'none'}",
    ]


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
