"""Parts by name: a table's class, its settings from a file, and what only the backbone knows."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS
from polyvec.embed.pooling.modules import POOLING_MODULES
from polyvec.embed.projection.dense import Dense, LayerNorm, Normalize
from polyvec.embed.projection.fitted import FITTED
from polyvec.embed.projection.trained import PROJECTORS
from polyvec.errors import SettingsError, known

PROJECTIONS: dict[str, type[nn.Module]] = {
    "dense": Dense,
    "layer_norm": LayerNorm,
    "normalize": Normalize,
    **PROJECTORS,
    **FITTED,
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def check_pooling(names: str | tuple[str, ...], settings: Mapping[str, Any]) -> None:
    """Raises SettingsError for a pooling, or a setting of one, that is not known."""
    several = (names,) if isinstance(names, str) else names
    for name in several:
        if name in POOLING_MODULES and len(several) == 1:
            _check_keys(POOLING_MODULES[name], {**settings}, f"pooling {name!r}", ("tokens",))
        elif name not in POOLINGS:
            choices = [*POOLINGS, *POOLING_MODULES] if len(several) == 1 else list(POOLINGS)
            raise SettingsError(f"[embedder] pooling {name!r} is not known.{known(name, choices)}")
        elif settings:
            raise SettingsError(f"[embedder] pooling_settings do nothing for pooling {name!r}")


def check_served(names: str | tuple[str, ...], config: PretrainedConfig) -> None:
    """Raises SettingsError if a model of this config cannot serve the pooling."""
    if not isinstance(names, str) or names not in POOLING_MODULES:
        return
    needs, text = POOLING_MODULES[names].needs, config.get_text_config()
    architectures = " ".join(config.architectures or ())
    refusals = {
        "router": None if num_experts(text) else "has no experts to route to",
        "lm_head": None if _writes(text, architectures) else "has no head that writes tokens",
        "decoder_start": None if config.is_encoder_decoder else "has no decoder",
    }
    for need in sorted(needs):
        if refusals.get(need):
            raise SettingsError(
                f"[embedder] pooling {names!r} needs {need}, but a {config.model_type} model "
                f"({architectures or 'no architecture named'}) {refusals[need]}"
            )


def needs_of(names: str | tuple[str, ...]) -> frozenset[str]:
    """The side outputs of a pooling by name."""
    known_module = isinstance(names, str) and names in POOLING_MODULES
    return POOLING_MODULES[names].needs if known_module else frozenset()  # type: ignore[index]


def build_pooling(
    names: str | tuple[str, ...], settings: Mapping[str, Any], backbone: Backbone, tokenizer: Any
) -> str | tuple[str, ...] | PoolingModule:
    """The pooling itself; sizes come from the backbone, ids from the tokenizer."""
    if not isinstance(names, str) or names not in POOLING_MODULES:
        return names
    config, given = backbone.model.config.get_text_config(), dict(settings)
    facts: dict[str, Any] = {"hidden_size": backbone.hidden_size}
    if names == "route_weights":
        facts |= {"num_experts": num_experts(config), "num_layers": _routed_layers(config)}
    if names == "trainable" and given.get("over") == "all_layers":
        facts["num_layers"] = backbone.num_layers + 1
    if backbone.lm_head is not None:
        facts["vocab_size"] = backbone.lm_head.weight.shape[0]
    if names == "mask_token":
        facts["token_id"] = tokenizer.mask_token_id
    if "tokens" in given:
        given["token_ids"] = [tokenizer.convert_tokens_to_ids(t) for t in given.pop("tokens")]
    return make(POOLING_MODULES[names], facts, given, f"pooling {names!r}")


def build_projections(
    tables: tuple[Mapping[str, Any], ...], dimension: int
) -> tuple[list[nn.Module], int]:
    """The projections in order, and the size of what comes out of them."""
    steps: list[nn.Module] = []
    for table in tables:
        given = dict(table)
        kind = given.pop("kind", None)
        if kind not in PROJECTIONS:
            raise SettingsError(
                f"[[embedder.projections]] kind {kind!r} is not known."
                + known(str(kind), PROJECTIONS)
            )
        facts = {"in_features": dimension, "dimension": dimension}
        step = make(PROJECTIONS[kind], facts, given, f"projection {kind!r}")
        dimension = int(getattr(step, "out_features", dimension))
        steps.append(step)
    return steps, dimension


def make(kind: type, facts: Mapping[str, Any], given: Mapping[str, Any], where: str) -> Any:
    """The class with what it takes of `facts`, and all of `given`; SettingsError otherwise."""
    takes = inspect.signature(kind).parameters
    _check_keys(kind, given, where)
    values = {**{k: v for k, v in facts.items() if k in takes}, **given}
    missing = [
        name
        for name, parameter in takes.items()
        if parameter.default is inspect.Parameter.empty and name not in values
    ]
    if missing:
        raise SettingsError(f"{where}: setting {missing[0]!r} is missing")
    return kind(**values)


def num_experts(config: PretrainedConfig) -> int:
    """Experts of a routed layer; 0 for a dense model."""
    return next((int(getattr(config, n)) for n in EXPERTS if getattr(config, n, None)), 0)


def _routed_layers(config: PretrainedConfig) -> int:
    """Layers with experts: some families keep their first ones dense."""
    dense = getattr(config, "first_k_dense_replace", 0) or len(
        getattr(config, "mlp_only_layers", None) or ()
    )
    return int(config.num_hidden_layers) - int(dense)


def _writes(config: PretrainedConfig, architectures: str) -> bool:
    heads = ("ForCausalLM", "ForMaskedLM", "LMHeadModel", "ForPreTraining")
    return any(head in architectures for head in heads)


def _check_keys(
    kind: type, given: Mapping[str, Any], where: str, more: tuple[str, ...] = ()
) -> None:
    takes = [*inspect.signature(kind).parameters, *more]
    for key in given:
        if key not in takes:
            raise SettingsError(f"{where}: setting {key!r} is not known.{known(key, takes)}")
