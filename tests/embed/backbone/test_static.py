"""Products with fixed levels: near the exact states, told apart from others, and never NaN lost."""

import copy
import pickle

import numpy as np
import pytest
import torch
from test_fast import CONFIGS, SMALL
from test_fused import made, states, texts
from torch.nn import functional as F
from transformers import BertConfig

from polyvec import Embedder
from polyvec.embed.backbone import backbone as backbones
from polyvec.embed.backbone import fast, static
from polyvec.embed.backbone.fast import Int8Linear
from polyvec.embed.backbone.linears import Linear, UnsuitedError
from polyvec.embed.backbone.static import Levels, StaticLinear, rounded_up
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.embed.sample import SAMPLE, sample_batch

GELU = ("gelu", "none")


@pytest.fixture(autouse=True)
def integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's choice, whatever this one would choose."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("oneDNN's layouts are used on x86 processors with AVX2 only")
    if fast._seconds(Int8Linear) == float("inf"):
        pytest.skip("this torch has no products of 8 bits")
    monkeypatch.setattr(backbones, "fast_linears", integers_first)


def integers_first() -> tuple[type[Linear], ...]:
    return Int8Linear, Linear


def sample() -> TokenBatch:
    draw = np.random.default_rng(7)
    return TokenBatch.of_ids([draw.integers(5, 90, length) for length in (20, 9, 9, 3, 1)])


@pytest.mark.parametrize("name", ["bert", "bert relu", "roberta"])
def test_states_are_near_the_exact_ones_and_not_equal(name):
    backbone, batch = made(CONFIGS[name]), texts(11, 7, 7, 3, 1)
    exact = states(backbone, batch)
    backbone.compute_fast(sample())
    assert backbone.fast and backbone.products == "static int8"
    found = states(backbone, batch)
    assert torch.cosine_similarity(found, exact).min() > 0.99
    assert not torch.equal(found, exact)


@pytest.mark.parametrize("config", [CONFIGS["llama"], BertConfig(**SMALL, hidden_act="silu")])
def test_other_layers_find_their_levels_token_by_token(config):
    backbone = made(config)
    backbone.compute_fast(sample())
    assert backbone.fast and backbone.products == "int8"


def test_other_attention_than_the_samples_finds_levels_token_by_token():
    backbone = made(CONFIGS["bert"], attention="causal")
    backbone.compute_fast(sample())
    assert backbone.products == "int8"


def test_a_text_has_the_same_states_whatever_is_beside_it():
    backbone, draw = made(CONFIGS["bert"]), np.random.default_rng(2)
    backbone.compute_fast(sample())
    text = draw.integers(5, 90, 9)
    alone = states(backbone, TokenBatch.of_ids([text]))
    loud = [draw.integers(5, 90, length) for length in (40, 17, 30, 60, 60, 60, 40)]
    beside = states(backbone, TokenBatch.of_ids([text, *loud]))[:9]
    # A sum in another order may turn one number to the next level.
    assert torch.cosine_similarity(alone, beside).min() > 0.9999


@torch.inference_mode()
def test_numbers_have_their_nearest_level_and_those_out_of_range_the_last():
    levels = Levels(step=0.5, zero=100)
    product = StaticLinear(torch.eye(8), None, levels)
    x_TD = torch.tensor([[0.0, 0.24, 0.26, -0.5, 77.5, 78.0, -50.2, 1e30], [-1e30] + [0.5] * 7])
    expected = [[100, 100, 101, 99, 255, 255, 0, 255], [0] + [101] * 7]
    assert product.rounded(x_TD).tolist() == expected
    back_TD = (torch.tensor(expected) - levels.zero) * levels.step
    torch.testing.assert_close(product(x_TD), back_TD)


@torch.inference_mode()
def test_an_activation_comes_as_levels():
    torch.manual_seed(0)
    weight_ND, bias_N, x_TD = torch.randn(16, 32) / 6, torch.randn(16), torch.randn(5, 32)
    product = StaticLinear(weight_ND, bias_N, Levels(8 / 255, 128))
    out = Levels(4 / 255, 11)
    found_TN = product.activated(product.rounded(x_TD), GELU, out)
    assert found_TN.dtype == torch.uint8
    wanted_TN = F.gelu(F.linear(x_TD, weight_ND, bias_N))
    error_TN = (found_TN.float() - out.zero) * out.step - wanted_TN
    assert error_TN.abs().max() < 0.05


@torch.inference_mode()
def test_divided_inputs_give_the_same_outputs():
    torch.manual_seed(0)
    size_D = torch.exp2(torch.arange(32) / 4.0)
    x_TD, weight_ND = torch.randn(64, 32) * size_D, torch.randn(16, 32) / size_D
    wanted_TN = F.linear(x_TD, weight_ND)
    whole = StaticLinear(weight_ND, None, Levels.between(x_TD.min(), x_TD.max()))
    divided_TD = x_TD / size_D
    levels = Levels.between(divided_TD.min(), divided_TD.max())
    divided = StaticLinear(weight_ND, None, levels, size_D)
    errors = [
        float((each(x_TD) - wanted_TN).norm() / wanted_TN.norm()) for each in (divided, whole)
    ]
    assert errors[0] < 0.02 * wanted_TN.norm() and errors[1] > 3 * errors[0]


def test_a_channel_of_large_numbers_costs_the_others_nothing(monkeypatch):
    backbone, batch = made(CONFIGS["bert"]), texts(30, 20, 9)
    with torch.no_grad():
        for layer in backbone.model.encoder.layer:
            layer.intermediate.dense.bias[3] = 400.0
            layer.output.dense.weight[:, 3] /= 400
    exact = states(backbone, batch)

    def error() -> float:
        backbone.compute_fast(sample())
        assert backbone.products == "static int8"
        return 1 - float(torch.cosine_similarity(states(backbone, batch), exact).mean())

    apart = error()
    monkeypatch.setattr(static, "MULTIPLE", 10_000)  # all channels together
    monkeypatch.setattr(static.StaticInt8, "least_cosine", 0.0)
    assert apart < 0.001 and error() > 3 * apart


def test_all_states_of_a_text_with_nan_are_nan():
    backbone, lengths = made(CONFIGS["bert"]), [21] * 9 + [37] * 5
    draw = np.random.default_rng(1)
    ids = [draw.integers(5, 89, length) for length in lengths]
    ids[6][4] = 89
    batch = TokenBatch.of_ids(ids)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[89] = torch.nan
    backbone.compute_fast(TokenBatch.of_ids(ids[:3]))
    # Random ids of the sample would meet the one of NaN.
    assert backbone.products == "int8"
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[89] = 1.0
    backbone.compute_fast(TokenBatch.of_ids(ids[:3]))
    usual = states(backbone, batch).split(lengths)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[89] = torch.nan
    with torch.inference_mode():
        found = backbone(batch, needs=frozenset({"all_layers"}))
    assert backbone.runner.fused._made[1].linear.name == "static int8"
    for layer_BTD in (*found.all_layers, found.last_BTD):
        parts = layer_BTD[found.attention_mask_BT].split(lengths)
        bad = [i for i, each in enumerate(parts) if not bool(each.isfinite().all())]
        assert bad == [6] and bool(parts[6].isnan().all())
    last = found.last_BTD[found.attention_mask_BT].split(lengths)
    assert all(
        torch.equal(a, b) for i, (a, b) in enumerate(zip(last, usual, strict=True)) if i != 6
    )


def test_new_weights_have_new_levels():
    backbone, batch = made(CONFIGS["bert"]), texts(11, 7)
    backbone.compute_fast(sample())
    states(backbone, batch)
    with torch.no_grad():
        layer = backbone.model.encoder.layer[0]
        layer.intermediate.dense.weight.mul_(5)
        layer.output.dense.weight.div_(5)
    found = states(backbone, batch)
    assert backbone.products == "static int8"
    backbone.runner.fused = None
    assert torch.cosine_similarity(found, states(backbone, batch)).min() > 0.99


def test_ranges_are_the_same_after_a_sum_in_another_order():
    torch.manual_seed(0)
    x_N = torch.rand(1000) * 30 + 1e-3
    rounded_N = rounded_up(x_N)
    assert ((rounded_N >= x_N * 0.99999) & (rounded_N <= x_N * 2 ** (1.01 / static.STEPS))).all()
    assert (rounded_up(x_N * (1 + 1e-6)) == rounded_N).float().mean() > 0.99


@pytest.mark.parametrize("least", [float("nan"), float("-inf")])
def test_a_range_that_is_not_finite_is_refused(least):
    with pytest.raises(UnsuitedError):
        Levels.between(torch.tensor(least), torch.tensor(1.0))


def test_copies_have_the_same_levels():
    backbone, batch = made(CONFIGS["bert"]), texts(11, 7)
    backbone.compute_fast(sample())
    found = states(backbone, batch)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert twin.products == "static int8"
        assert torch.equal(states(twin, batch), found)


def test_a_torch_without_such_products_finds_levels_token_by_token(monkeypatch):
    def missing(*_: object) -> None:
        raise RuntimeError("qlinear_pointwise has other arguments")

    monkeypatch.setattr(StaticLinear, "activated", missing)
    backbone = made(CONFIGS["bert"])
    backbone.compute_fast(sample())
    assert backbone.products == "int8"


class TestEmbedder:
    def test_vectors_are_nearer_than_with_levels_for_each_token(self, minilm_folder):
        texts_ = [text for text in SAMPLE if text] + [
            "A train of thought crossed the desert at night.",
            "Remove the four screws and lift the lid.",
            "Quarterly revenue rose to 48 million euros.",
        ]
        exact = Embedder.from_pretrained(minilm_folder).encode(texts_)
        found = Embedder.from_pretrained(minilm_folder, dtype="fast")
        assert "products of static int8" in found.described()
        each_token = Embedder.from_pretrained(minilm_folder)
        each_token.backbone.compute_fast()
        assert "products of int8" in each_token.described()
        errors = [1 - (exact * e.encode(texts_)).sum(axis=1) for e in (found, each_token)]
        assert errors[0].mean() < 0.003 and errors[0].mean() < errors[1].mean()
        assert errors[0].max() < 0.02

    def test_the_sample_is_not_used_where_the_model_lacks_its_tokens(self, minilm):
        batch = sample_batch(minilm.text_tokenizer, None)
        assert batch is not None and len(batch.lengths) == len(SAMPLE)
        assert sample_batch(minilm.text_tokenizer, int(batch.ids_T.max())) is None
