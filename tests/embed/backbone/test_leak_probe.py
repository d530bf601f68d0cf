"""The leak probe tells rounding from attention, in every precision."""

import zlib

import pytest
import torch
import transformers as tf
from decoders import build
from transformers import AttentionInterface

from polyvec.embed.backbone import attention, leak_probe
from polyvec.embed.backbone.attention import AttentionPlan, AttentionSpec
from polyvec.embed.backbone.backbone import Backbone
from polyvec.errors import ModelError

HALVES = [torch.bfloat16, torch.float16]


def rounded_by_shape(states: torch.Tensor, key: object) -> torch.Tensor:
    """Each number as it is or one rounding away: another machine's kernel for this key."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    steps = torch.randint(-1, 2, states.shape, generator=generator)
    return (states.float() * (1 + steps * torch.finfo(states.dtype).eps)).to(states.dtype)


@pytest.fixture
def other_kernels():
    """An attention function whose results round differently for each shape of its inputs."""
    honest = attention.plan_attention

    def rounding(module, query, key, value, mask, **options):
        out, weights = honest(module, query, key, value, mask, **options)
        return rounded_by_shape(out, tuple(query.shape)), weights

    AttentionInterface.register(attention.NAME, rounding)
    yield
    AttentionInterface.register(attention.NAME, honest)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("mode", ["causal", "bidirectional", "last-2", "prefix"])
def test_kernels_that_depend_on_shapes_are_no_leak(other_kernels, mode, dtype):
    assert Backbone(build("llama").to(dtype), 0, attention=mode).layout == "packed"


@pytest.mark.parametrize("dtype", HALVES)
def test_a_neighbour_that_is_seen_is_found_in_half_precision(dtype):
    honest = attention.plan_attention

    def leaky(module, query, key, value, mask, plan=None, **options):
        everything = AttentionPlan(plan.modes, runs=((1, query.shape[2]),))
        return honest(module, query, key, value, mask, plan=everything, **options)

    AttentionInterface.register(attention.NAME, leaky)
    try:
        model = Backbone(build("llama").to(dtype), 0)
    finally:
        AttentionInterface.register(attention.NAME, honest)
    assert model.layout == "padded" and "differs" in model.layout_reason


def causal_sums(texts, prefix):
    """A causal model of two layers, rounded by what the whole batch holds, as experts are."""
    batch = [text.tolist() for text in texts]
    found = []
    for text in texts:
        table = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
        states = [table[text]]
        for layer in (1, 2):
            sums = states[-1].float().cumsum(0).bfloat16()
            states.append(rounded_by_shape(sums, (layer, batch)))
        found.append(tuple(states))
    return found


def test_experts_that_round_by_their_groups_see_nothing_ahead():
    """SILENT row 1 has a converse: a causal model of half precision must not be refused."""
    ids, other = leak_probe.probe_ids(100)
    verdict = leak_probe.check(causal_sums, ids, other, AttentionSpec("causal"))
    assert str(verdict) == "causal in all 2 layers"

    def looks_ahead(texts, prefix):
        return [
            (first, *(states + states.flip(0) for states in rest))
            for first, *rest in causal_sums(texts, prefix)
        ]

    with pytest.raises(ModelError, match="bidirectional from the first of 2 layers"):
        leak_probe.check(looks_ahead, ids, other, AttentionSpec("causal"))


def unusual(name):
    """Models that cannot run, or not in batches, in float32."""
    torch.manual_seed(0)
    words = {"vocab_size": 40}
    if name == "Funnel":
        config = tf.FunnelConfig(**words, d_model=32, block_sizes=[1, 1], n_head=4, d_head=8)
        return tf.FunnelModel(config)
    if name == "Reformer":
        config = tf.ReformerConfig(
            **words, hidden_size=32, num_attention_heads=2, attn_layers=["local", "local"],
            local_attn_chunk_length=8, axial_pos_shape=[8, 8], axial_pos_embds_dim=[16, 16],
        )  # fmt: skip
        return tf.ReformerModel(config)
    config = tf.NystromformerConfig(
        **words, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        segment_means_seq_len=8, num_landmarks=4,
    )  # fmt: skip
    return tf.NystromformerModel(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Funnel", "FunnelModel: the states of a text change .* in a batch with a longer text"),
        ("Reformer", "ReformerModel cannot run short texts"),
        ("Nystromformer", "NystromformerModel cannot run short texts"),
    ],
)
def test_a_model_whose_layers_cannot_be_probed_is_probed_by_its_last_states(name, message):
    """Funnel's vectors depended on the batch; the others raised transformers' own errors."""
    with pytest.raises(ModelError, match=message):
        Backbone(unusual(name).eval())
