"""Half precision: right models load with vectors near float32's, wrong ones are refused."""

import functools
import zlib

import decoders
import families
import pytest
import torch
import transformers as tf
from decoders import DECODERS
from families import FAMILIES
from torch import nn
from transformers import AttentionInterface, AutoModel

from polyvec.embed.backbone import attention, precision
from polyvec.embed.backbone.attention import AttentionPlan
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import ModelError

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
BUILDS = {f"encoder {name}": functools.partial(families.build, name) for name in FAMILIES} | {
    f"decoder {name}": functools.partial(decoders.build, name) for name in DECODERS
}
MORE = {
    "nemotron": lambda: tf.NemotronConfig(**decoders._sizes()),
    "lfm2": lambda: tf.Lfm2Config(**decoders._sizes(layer_types=["conv", "full_attention"] * 2)),
    "t5": FAMILIES["t5_encoder"][0],
    "stablelm": DECODERS["stablelm"][0],
    "falcon": DECODERS["falcon"][0],
    "gpt_oss": DECODERS["gpt_oss"][0],
}


def texts() -> list:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, 49, (n,), generator=generator).numpy() for n in (5, 9, 3, 7, 20)]


@torch.no_grad()
def vectors(model: Backbone) -> torch.Tensor:
    out = model(TokenBatch.of_ids(texts())).last_BTD.float()
    return torch.stack([out[i, : len(text)].mean(0) for i, text in enumerate(texts())])


@pytest.mark.medium
@HALVES
@pytest.mark.parametrize("mode", ["native", "bidirectional"])
@pytest.mark.parametrize("name", BUILDS)
def test_half_precision_is_run_the_same_way_with_near_vectors(name, mode, dtype):
    full, half = Backbone(BUILDS[name](), 0, attention=mode), BUILDS[name]().to(dtype)
    if name == "encoder longt5" and dtype == torch.float16:
        # Its mask's -1e10 is -inf there, and padding's softmax NaN (transformers 5.23).
        with pytest.raises(ModelError, match="overflow in float16"):
            Backbone(half, 0, attention=mode)
        return
    half = Backbone(half, 0, attention=mode)
    for what in ("mechanism", "layout", "position_offset", "verdict"):
        assert getattr(half, what) == getattr(full, what)
    assert float(torch.cosine_similarity(vectors(half), vectors(full)).min()) > 0.99
    assert {p.dtype for p in half.model.parameters()} == {dtype}


def rounds_by_shape(module, args, out):
    """What another machine's kernels do: each shape of a batch has roundings of its own."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(tuple(out.shape)).encode()))
    steps = torch.randint(-4, 5, out.shape, generator=generator)
    return (out.float() * (1 + steps * torch.finfo(out.dtype).eps)).to(out.dtype)


@HALVES
@pytest.mark.parametrize("name", MORE)
def test_rounding_that_depends_on_the_batch_is_no_leak(name, dtype):
    for seed in range(3):
        torch.manual_seed(seed)
        config = MORE[name]()
        model = tf.T5EncoderModel(config) if name == "t5" else AutoModel.from_config(config)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.2)
                module.register_forward_hook(rounds_by_shape)
        Backbone(model.to(dtype).eval(), 0)
        if name != "lfm2":
            Backbone(model, 0, attention="bidirectional")


@pytest.fixture
def plant():
    yield lambda function: AttentionInterface.register(attention.NAME, function)
    AttentionInterface.register(attention.NAME, attention.plan_attention)


def deaf(module, query, key, value, mask, plan=None, **options):
    causal = AttentionPlan(("causal",) * len(plan.modes), plan.runs, plan.real_BT, masks={})
    return attention.plan_attention(module, query, key, value, mask, plan=causal, **options)


def porous(module, query, key, value, mask, plan=None, **options):
    if plan.real_BT is not None:
        plan = AttentionPlan(plan.modes, real_BT=torch.ones_like(plan.real_BT), masks={})
    return attention.plan_attention(module, query, key, value, mask, plan=plan, **options)


@HALVES
@pytest.mark.parametrize("large", [False, True])
def test_a_model_that_stays_causal_is_refused(plant, monkeypatch, dtype, large):
    if large:
        monkeypatch.setattr(precision, "COPIED", 0)
    plant(deaf)
    with pytest.raises(ModelError, match=r"LlamaModel.*'bidirectional'.*causal in all 4 layers"):
        Backbone(decoders.build("llama").to(dtype), 0, attention="bidirectional")


@HALVES
def test_a_model_that_stays_causal_in_half_precision_only_is_refused(plant, dtype):
    def half_deaf(module, query, *args, **options):
        wrong = deaf if query.dtype == dtype else attention.plan_attention
        return wrong(module, query, *args, **options)

    plant(half_deaf)
    with pytest.raises(ModelError, match=r"LlamaModel: in .*float16 tokens see others"):
        Backbone(decoders.build("llama").to(dtype), 0, attention="bidirectional")


@HALVES
def test_padding_that_is_seen_is_refused(plant, dtype):
    plant(porous)
    with pytest.raises(ModelError, match="padding or another text is seen"):
        Backbone(decoders.build("llama").to(dtype), 0, attention="bidirectional", layout="padded")


@HALVES
@pytest.mark.parametrize("large", [False, True])
def test_positions_of_small_weights_are_counted_from_the_right_offset(dtype, large, monkeypatch):
    """As initialised, a position moves a state by less than half precision's tolerance."""
    if large:
        monkeypatch.setattr(precision, "COPIED", 0)
    torch.manual_seed(0)
    model = AutoModel.from_config(FAMILIES["xlm_roberta"][0]())
    for name, parameter in model.named_parameters():
        if "position" in name:
            parameter.data.mul_(0.1)
    assert Backbone(model.to(dtype).eval(), 0).position_offset == model.config.pad_token_id + 1


def test_overflow_in_float16_says_so():
    model = decoders.build("llama")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(100)
    assert Backbone(model, 0).verdict is not None
    with pytest.raises(ModelError, match=r"LlamaModel: the states overflow in float16"):
        Backbone(model.half(), 0)


def test_a_family_that_runs_in_float32_only_says_so(tmp_path):
    config = tf.XLNetConfig(vocab_size=40, d_model=32, n_layer=2, n_head=4, d_inner=48)
    tf.XLNetModel(config).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with pytest.raises(
        ModelError, match=r"XLNetModel cannot run in half precision .*dtype='float32'"
    ):
        Backbone(model)
