"""Tiny random checkpoints on disk, each of the family that a recipe's backbone belongs to."""

import functools
import tempfile
from pathlib import Path

import torch
import transformers as tf
from families import tokenizer

LAYERS = 6
LENGTH = 1024


def _sizes(**more) -> dict:
    sizes = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return sizes | more


def _gpt(**more) -> dict:
    specials = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {"vocab_size": len(tokenizer()), **specials, **more}


# How a hub id begins, and what family it is.
BACKBONES = {
    "google-t5/": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=len(tokenizer()), d_model=32, d_kv=8, d_ff=48, num_layers=LAYERS,
            num_heads=4, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
        )
    ),
    "facebook/opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(
            **_gpt(hidden_size=32, ffn_dim=48, num_hidden_layers=LAYERS, num_attention_heads=4,
                   max_position_embeddings=LENGTH, word_embed_proj_dim=32)
        )
    ),
    "mistralai/": lambda: tf.MistralForCausalLM(
        tf.MistralConfig(**_sizes(num_key_value_heads=2, sliding_window=None))
    ),
    "intfloat/e5-mistral": lambda: tf.MistralForCausalLM(
        tf.MistralConfig(**_sizes(num_key_value_heads=2, sliding_window=64))
    ),
    "meta-llama/": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_sizes(num_key_value_heads=2))),
    "openbmb/MiniCPM": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_sizes())),
    "EleutherAI/gpt-neo": lambda: tf.GPTNeoForCausalLM(
        tf.GPTNeoConfig(
            **_gpt(hidden_size=32, num_layers=LAYERS, num_heads=4, window_size=64,
                   max_position_embeddings=LENGTH, attention_types=[[["global", "local"], 3]])
        )
    ),
    "EleutherAI/pythia": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_sizes())),
    "Qwen/": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_sizes(num_key_value_heads=2))),
    "openai-community/gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(**_gpt(n_embd=32, n_layer=LAYERS, n_head=4, n_positions=LENGTH))
    ),
    "bigscience/bloom": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(**_gpt(hidden_size=32, n_layer=LAYERS, n_head=4))
    ),
    "allenai/OLMoE": lambda: tf.OlmoeForCausalLM(
        tf.OlmoeConfig(**_sizes(num_key_value_heads=2, num_experts=4, num_experts_per_tok=2))
    ),
}  # fmt: skip


@functools.cache
def checkpoint(backbone: str) -> Path:
    """A folder with random weights of the backbone's family, made once a run.

    The tokenizer adds BOS after a prefix "bos:", as Llama's does.
    """
    bos, backbone = backbone.startswith("bos:"), backbone.removeprefix("bos:")
    start = max((name for name in BACKBONES if backbone.startswith(name)), key=len)
    torch.manual_seed(0)
    model = BACKBONES[start]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    folder = Path(_root.name) / (start.replace("/", "-") + ("bos" if bos else ""))
    model.save_pretrained(folder)
    words = tokenizer(bos=bos, eos=start == "google-t5/")
    words.model_max_length = LENGTH
    words.save_pretrained(folder)
    return folder


_root = tempfile.TemporaryDirectory()
