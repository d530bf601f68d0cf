"""Poolings and projections that settings name: checked, then built from facts of the model.

All of it happens before any weight loads: the facts come from the model's config and tokenizer.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from polyvec.embed.backbone.states import SIDE_OUTPUTS
from polyvec.embed.part import one_of
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.functions import POOLINGS, Pooling
from polyvec.embed.pooling.modules import POOLING_MODULES
from polyvec.embed.projection.modules import PROJECTIONS
from polyvec.errors import SettingsError
from polyvec.registry import Registry

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # in configs of MoE families
WHERE = "[[embedder.projections]]"
HEADS = ("ForCausalLM", "ForMaskedLM", "LMHeadModel", "ForPreTraining")
# Families whose last states are projected, and the entry of their config that says to which size.
STATE_SIZES = {"opt": "word_embed_proj_dim", "embedding_gemma2_text": "embedding_dim"}


def pooling_class(names: str | Sequence[str], *, where: str) -> type[PoolingModule] | None:
    """The class of a pooling that is a module, or None for pooling functions.

    Raises SettingsError, saying where, for a pooling that is not known; only functions can be
    combined.
    """
    several = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else (*names,)
    if not several:
        raise SettingsError(f"{where}: pooling is empty, expected a name")
    if any(not isinstance(name, str) for name in several):
        raise SettingsError(f"{where}: pooling is {names!r}, expected a name or several")
    if len(several) > 1:
        for name in several:
            POOLINGS.find(name, where=where)
        return None
    if several[0] in POOLINGS and several[0] in POOLING_MODULES:
        raise SettingsError(
            f"{where}: {several[0]!r} names a pooling function and a pooling with settings: "
            "register yours under another name"
        )
    # Both tables as one, so that the error lists all names.
    every: Registry[Pooling | type[PoolingModule]] = Registry(
        "pooling",
        {**POOLINGS, **POOLING_MODULES},
        accepts=lambda found: POOLINGS.accepts(found) or POOLING_MODULES.accepts(found),
        expected=f"{POOLINGS.expected} or {POOLING_MODULES.expected}",
    )
    found = every.find(several[0], where=where)
    return found if inspect.isclass(found) and issubclass(found, PoolingModule) else None


def check_pooling(names: str | Sequence[str], settings: Mapping[str, Any], *, where: str) -> None:
    """Raises SettingsError for a pooling that is not known, or settings that it does not take."""
    module = pooling_class(names, where=where)
    name = names if isinstance(names, str) else names[0]
    if module is not None:
        # A misspelt side output would only fail in the first forward pass.
        for need in module.needs:
            one_of(f"{where} pooling {names!r}: side output", need, SIDE_OUTPUTS)
        POOLING_MODULES.check(name, settings, where=where)
    elif settings:
        raise SettingsError(f"{where} pooling_settings do nothing for pooling {names!r}")


def check_served(names: str | Sequence[str], config: PretrainedConfig, *, where: str) -> None:
    """Raises SettingsError if a model of this config cannot serve the pooling."""
    module = pooling_class(names, where=where)
    text, architectures = config.get_text_config(), " ".join(config.architectures or ())
    no_experts = None if num_experts(text) else "has no experts to route to"
    refusals = {
        "router": no_experts,
        "router_logits": no_experts,
        "lm_head": None if any(head in architectures for head in HEADS) else "has no LM head",
        "decoder_start": None if config.is_encoder_decoder else "has no decoder",
    }
    for need in sorted(module.needs if module else ()):
        if refusals.get(need):
            raise SettingsError(
                f"{where} pooling {names!r} needs {need}, but a {config.model_type} model "
                f"({architectures or 'no architecture named'}) {refusals[need]}"
            )


def model_facts(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, *, num_layers: int | None = None
) -> dict[str, Any]:
    """What parts may declare as a Fact, but for the size of the vectors before a projection.

    `num_layers` counts the layers in use, if they are fewer than the config's. A fact that the
    model does not have is None.
    """
    text = config.get_text_config()
    count = num_layers or int(getattr(text, "num_hidden_layers", 0))
    experts = num_experts(text)
    return {
        "hidden_size": state_size(text),
        "num_layers": count,
        "num_hidden_states": count + 1,  # the word embeddings are the first
        "vocab_size": getattr(text, "vocab_size", None),
        "num_experts": experts or None,
        "num_routed_layers": count - _dense_layers(text) if experts else None,
        "mask_token_id": tokenizer.mask_token_id,
        "token_ids": _token_ids(tokenizer),
    }


def state_size(config: PretrainedConfig) -> int:
    """Size of a model's last states, which some families project to another one."""
    return int(getattr(config, STATE_SIZES.get(config.model_type, "hidden_size")))


def build_pooling(
    names: str | Sequence[str],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    where: str,
) -> tuple[str, ...] | PoolingModule:
    """The pooling module, or the names of pooling functions."""
    module = pooling_class(names, where=where)
    several = (names,) if isinstance(names, str) else tuple(names)
    if module is None:
        return several
    found: PoolingModule = POOLING_MODULES.build(several[0], settings, facts, where=where)
    return found


def check_projections(tables: Sequence[Mapping[str, Any]]) -> None:
    """Raises SettingsError for an unknown projection, or settings that it does not take."""
    for table in tables:
        kind, settings = _kind(table)
        PROJECTIONS.check(kind, settings, where=WHERE)


def build_projections(
    tables: Sequence[Mapping[str, Any]], in_features: int
) -> tuple[nn.Module, ...]:
    """The projections in order, the first for vectors of `in_features` dimensions."""
    steps: list[nn.Module] = []
    for table in tables:
        kind, settings = _kind(table)
        step = PROJECTIONS.build(kind, settings, {"in_features": in_features}, where=WHERE)
        in_features = int(getattr(step, "out_features", in_features))
        steps.append(step)
    return tuple(steps)


def num_experts(config: PretrainedConfig) -> int:
    """Experts of a routed layer; 0 for a dense model."""
    return next((int(getattr(config, n)) for n in EXPERTS if getattr(config, n, None)), 0)


def _dense_layers(config: PretrainedConfig) -> int:
    """Layers without experts in a routed model: some families keep their first ones dense."""
    first = getattr(config, "first_k_dense_replace", 0)
    return int(first or len(getattr(config, "mlp_only_layers", None) or ()))


def _token_ids(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], tuple[int, ...]]:
    def ids(tokens: Sequence[str]) -> tuple[int, ...]:
        words = tokenizer.get_vocab()
        for token in tokens:
            if token not in words:  # would become the unknown token without a word
                raise SettingsError(f"token {token!r} is not in the tokenizer's vocabulary")
        return tuple(words[token] for token in tokens)

    return ids


def _kind(table: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    settings = dict(table)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str):
        raise SettingsError(f"[[embedder.projections]] kind is {kind!r}, expected a name")
    return kind, settings
