"""Products with fixed levels: near the exact states, told apart from others, and never NaN lost."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_fast import CONFIGS, SMALL
from test_fused import made, states, texts
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig

from polyvec import Embedder
from polyvec.embed import sample as samples
from polyvec.embed.backbone import backbone as backbones
from polyvec.embed.backbone import fast, static
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.fast import Int8Linear
from polyvec.embed.backbone.linears import Linear, UnsuitedError
from polyvec.embed.backbone.static import Levels, StaticInt8, StaticLinear, Watched, rounded_up
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


def seen(backbone: Backbone) -> set[int]:
    """The ids of the random texts that levels are found on."""
    return set(StaticInt8(sample())._drawn(backbone.model).ids_T.tolist())


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
    assert errors[0] < 0.02 and errors[1] > 3 * errors[0]


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
    backbone, lengths = made(BertConfig(**{**SMALL, "vocab_size": 9000})), [21] * 9 + [37] * 5
    draw = np.random.default_rng(1)
    ids = [draw.integers(5, 8000, length) for length in lengths]
    drawn = next(i for i in range(8000, 9000) if i not in seen(backbone))
    ids[6][4] = drawn
    batch = TokenBatch.of_ids(ids)
    found = []
    for value in (1.0, torch.nan):
        with torch.no_grad():
            backbone.model.get_input_embeddings().weight[drawn] = value
        backbone.compute_fast(sample())
        with torch.inference_mode():
            found.append(backbone(batch, needs=frozenset({"all_layers"})))
        assert backbone.products == "static int8"
    lost = found[1]
    for layer_BTD in (*lost.all_layers, lost.last_BTD):
        parts = layer_BTD[lost.attention_mask_BT].split(lengths)
        bad = [i for i, each in enumerate(parts) if not bool(each.isfinite().all())]
        assert bad == [6] and bool(parts[6].isnan().all())
    pairs = [each.last_BTD[each.attention_mask_BT].split(lengths) for each in found]
    for i, (before, after) in enumerate(zip(*pairs, strict=True)):
        assert i == 6 or torch.equal(before, after)


def test_a_model_whose_sample_is_not_finite_finds_levels_token_by_token():
    backbone = made(CONFIGS["bert"])
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[89] = torch.nan  # random texts have it
    backbone.compute_fast(sample())
    assert backbone.products == "int8"


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


@pytest.mark.parametrize("is_data", [False, True])
@pytest.mark.parametrize("part", ["encoder.layer.0.output.LayerNorm", "embeddings.word_embeddings"])
def test_weights_beside_the_products_change_levels_too(part, is_data):
    backbone, batch = made(CONFIGS["bert"]), texts(11, 7)
    backbone.compute_fast(sample())
    states(backbone, batch)
    weight = backbone.model.get_submodule(part).weight
    with torch.no_grad():
        (weight.data if is_data else weight).mul_(3)
    found = states(backbone, batch)
    assert backbone.products == "static int8"
    other = made(CONFIGS["bert"])
    other.model.load_state_dict(backbone.model.state_dict())
    other.compute_fast(sample())
    assert torch.equal(found, states(other, batch))


def test_a_table_of_another_form_is_no_error():
    backbone = made(CONFIGS["bert"])
    wide = torch.randn(90, 100)[:, :64]
    backbone.model.embeddings.word_embeddings.weight = nn.Parameter(wide, requires_grad=False)
    backbone.compute_fast(sample())
    assert states(backbone, texts(11, 7)).isfinite().all()


def test_a_table_that_lost_a_token_of_the_sample_finds_levels_token_by_token():
    backbone = made(CONFIGS["bert"])
    backbone.compute_fast(TokenBatch.of_ids([np.arange(60, 90)]))
    backbone.model.resize_token_embeddings(50)
    states(backbone, TokenBatch.of_ids([np.arange(5, 20)]))
    assert backbone.products == "int8"


def test_rows_of_zeros_behind_the_tokens_are_not_looked_at():
    watched = Watched(nn.Linear(2, 3))
    watched.tokens = 2
    watched(torch.tensor([[1.0, -2.0], [3.0, 1.0], [100.0, -100.0]]))
    assert (watched.least_D.tolist(), watched.most_D.tolist()) == ([0.0, -2.0], [3.0, 1.0])


def test_random_texts_are_others_than_those_of_the_check():
    backbone = made(BertConfig(**{**SMALL, "vocab_size": 9000}))
    checked = np.random.default_rng(0).integers(5, 9000, 22)
    assert len(seen(backbone) & set(checked.tolist())) < 5


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

    def test_the_fingerprint_names_the_products_and_the_sample(self, tiny_bert, monkeypatch):
        found = [Embedder.from_pretrained(tiny_bert, dtype=kind) for kind in ("float32", "fast")]
        other = Embedder.from_pretrained(tiny_bert, dtype="fast")
        assert other.fingerprint() == found[1].fingerprint()
        other.backbone.compute_fast()  # levels for each token
        monkeypatch.setattr(samples, "SAMPLE", ("another sample", "of texts"))
        found += [other, Embedder.from_pretrained(tiny_bert, dtype="fast")]
        assert len({each.fingerprint() for each in found}) == 4

    def test_levels_do_not_depend_on_the_most_tokens_that_are_read(self, minilm_folder):
        texts_ = ["a cat sat on the mat, and the dog beside it", "Stocks fell on Monday."]
        found = [
            Embedder.from_pretrained(minilm_folder, dtype="fast", max_seq_length=most)
            for most in (4, 256)
        ]
        found[0].max_seq_length = 256
        np.testing.assert_array_equal(*(each.encode(texts_) for each in found))

    def test_a_body_that_routes_share_is_set_up_once(self, tiny_bert, monkeypatch):
        calls: list[int] = []
        own = Backbone.compute_fast
        monkeypatch.setattr(
            Backbone, "compute_fast", lambda self, *rest: calls.append(id(self)) or own(self, *rest)
        )
        body = Embedder.from_pretrained(tiny_bert)
        route = body._parts()
        routed = Embedder.from_parts(
            **{**route.keywords(), "routes": {"query": route, "document": route}}
        )
        routed._compute_fast()
        assert calls == [id(body.backbone)]

    def test_the_sample_is_not_used_where_the_model_lacks_its_tokens(self, minilm):
        batch = sample_batch(minilm.text_tokenizer, minilm.backbone)
        assert batch is not None and len(batch.lengths) == len(SAMPLE)
        short = SimpleNamespace(num_rows=None, max_positions=12)
        assert max(sample_batch(minilm.text_tokenizer, short).lengths) == 12
        assert minilm.text_tokenizer.max_length == 256
        small = SimpleNamespace(num_rows=int(batch.ids_T.max()), max_positions=512)
        assert sample_batch(minilm.text_tokenizer, small) is None
