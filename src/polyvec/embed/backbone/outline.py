"""The parts that fused layers are made of, from the tensors of a file: no model of transformers.

What fused layers read of transformers' modules of these families, and compute alike, so that the
states are the same bit for bit. Only for configs that formats/direct.py has compared with them.

T tokens of all texts, D state size, S half the size of a head.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.embed.backbone.fused import FAMILIES, Bert, Fused, Norm, rms_norm
from polyvec.embed.backbone.linears import Weights, exact_linears

CPU = torch.device("cpu")
Read = Callable[[str], Tensor]  # a weight of the model by its name there, in float32


def config_facts(model: Any) -> dict[str, Any] | None:
    """What an outline needs of a model's config, as plain values; None for a config that may
    ask for more than an outline computes.
    """
    config = model.config
    facts = {
        "family": type(model).__name__,
        "hidden_act": config.hidden_act,
        "num_hidden_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
    }
    if FAMILIES[facts["family"]] is Bert:
        plain = not (config.is_decoder or config.add_cross_attention)
        heads = config.num_attention_heads
        size = {"eps": config.layer_norm_eps, "head_size": config.hidden_size // heads}
        return facts | size if plain else None
    rope = config.rope_parameters
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    plain = rope["rope_type"] == "default" and set(rope) <= {"rope_type", "rope_theta"}
    if not plain or kinds or getattr(config, "sliding_window", None) is not None:
        return None
    size = {"eps": config.rms_norm_eps, "head_size": model.layers[0].self_attn.head_dim}
    return facts | size | {"rope_theta": rope["rope_theta"]}


def fused_layers(facts: Mapping[str, Any], names: frozenset[str], read: Read) -> Fused:
    """The fused layers of a model whose weights have these names."""
    family = FAMILIES[facts["family"]]
    make = _bert if family is Bert else _llama
    return family(make(facts, partial(_linear, names, read), read), exact_linears()[0])


def _linear(names: frozenset[str], read: Read, name: str) -> Weights:
    bias = f"{name}.bias"
    return Weights(read(f"{name}.weight"), read(bias) if bias in names else None)


def _bert(facts: Mapping[str, Any], linear: Callable[[str], Weights], read: Read) -> Any:
    def norm(name: str) -> Norm:
        weight, bias = read(f"{name}.weight"), read(f"{name}.bias")
        return tuple(weight.shape), weight, bias, facts["eps"]

    def layer(number: int) -> SimpleNamespace:
        at = f"encoder.layer.{number}"
        inside = SimpleNamespace(
            query=linear(f"{at}.attention.self.query"),
            key=linear(f"{at}.attention.self.key"),
            value=linear(f"{at}.attention.self.value"),
            attention_head_size=facts["head_size"],
            layer_idx=number,
            is_causal=False,
        )
        after = SimpleNamespace(
            dense=linear(f"{at}.attention.output.dense"),
            LayerNorm=norm(f"{at}.attention.output.LayerNorm"),
        )
        return SimpleNamespace(
            attention=SimpleNamespace(self=inside, output=after),
            intermediate=SimpleNamespace(dense=linear(f"{at}.intermediate.dense")),
            output=SimpleNamespace(
                dense=linear(f"{at}.output.dense"), LayerNorm=norm(f"{at}.output.LayerNorm")
            ),
        )

    tables = {
        f"{kind}_embeddings": Weights(read(f"embeddings.{kind}_embeddings.weight"), None)
        for kind in BERT_TABLES
    }
    layers = [layer(number) for number in range(facts["num_hidden_layers"])]
    return SimpleNamespace(
        config=_config(facts),
        device=CPU,
        embeddings=SimpleNamespace(**tables, LayerNorm=norm("embeddings.LayerNorm")),
        encoder=SimpleNamespace(layer=layers),
    )


BERT_TABLES = ("word", "token_type", "position")


def _llama(facts: Mapping[str, Any], linear: Callable[[str], Weights], read: Read) -> Any:
    size = facts["head_size"]

    def norm(name: str) -> Callable[[Tensor], Tensor]:
        return partial(rms_norm, read(f"{name}.weight"), facts["eps"])

    def layer(number: int) -> SimpleNamespace:
        at = f"layers.{number}"
        parts = {
            f"{part}_proj": linear(f"{at}.self_attn.{part}_proj") for part in ("q", "k", "v", "o")
        }
        products = {f"{part}_proj": linear(f"{at}.mlp.{part}_proj") for part in GATED}
        attention = SimpleNamespace(
            **parts, head_dim=size, scaling=size**-0.5, layer_idx=number, is_causal=True
        )
        return SimpleNamespace(
            self_attn=attention,
            mlp=SimpleNamespace(**products),
            input_layernorm=norm(f"{at}.input_layernorm"),
            post_attention_layernorm=norm(f"{at}.post_attention_layernorm"),
        )

    steps_S = torch.arange(0, size, 2, dtype=torch.float) / size
    frequencies_S = 1.0 / (facts["rope_theta"] ** steps_S)

    def rotary(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        turns = position_ids[..., None].float() * frequencies_S
        both = torch.cat((turns, turns), dim=-1)
        return both.cos(), both.sin()

    return SimpleNamespace(
        config=_config(facts),
        device=CPU,
        embed_tokens=partial(_embedded, read("embed_tokens.weight")),
        rotary_emb=rotary,
        norm=norm("norm"),
        layers=[layer(number) for number in range(facts["num_hidden_layers"])],
    )


GATED = ("gate", "up", "down")


def _embedded(table: Tensor, ids: Tensor) -> Tensor:
    return F.embedding(ids, table)


def _config(facts: Mapping[str, Any]) -> SimpleNamespace:
    """The config as the fused layers and the plan of a batch read it."""
    config = SimpleNamespace(**facts)
    config.get_text_config = lambda: config
    return config
