"""Weights that a folder has and its model does not use: refused, or told by name."""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from polyvec.errors import ModelError, UnusedWeightsWarning

# Tables that older versions of transformers stored and newer ones compute.
COMPUTED = re.compile(
    r"(inv_freq|position_ids|token_type_ids|masked_bias|attn\.bias|attention\.bias|bias_mask)$"
)
SPARE_ROWS = 1024  # makers round a vocabulary up, and keep tokens free: up to 970 in those measured
SPARE_SHARE = 0.03


def check_unused(
    root: Path, model: nn.Module, names: Iterable[str], options: Mapping[str, Any]
) -> None:
    """What to say of weights, by name, that a model was given and did not take.

    Raises ModelError for those of whole layers, unless the folder's settings, `options`, ask for
    fewer; warns of others inside the model. Weights of heads are not used by an embedder.
    """
    config: Any = model.config
    shapes = {_numberless(name) for name, _ in model.named_parameters() if re.search(r"\d", name)}
    modules = {name for name, _ in model.named_modules() if name}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    bare = {name: name.removeprefix(prefix) for name in sorted(names)}
    layers = [
        name
        for name, short in bare.items()
        if {_numberless(name), _numberless(short)} & shapes and not {name, short} & modules
    ]
    fewer = any("layer" in key for key in options)
    if layers and not fewer and not getattr(config, "num_nextn_predict_layers", None):
        raise ModelError(
            f"{root}: {len(layers)} weights belong to layers that the model does not have, the "
            f"first {layers[0]}; config.json says num_hidden_layers "
            f"{getattr(config.get_text_config(), 'num_hidden_layers', None)}: correct it, or "
            "download the model again"
        )
    inside = [
        name
        for name, short in bare.items()
        if name not in layers and not COMPUTED.search(name) and _is_inside(name, short, modules)
    ]
    if inside:
        warnings.warn(
            f"{root}: {len(inside)} weights are not used by {type(model).__name__}, the first "
            f"{inside[0]}; vectors are not what the checkpoint was trained for if config.json "
            "names another model",
            UnusedWeightsWarning,
            stacklevel=3,
        )


def tell_unused_rows(root: Path, num_tokens: int, num_rows: int) -> None:
    """Warns of a tokenizer that is too small for its model: probably another model's."""
    unused = num_rows - num_tokens
    if 2 * num_tokens < num_rows or unused > max(SPARE_ROWS, SPARE_SHARE * num_rows):
        warnings.warn(
            f"{root}: the tokenizer has {num_tokens} tokens, the model {num_rows} token "
            "embeddings; probably it is another model's tokenizer",
            UnusedWeightsWarning,
            stacklevel=3,
        )


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _is_inside(name: str, short: str, modules: set[str]) -> bool:
    """Whether a weight's module exists, or a numbered layer around it."""
    for each in (name, short):
        parts = each.split(".")[:-1]
        above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        found = [each for each in above if each in modules]
        if found and (found[-1] == above[-1] or any(re.search(r"\d$", each) for each in found)):
            return True
    return False
