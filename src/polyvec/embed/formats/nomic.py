"""nomic-embed's configuration in its maker's words, for transformers' own NomicBert class.

transformers (5.23) does not read them: it takes the default sizes, 2,048 positions, and no
rotary scaling, whatever the file says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import NomicBertConfig

from polyvec.errors import ModelError

# Names of the maker (contrastors' NomicBertConfig, a GPT2Config) and of transformers.
NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "layer_norm_epsilon": "layer_norm_eps",
    "vocab_size": "vocab_size",
    "type_vocab_size": "type_vocab_size",
    "initializer_range": "initializer_range",
}
# What transformers' class computes; the maker's code has more, such as v2's experts.
COMPUTED = {
    "activation_function": ("swiglu",), "causal": (False,), "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,), "moe_every_n_layers": (0, None), "num_experts": (0, None),
    "parallel_block": (False,), "prenorm": (False,), "qkv_proj_bias": (False,),
    "rotary_emb_fraction": (1.0,), "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,), "use_rms_norm": (False, None),
}  # fmt: skip


def is_nomic(raw: Mapping[str, Any]) -> bool:
    """Whether config.json is of nomic-embed, in the maker's words."""
    return raw.get("model_type") == "nomic_bert" and "n_embd" in raw


def nomic_config(raw: Mapping[str, Any], root: Path) -> NomicBertConfig:
    """The configuration with the maker's sizes, positions and rotary scaling.

    `rotary_scaling_factor` is a dynamic NTK beyond `max_trained_positions`, up to `n_positions`.
    Raises ModelError for what only the maker's code computes.
    """
    for key, computed in COMPUTED.items():
        if key in raw and raw[key] not in computed:
            raise ModelError(
                f"{root}: nomic_bert with {key} {raw[key]!r} needs its own code "
                f"({raw.get('auto_map', {})}); read that code, then pass trust_remote_code=True"
            )
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(raw.get("rotary_emb_base") or 10_000),
    }
    positions = int(raw.get("n_positions") or 2048)
    most = positions
    if raw.get("rotary_scaling_factor"):
        most = int(raw.get("max_trained_positions") or 2048)
        rope |= {"rope_type": "dynamic", "factor": float(raw["rotary_scaling_factor"])}
    # n_positions is kept as what texts may have, see Backbone.max_positions.
    values: dict[str, Any] = {"n_positions": positions}
    values |= {ours: raw[theirs] for theirs, ours in NAMES.items() if raw.get(theirs) is not None}
    config = NomicBertConfig(**values, max_position_embeddings=most, rope_parameters=rope)
    config.architectures = ["NomicBertModel"]
    return config
