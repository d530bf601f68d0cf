"""Tiny random models of the architectures of GGUF files, and their metadata."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from gguf_converter import (
    grouped,
    mamba_changed,
    one_kind_after_another,
    one_more,
    permute,
    tiled,
    transposed,
)

SIZE, LAYERS, POSITIONS = 256, 2, 96


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


def _gemma(cls: Any, config: Any, **more: Any) -> Callable[[int], tf.PreTrainedModel]:
    return lambda vocab: cls(
        config(**sizes(vocab, num_key_value_heads=2, head_dim=32, pad_token_id=1, **more))
    )


JPLOSKI = {"context_length": POSITIONS, "tensor_data_layout": "jploski"}


QWEN35 = {
    "full_attention_interval": 2, "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2,
    "ssm.time_step_rank": 6, "ssm.inner_size": 6 * 32, "rope.dimension_sections": [4, 2, 2, 0],
}  # fmt: skip


def qwen35_sizes(vocab: int) -> dict[str, Any]:
    return sizes(
        vocab, num_key_value_heads=2, head_dim=32, linear_num_key_heads=2, linear_key_head_dim=16,
        linear_num_value_heads=6, linear_value_head_dim=32,
        layer_types=["linear_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                         "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    )  # fmt: skip


def _falcon(**more: Any) -> Callable[[int], tf.PreTrainedModel]:
    return lambda vocab: tf.FalconForCausalLM(
        tf.FalconConfig(
            vocab_size=vocab, hidden_size=SIZE, num_hidden_layers=LAYERS, num_attention_heads=4,
            ffn_hidden_size=512, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
            **({"num_kv_heads": 1} | more),
        )
    )  # fmt: skip


def _nemotron(part: float) -> Callable[[int], tf.PreTrainedModel]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": part}
    return lambda vocab: tf.NemotronForCausalLM(
        tf.NemotronConfig(**sizes(vocab, num_key_value_heads=2, rope_parameters=rope))
    )


def _t5(
    inner: str, cls: Any = tf.T5EncoderModel, config: Any = tf.T5Config
) -> Callable[[int], tf.PreTrainedModel]:
    return lambda vocab: cls(
        config(
            vocab_size=vocab, d_model=SIZE, d_kv=32, d_ff=512, num_layers=LAYERS, num_heads=4,
            relative_attention_num_buckets=16, feed_forward_proj=inner, initializer_factor=1.0,
            eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip


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
    "qwen2moe": Made(
        "qwen2moe",
        lambda vocab: tf.Qwen2MoeForCausalLM(
            tf.Qwen2MoeConfig(
                **sizes(vocab, num_key_value_heads=2, moe_intermediate_size=64, num_experts=4,
                        shared_expert_intermediate_size=32, num_experts_per_tok=2)
            )
        ),
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64,
         "expert_shared_feed_forward_length": 32},
        lambda name, tensor, config: tensor[0] if "shared_expert_gate" in name else tensor,
    ),
    "qwen3moe": Made(
        "qwen3moe",
        lambda vocab: tf.Qwen3MoeForCausalLM(
            tf.Qwen3MoeConfig(
                **sizes(vocab, num_key_value_heads=2, head_dim=32, moe_intermediate_size=64,
                        num_experts=4, num_experts_per_tok=2, norm_topk_prob=True)
            )
        ),
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64},
    ),
    "falcon": Made("falcon", _falcon(), JPLOSKI, grouped),
    "falcon-40b": Made(
        "falcon", _falcon(new_decoder_architecture=True, num_kv_heads=2), JPLOSKI, grouped
    ),
    "bloom": Made(
        "bloom",
        lambda vocab: tf.BloomForCausalLM(
            tf.BloomConfig(
                vocab_size=vocab, hidden_size=SIZE, n_layer=LAYERS, n_head=4, initializer_range=0.3,
                bos_token_id=0, eos_token_id=1, pad_token_id=1,
            )
        ),
        {"context_length": POSITIONS, "feed_forward_length": 4 * SIZE},
        one_kind_after_another,
    ),
    "nemotron": Made("nemotron", _nemotron(0.5), change=one_more),
    "nemotron-whole": Made("nemotron", _nemotron(1.0), change=one_more),
    "lfm2": Made(
        "lfm2",
        lambda vocab: tf.Lfm2ForCausalLM(
            tf.Lfm2Config(
                **sizes(vocab, num_key_value_heads=2, layer_types=["conv", "full_attention"],
                        block_auto_adjust_ff_dim=False)
            )
        ),
        {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3,
         "attention.layer_norm_rms_epsilon": 1e-5},
        lambda name, tensor, config: tensor[:, 0] if "conv.conv" in name else tensor,
    ),
    "mamba": Made(
        "mamba",
        lambda vocab: tf.MambaForCausalLM(
            tf.MambaConfig(
                vocab_size=vocab, hidden_size=SIZE, num_hidden_layers=LAYERS, state_size=8,
                initializer_range=0.3, bos_token_id=0, eos_token_id=1, pad_token_id=1,
            )
        ),
        {"context_length": 2**20, "attention.head_count": 0, "feed_forward_length": 0,
         "ssm.conv_kernel": 4, "ssm.inner_size": 2 * SIZE, "ssm.state_size": 8,
         "ssm.time_step_rank": 16, "ssm.dt_b_c_rms": False,
         "attention.layer_norm_rms_epsilon": 1e-5},
        mamba_changed,
    ),
    "gpt-oss": Made(
        "gpt-oss",
        lambda vocab: tf.GptOssForCausalLM(
            tf.GptOssConfig(
                **sizes(vocab, num_key_value_heads=2, head_dim=32, sliding_window=8,
                        num_local_experts=4, num_experts_per_tok=2)
            )
        ),
        {"attention.sliding_window": 8, "expert_count": 4, "expert_used_count": 2,
         "expert_feed_forward_length": SIZE, "rope.scaling.type": "yarn",
         "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096},
    ),
    "minimax-m2": Made(
        "minimax-m2",
        lambda vocab: tf.MiniMaxM2ForCausalLM(
            tf.MiniMaxM2Config(
                **sizes(vocab, num_key_value_heads=2, head_dim=32, num_local_experts=4,
                        num_experts_per_tok=2,
                        rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                         "partial_rotary_factor": 0.5})
            )
        ),
        {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": SIZE,
         "expert_gating_func": 2},
    ),
    "qwen35": Made(
        "qwen35",
        lambda vocab: tf.Qwen3_5ForCausalLM(tf.Qwen3_5TextConfig(**qwen35_sizes(vocab))),
        QWEN35, tiled,
    ),
    "qwen35moe": Made(
        "qwen35moe",
        lambda vocab: tf.Qwen3_5MoeForCausalLM(
            tf.Qwen3_5MoeTextConfig(
                **qwen35_sizes(vocab), moe_intermediate_size=64, num_experts=4,
                num_experts_per_tok=2, shared_expert_intermediate_size=32,
            )
        ),
        {**QWEN35, "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64,
         "expert_shared_feed_forward_length": 32},
        tiled,
    ),
    "t5": Made("t5", _t5("gated-gelu")),
    "t5-relu": Made("t5", _t5("relu")),
    "umt5": Made("t5", _t5("gated-gelu", tf.UMT5EncoderModel, tf.UMT5Config)),
    "t5encoder": Made("t5encoder", _t5("gated-gelu")),
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


T5 = ("t5", "t5-relu", "umt5", "t5encoder")


ENCODERS = ("bert", "modern-bert", "nomic-bert", *T5)


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
        buffers = [each for each in model.named_buffers() if each[0].endswith("_bias")]
        for name, weight in [*model.named_parameters(), *buffers]:
            if weight.ndim == 1 or name.endswith("_bias"):
                weight.copy_(torch.randn(weight.shape) * 0.2 + ("norm" in name.lower()))
    return model
