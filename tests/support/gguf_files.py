"""GGUF files of tiny random models, written with the package gguf as llama.cpp's converter does.

What the converter does to weights is written here by hand, after its conversion/*.py, in the other
direction than polyvec's reader.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as tf
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    "The cat sat on the mat.",
    "A much longer text: 1,234,567 digits and\nlines, two  spaces, Café, don't, x² and 漢字!",
    "def f(x):\n    return x ** 2  # code",
    "a",
]
CORPUS = [*TEXTS, "the cat looks at the vector of the passage and of the query " * 3]
SIZE, LAYERS, POSITIONS = 256, 2, 96


def byte_level_tokenizer() -> Tokenizer:
    """A small byte-level BPE with two control tokens in front, <s> and </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def bpe_fields(pre: str = "gpt-2") -> dict[str, Any]:
    """The metadata of `byte_level_tokenizer`."""
    import json

    state = json.loads(byte_level_tokenizer().to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 2)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 1,
    }


def word_piece_fields(words: list[str], *, old: bool = False) -> dict[str, Any]:
    """BERT's metadata of a vocabulary in the order of its ids, with phantom spaces.

    `old`: brackets are left as they are, as converters before 2024-09 did.
    """
    control = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}

    def phantom(word: str) -> str:
        if word in control or (old and word.startswith("[") and word.endswith("]")):
            return word
        return word[2:] if word.startswith("##") else "\u2581" + word

    ids = {"bos": "[CLS]", "eos": "[SEP]", "unknown": "[UNK]", "seperator": "[SEP]"}
    ids |= {"padding": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [phantom(word) for word in words],
        "tokenizer.ggml.token_type": [3 if word in control else 1 for word in words],
        "tokenizer.ggml.token_type_count": 2,
        **{f"tokenizer.ggml.{key}_token_id": words.index(word) for key, word in ids.items()},
    }


@dataclass(frozen=True)
class Made:
    """A model's GGUF architecture, its transformers class, and what the converter does to it."""

    arch: str
    build: Callable[..., tf.PreTrainedModel]
    values: dict[str, Any] = field(default_factory=dict)
    change: Callable[[str, torch.Tensor, Any], torch.Tensor] = lambda name, tensor, config: tensor


def sizes(vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocab, "hidden_size": SIZE, "intermediate_size": SIZE,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **more,
    }  # fmt: skip


def permute(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """LlamaModel.permute of the converter."""
    if re.search(r"(q|k)_proj\.(weight|bias)$", name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return split.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def one_more(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    return tensor + 1 if name.endswith("norm.weight") else tensor


def transposed(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    return tensor.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else tensor


def _gemma(cls: Any, config: Any, **more: Any) -> Callable[[int], tf.PreTrainedModel]:
    return lambda vocab: cls(
        config(**sizes(vocab, num_key_value_heads=2, head_dim=32, pad_token_id=1, **more))
    )


MADE = {
    "llama": Made(
        "llama",
        lambda vocab: tf.LlamaForCausalLM(
            tf.LlamaConfig(**sizes(vocab, num_key_value_heads=2, rms_norm_eps=1e-5))
        ),
        change=permute,
    ),
    "llama-embed": Made(
        "llama-embed",
        lambda vocab: tf.LlamaForCausalLM(
            tf.LlamaConfig(**sizes(vocab, num_key_value_heads=2), is_causal=False)
        ),
        change=permute,
    ),
    "qwen2": Made(
        "qwen2",
        lambda vocab: tf.Qwen2ForCausalLM(
            tf.Qwen2Config(**sizes(vocab, num_key_value_heads=2, tie_word_embeddings=True))
        ),
    ),
    "qwen3": Made(
        "qwen3",
        lambda vocab: tf.Qwen3ForCausalLM(
            tf.Qwen3Config(**sizes(vocab, num_key_value_heads=2, head_dim=32))
        ),
    ),
    "gemma": Made("gemma", _gemma(tf.GemmaForCausalLM, tf.GemmaConfig), change=one_more),
    "gemma2": Made(
        "gemma2",
        _gemma(
            tf.Gemma2ForCausalLM, tf.Gemma2Config, query_pre_attn_scalar=32, sliding_window=8,
            attn_logit_softcapping=20.0, final_logit_softcapping=10.0,
        ),
        {"attention.sliding_window": 8, "attn_logit_softcapping": 20.0,
         "final_logit_softcapping": 10.0},
        one_more,
    ),
    "gemma3": Made(
        "gemma3",
        _gemma(
            tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, query_pre_attn_scalar=32, sliding_window=8,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        {"attention.sliding_window": 8, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        one_more,
    ),
    "gemma-embedding": Made(
        "gemma-embedding",
        _gemma(
            tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, query_pre_attn_scalar=32, sliding_window=8,
            use_bidirectional_attention=True,
        ),
        {"attention.sliding_window": 8},
        one_more,
    ),
    "phi3": Made(
        "phi3",
        lambda vocab: tf.Phi3ForCausalLM(
            tf.Phi3Config(**sizes(vocab, num_key_value_heads=2, sliding_window=16))
        ),
        {"attention.sliding_window": 16, "rope.scaling.original_context_length": POSITIONS},
    ),
    "gpt2": Made(
        "gpt2",
        lambda vocab: tf.GPT2LMHeadModel(
            tf.GPT2Config(
                vocab_size=vocab, n_embd=SIZE, n_layer=LAYERS, n_head=4, n_positions=POSITIONS,
                n_inner=512, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
            )
        ),
        change=transposed,
    ),
    "starcoder2": Made(
        "starcoder2",
        lambda vocab: tf.Starcoder2ForCausalLM(
            tf.Starcoder2Config(**sizes(vocab, num_key_value_heads=2, tie_word_embeddings=True))
        ),
    ),
    "stablelm": Made(
        "stablelm",
        lambda vocab: tf.StableLmForCausalLM(
            tf.StableLmConfig(
                **sizes(
                    vocab, num_key_value_heads=2, use_qkv_bias=True,
                    rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                     "partial_rotary_factor": 0.25},
                )
            )
        ),
    ),
    "bert": Made(
        "bert",
        lambda vocab: tf.BertModel(tf.BertConfig(**sizes(vocab)), add_pooling_layer=False),
    ),
    "modern-bert": Made(
        "modern-bert",
        lambda vocab: tf.ModernBertModel(
            tf.ModernBertConfig(
                **sizes(
                    vocab, local_attention=8, num_hidden_layers=4, cls_token_id=0, sep_token_id=1
                )
            )
        ),
        {"attention.sliding_window": 8, "rope.freq_base_swa": 10000.0, "rope.scaling.type": "none"},
    ),
    "nomic-bert": Made(
        "nomic-bert",
        lambda vocab: tf.NomicBertModel(
            tf.NomicBertConfig(
                **sizes(vocab, rope_parameters={"rope_type": "default", "rope_theta": 1000.0})
            )
        ),
    ),
}  # fmt: skip
ENCODERS = ("bert", "modern-bert", "nomic-bert")
NOMIC = {
    "embeddings.LayerNorm": "emb_ln", "self_attn.o_proj": "attn.out_proj",
    "post_attention_layernorm": "norm1", "post_mlp_layernorm": "norm2", "mlp.gate_proj": "mlp.fc12",
    "mlp.up_proj": "mlp.fc11", "mlp.down_proj": "mlp.fc2",
}  # fmt: skip


def build(arch: str, vocab: int) -> tf.PreTrainedModel:
    """The tiny random model; norms and biases are random, too."""
    torch.manual_seed(0)
    model = MADE[arch].build(vocab).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(torch.randn(weight.shape) * 0.2 + ("norm" in name.lower()))
    return model


def fields_of(model: tf.PreTrainedModel, arch: str) -> dict[str, Any]:
    """The metadata about the model."""
    config = model.config
    heads = config.num_attention_heads
    found: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or config.n_inner,
        "attention.head_count": heads,
    }
    rope = getattr(config, "rope_parameters", None)
    if rope:
        rope = rope.get("full_attention", rope)
        found["rope.freq_base"] = float(rope["rope_theta"])
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        found["rope.dimension_count"] = int(size * rope.get("partial_rotary_factor", 1.0))
        if size * heads != config.hidden_size:
            found |= {"attention.key_length": size, "attention.value_length": size}
        if getattr(config, "num_key_value_heads", None):
            found["attention.head_count_kv"] = config.num_key_value_heads
    if arch in ENCODERS:
        found["attention.causal"] = False
    for name in (
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_epsilon",
        "norm_eps",
    ):
        if hasattr(config, name):
            key = "rms_epsilon" if name == "rms_norm_eps" else "epsilon"
            found[f"attention.layer_norm_{key}"] = float(getattr(config, name))
    return found | MADE[arch].values


def tensors_of(model: tf.PreTrainedModel, arch: str) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names, changed as its converter changes them."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[arch], model.config.num_hidden_layers)
    state = dict(model.state_dict())
    if getattr(model.config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    if arch == "nomic-bert":
        state = _makers_names(state)
    found = {}
    for name, tensor in state.items():
        inner, _, end = name.rpartition(".")
        inner = "output" if inner == "lm_head" else table.get_name(inner)
        assert inner is not None, name
        changed = MADE[arch].change(name, tensor, model.config)
        found[f"{inner}.{end}"] = changed.detach().contiguous().numpy()
    return found


def _makers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """nomic-embed's weights as its maker has them."""
    found = {}
    for name, tensor in state.items():
        for ours, theirs in NOMIC.items():
            name = name.replace(ours, theirs)
        name = name.replace("layers.", "encoder.layers.", 1)
        if "q_proj" in name:
            parts = [state[f"layers.{name.split('.')[2]}.self_attn.{x}_proj.weight"] for x in "qkv"]
            found[name.replace("self_attn.q_proj", "attn.Wqkv")] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            found[name] = tensor
    return found


def write(
    path: Path,
    arch: str,
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kind: str = "F32",
) -> Path:
    """Write the file; matrices of whole blocks are quantised, the others are F32.

    Keys without a dot before them, such as block_count, get the architecture's name.
    """
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        full = key if key.startswith(("tokenizer.", "general.", "split.")) else f"{arch}.{key}"
        _add(writer, full, value)
    block = gguf.constants.GGML_QUANT_SIZES[Kind[kind]][0]
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and tensor.shape[-1] % block == 0 and kind != "F32":
            writer.add_tensor(name, packed(tensor, kind), raw_dtype=Kind[kind])
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """The blocks of a matrix, of its type."""
    return q4_k(values) if kind == "Q4_K" else gguf.quantize(values.astype(np.float32), Kind[kind])


def q4_k(values: np.ndarray) -> np.ndarray:
    """Q4_K by hand, since the package gguf only unpacks it: 256 numbers in 144 bytes.

    Two half-precision factors, then of eight runs of 32 numbers a scale and a minimum in 6 bits
    each, then the numbers in 4 bits: value = d * scale * q - dmin * minimum.
    """
    runs = values.reshape(-1, 8, 32).astype(np.float32)
    low = np.minimum(runs.min(axis=2), 0)
    step = (runs.max(axis=2) - low) / 15
    d = (step.max(axis=1) / 63).astype(np.float16)
    dmin = (-low.min(axis=1) / 63).astype(np.float16)
    scale = np.round(step / np.maximum(d.astype(np.float32), 1e-12)[:, None]).astype(np.uint8)
    least = np.round(-low / np.maximum(dmin.astype(np.float32), 1e-12)[:, None]).astype(np.uint8)
    scale, least = scale.clip(0, 63), least.clip(0, 63)
    width = d.astype(np.float32)[:, None, None] * scale[:, :, None]
    shift = dmin.astype(np.float32)[:, None, None] * least[:, :, None]
    q = np.round((runs + shift) / np.maximum(width, 1e-12)).clip(0, 15).astype(np.uint8)
    bits = np.zeros((len(runs), 12), np.uint8)
    bits[:, :4] = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    bits[:, 4:8] = least[:, :4] | (least[:, 4:] >> 4) << 6
    bits[:, 8:] = (scale[:, 4:] & 15) | (least[:, 4:] & 15) << 4
    pairs = q.reshape(-1, 4, 2, 32)
    body = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(runs), 128)
    factors = np.stack([d, dmin], axis=1).view(np.uint8)
    blocks = np.concatenate([factors, bits, body], axis=1)
    return blocks.reshape(*values.shape[:-1], values.shape[-1] // 256 * 144)


def words_of_bert() -> list[str]:
    """A WordPiece vocabulary; ids of the special tokens are not those of BERT's."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:!?'-_*()#=²漢字é"
    whole = "the cat sat on mat much longer text digits and lines two spaces def return code"
    specials = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    parts = ["##s", "##ing", "##git", *(f"##{letter}" for letter in letters)]
    return list(dict.fromkeys([*specials, *letters, "[", "]", *whole.split(), *parts]))


def tokenizer_fields(arch: str) -> dict[str, Any]:
    """The metadata of the tokenizer that the tiny models of this architecture have."""
    if arch == "modern-bert":
        return bpe_fields("modern-bert")
    return word_piece_fields(words_of_bert()) if arch in ENCODERS else bpe_fields()


def make(path: Path, arch: str, kind: str = "F32", **metadata: Any) -> tf.PreTrainedModel:
    """Write a tiny model of the architecture, and return it as it was before."""
    words = tokenizer_fields(arch)
    model = build(arch, len(words["tokenizer.ggml.tokens"]))
    values = {**fields_of(model, arch), **words, **metadata}
    write(path, arch, values, tensors_of(model, arch), kind)
    return model


def sentencepiece_fields(folder: Path, kind: str) -> tuple[Any, dict[str, Any]]:
    """A small sentencepiece model, "bpe" or "unigram", and the metadata of it.

    A unigram model's tokens are in the order of XLM-R, as the converter writes them.
    """
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as proto

    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(line for text in CORPUS * 20 for line in text.split("\n")))
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / kind), model_type=kind,
        vocab_size=380 if kind == "bpe" else 110, byte_fallback=kind == "bpe",
        normalization_rule_name="identity" if kind == "bpe" else "nmt_nfkc",
        remove_extra_whitespaces=kind != "bpe", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = spm.SentencePieceProcessor(model_file=str(folder / f"{kind}.model"))
    read = proto.ModelProto()
    read.ParseFromString((folder / f"{kind}.model").read_bytes())
    tokens = [piece.piece for piece in read.pieces]
    scores = [float(piece.score) for piece in read.pieces]
    types = [int(piece.type) for piece in read.pieces]
    if kind == "bpe":
        return processor, {
            "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True,
        }  # fmt: skip
    return processor, {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": ["<s>", "<pad>", "</s>", "<unk>", *tokens[3:], "<mask>"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, *scores[3:], 0.0],
        "tokenizer.ggml.token_type": [3, 3, 3, 2, *types[3:], 3],
        "tokenizer.ggml.precompiled_charsmap": list(read.normalizer_spec.precompiled_charsmap),
        "tokenizer.ggml.add_space_prefix": True, "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True,
    }  # fmt: skip
