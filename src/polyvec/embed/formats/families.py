"""Models whose makers ship their own code, and what that code does that config.json does not say.

`auto_map` in config.json names the maker's classes. For the families here transformers' own class
gives the same states once it is told what the maker's class changes, so no code is run. Values
are from the makers' public code and model cards; their tests recompute each by another way.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from tokenizers import processors
from torch import Tensor, nn
from transformers import AutoConfig, LlamaConfig, MistralConfig, PretrainedConfig

from polyvec.embed.formats.schema import read_json
from polyvec.embed.inputs.contract import read_contract
from polyvec.embed.inputs.templates import Template
from polyvec.embed.pooling.attention import LatentAttention
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.projection.dense import Normalize
from polyvec.errors import ModelError, OwnCodeWarning

# LLM2Vec.prepare_for_tokenization: what surrounds instruction and text, by the base model.
FRAMES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "mistralai/Mistral-7B-Instruct-v0.2": ("[INST] ", " [/INST]"),
    "meta-llama/Llama-2-7b-chat-hf": ("[INST] ", " [/INST]"),
    "google/gemma-2-9b-it": ("<bos><start_of_turn>user\n", "<end_of_turn>"),
    "Qwen/Qwen2-1.5B-Instruct": ("<|im_start|>user\n", "<|im_end|>"),
    "Qwen/Qwen2-7B-Instruct": ("<|im_start|>user\n", "<|im_end|>"),
}
# Our names of the poolings in llm2vec_config.json and in NVIDIA's config.json. LLM2Vec's
# weighted_mean counts from the text, not from BOS as sentence-transformers' does.
POOLINGS = {
    "weighted_mean": "weighted_mean_text",
    "mean": "mean", "avg": "mean", "eos_token": "last", "last_token": "last", "last": "last",
    "cls": "first",
}  # fmt: skip


class Chain(Protocol):
    """What a folder declares of its modules, see modules.Declared."""

    pooling: tuple[str, ...] | PoolingModule | None
    pool_prompt: bool
    projections: list[nn.Module]


@dataclass(frozen=True, slots=True)
class Family:
    """What a maker's code does where the folder has no modules.json that says so.

    Every family here is a decoder without a causal mask and without a sliding window.
    """

    name: str
    pooling: str = "mean"
    normalize: bool = False
    pool_prompt: bool = True
    add_eos: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None


# By a maker's class as auto_map names it, module and class; "*": any class of the module.
LLM2VEC = Family("LLM2Vec", max_length=512)  # its template says what is pooled
GRITLM = Family(
    "GritLM", normalize=True, pool_prompt=False,
    prompts={"document": "<|embed|>\n"}, default_prompt="document",
)  # fmt: skip
NV_EMBED = Family("NV-Embed", normalize=True, pool_prompt=False, add_eos=True)
FAMILIES: dict[str, Family] = {
    # gte-Qwen1.5 and 2, stella_en_1.5B, inf-retriever: is_causal=False in their forward.
    "modeling_qwen.Qwen2Model": Family("gte-Qwen2", pooling="last", normalize=True, add_eos=True),
    **dict.fromkeys(
        ("modeling_gritlm7b.*", "modeling_gritlm8x7b.*", "modeling_mistral_gritlm.*",
         "modeling_mixtral_gritlm.*"),
        GRITLM,
    ),
    **dict.fromkeys(
        [f"modeling_{kind}_encoder.*" for kind in ("llama", "mistral", "gemma", "qwen2")],
        LLM2VEC,
    ),
    **dict.fromkeys(
        [f"bidirectional_{kind}.*" for kind in ("llama", "mistral", "gemma", "qwen2")], LLM2VEC
    ),
    "llama_bidirectional_model.LlamaBidirectionalModel": Family("Llama-Nemotron"),
    "modeling_nvembed.NVEmbedModel": NV_EMBED,
}  # fmt: skip
# What transformers has no class of its own for, by its model_type.
TYPES: dict[str, Family] = {"llama_bidirec": Family("Llama-Nemotron"), "nvembed": NV_EMBED}
CONFIGS = ("adapter_config.json", "config.json")
# Where the decoder's weights are in a maker's files, if not as in transformers' class.
KEY_MAPPING = {r"^embedding_model\.": ""}
# model_types under which transformers has taken over the maker's model itself.
ADOPTED = ("nomic_bert", "gte", "jina_embeddings_v3")
# The latents' weights in NV-Embed's files, and in LatentAttention.
LATENTS, BLOCK = "latent_attention_model.", "cross_attend_blocks"
LATENT_KEYS = {
    "latents": "latents_ND",
    **{
        f"{BLOCK}.{place}.{theirs}.{end}": f"{ours}.{end}"
        for place, theirs, ours in (
            (0, "norm", "norm_states"), (0, "norm_context", "norm_latents"),
            (1, "norm", "norm_feed"), (1, "fn.net.0", "feed.up"), (1, "fn.net.2", "feed.down"),
        )
        for end in ("weight", "bias")
    },
    f"{BLOCK}.0.fn.to_q.weight": "attention.to_query.weight",
    f"{BLOCK}.0.fn.to_out.weight": "attention.to_out.weight",
}  # fmt: skip


def family_of(*folders: Path) -> Family | None:
    """The family that the first config.json with an auto_map belongs to; None for others."""
    for folder in folders:
        kind, named = _own_class(folder)
        if kind in TYPES:
            return TYPES[kind]
        if named is not None:
            where, _, cls = named.rpartition("--")[2].rpartition(".")
            found = FAMILIES.get(f"{where}.{cls}") or FAMILIES.get(f"{where}.*")
            if found is not None:
                return found
    return None


def _own_class(folder: Path) -> tuple[str | None, str | None]:
    """The model_type of a folder, and the maker's class that auto_map names for AutoModel."""
    raw = read_json(folder / "config.json", {})
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    classes = raw.get("auto_map") if isinstance(raw, dict) else None
    named = classes.get("AutoModel") if isinstance(classes, dict) else None
    return (
        kind if isinstance(kind, str) else None,
        named if isinstance(named, str) else None,
    )


def warn_of_own_code(folder: Path) -> None:
    """Warns that transformers' class is used in place of one that the folder names."""
    kind, named = _own_class(folder)
    if named is not None and kind not in ADOPTED:
        warnings.warn(
            f"{folder}: config.json names the maker's own code ({named}), which does not run; "
            f"transformers' {kind} is used and may give other vectors (a mask, a pooling). Read "
            "that code, then pass trust_remote_code=True",
            OwnCodeWarning,
            stacklevel=5,
        )


def family_config(family: Family, root: Path) -> PretrainedConfig:
    """The configuration of transformers' own class, told what the maker's class changes."""
    raw = read_json(root / "config.json")
    kinds: dict[str, tuple[Any, Any]] = {
        "llama_bidirec": (LlamaConfig, raw),
        "nvembed": (MistralConfig, raw.get("text_config", {})),
    }
    cls, values = kinds.get(raw.get("model_type"), (None, None))
    drop = ("model_type", "auto_map", "architectures", "_name_or_path", "transformers_version")
    if cls is None:
        config = AutoConfig.from_pretrained(root)
    else:
        config = cls(**{key: value for key, value in values.items() if key not in drop})
    if not any(name.endswith("ForCausalLM") for name in config.architectures or ()):
        # A maker's LlamaEncoderModel is no encoder of an encoder-decoder.
        config.architectures = [type(config).__name__.replace("Config", "Model")]
    if hasattr(config, "auto_map"):
        del config.auto_map  # a saved folder needs no code: the next line says it all
    config.is_causal = False
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
        if getattr(config, "layer_types", None):
            config.layer_types = ["full_attention"] * config.num_hidden_layers
    return config


def follow_family(
    family: Family, declared: Chain, tokenizer: Any, folders: Sequence[Path], *, bare: bool
) -> Template | None:
    """Declares what the maker's code does, and returns its template if it has one.

    `folders` are those of adapters and, last, of the model. `bare`: there is no modules.json,
    whose poolings and projections are kept otherwise.
    """
    if family is NV_EMBED and declared.pooling in (None, ("mean",)):
        declared.pooling = read_latents(folders[-1])  # between the decoder and its mean
    if not bare:
        return None
    declared.pooling = declared.pooling or (_pooling(family, folders),)
    declared.pool_prompt = family.pool_prompt
    if family.normalize:
        declared.projections.append(Normalize())
    if family is not LLM2VEC:
        return None
    raw = [read_json(each / name, {}) for each in folders for name in CONFIGS]
    bases = [each.get("base_model_name_or_path") or each.get("_name_or_path") for each in raw]
    return _llm2vec_template(tokenizer, bases)


def _pooling(family: Family, folders: Sequence[Path]) -> str:
    """The pooling that the maker's own settings name, else the family's."""
    for folder in folders:
        theirs = read_json(folder / "llm2vec_config.json", {}).get("pooling_mode")
        theirs = theirs or read_json(folder / "config.json", {}).get("pooling")
        if theirs is not None and theirs not in POOLINGS:
            raise ModelError(f"{folder}: pooling {theirs!r} of {family.name} is not supported")
        if theirs is not None:
            return POOLINGS[theirs]
    return family.pooling


def _llm2vec_template(tokenizer: Any, bases: Sequence[str | None]) -> Template:
    """LLM2Vec's form around a text; an instruction is given with its space at the end.

    BOS and instruction are not pooled, what closes the frame is, as LLM2Vec's embed mask has it.
    The tokenizer's BOS moves into the template, because what it adds by itself is pooled.
    """
    start, end = next((FRAMES[base] for base in bases if base and base in FRAMES), ("", ""))
    contract = read_contract(tokenizer, None)
    if contract.prefix == (tokenizer.bos_token_id,) and not contract.suffix:
        backend = tokenizer.backend_tokenizer
        backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    form = "{!bos}" + start + "{!instruction}{text}" + (f"{{+{end}}}" if end else "")
    return Template("llm2vec", (form,), (form,), pool_prompt=False, defaults={"instruction": ""})


def read_latents(root: Path) -> LatentAttention:
    """NV-Embed's latents, with the weights that are beside its decoder's."""
    raw = read_json(root / "config.json")["latent_attention_config"]
    module = LatentAttention(
        raw["hidden_dim"],
        num_latents=raw["num_latents_value"],
        num_heads=raw["num_cross_heads"],
        head_size=raw["cross_dim_head"],
    )
    found: dict[str, Tensor] = {}
    for path in sorted(root.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if key.startswith(LATENTS):
                    found[key.removeprefix(LATENTS)] = file.get_tensor(key)
    state = {LATENT_KEYS[key]: value for key, value in found.items() if key in LATENT_KEYS}
    pair = found.get(f"{BLOCK}.0.fn.to_kv.weight")
    if pair is not None:
        state["attention.to_key.weight"], state["attention.to_value.weight"] = pair.chunk(2)
    unknown = set(found) - set(LATENT_KEYS) - {f"{BLOCK}.0.fn.to_kv.weight"}
    missing = set(module.state_dict()) - set(state)
    if unknown or missing:
        raise ModelError(
            f"{root}: NV-Embed's latents {sorted(unknown) or sorted(missing)} "
            f"{'are not known' if unknown else 'are missing'}"
        )
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{root}: {' '.join(str(error).split())[:300]}") from None
    return module
