"""`dtype="fast"`: products of fewer bits, near the exact vectors, told where there are none."""

import copy
import warnings

import numpy as np
import pytest
import torch
from test_fused import made, states, texts
from torch import nn
from transformers import AutoModel, BertConfig, LlamaConfig, Qwen2Config, RobertaConfig, T5Config

from polyvec import Embedder
from polyvec.embed.backbone import backbone as backbones
from polyvec.embed.backbone import fast
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.fast import Bfloat16Linear, Int8Linear, fast_linears
from polyvec.embed.backbone.linears import ACTIVATIONS, Linear, MklLinear
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import SlowPathWarning

KINDS = (Int8Linear, Bfloat16Linear)
SMALL = {
    "vocab_size": 90, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "bert relu": BertConfig(**SMALL, hidden_act="relu"),
    "roberta": RobertaConfig(**SMALL),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
}


@pytest.fixture(autouse=True)
def with_products(request: pytest.FixtureRequest) -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("oneDNN's layouts are used on x86 processors with AVX2 only")
    callspec = getattr(request.node, "callspec", None)
    kind = callspec.params.get("kind") if callspec else None
    if kind is not None and fast._seconds(kind) == float("inf"):
        pytest.skip(f"{kind.name}: not on this processor")


def only(kind: type[Linear], monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's choice, whatever this one would choose."""
    monkeypatch.setattr(backbones, "fast_linears", lambda: (kind, Linear))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_states_are_near_the_exact_ones_and_not_equal(name, kind, monkeypatch):
    only(kind, monkeypatch)
    backbone, batch = made(CONFIGS[name]), texts(11, 7, 7, 3, 1)
    exact = states(backbone, batch)
    backbone.compute_fast()
    assert backbone.fast and backbone.products == kind.name
    found = states(backbone, batch)
    assert torch.cosine_similarity(found, exact).min() > 0.99
    assert not torch.equal(found, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_states_whatever_is_beside_it(kind, monkeypatch):
    only(kind, monkeypatch)
    backbone = made(CONFIGS["bert"])
    backbone.compute_fast()
    draw = np.random.default_rng(2)
    text = draw.integers(5, 90, 9)
    alone = states(backbone, TokenBatch.of_ids([text]))
    loud = [draw.integers(5, 90, length) for length in (40, 17, 30, 60, 60, 60, 40)]
    beside = states(backbone, TokenBatch.of_ids([text, *loud]))[:9]
    # A sum in another order may turn one number to the next level.
    assert torch.cosine_similarity(alone, beside).min() > 0.9999


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [("none", ""), *ACTIVATIONS.values()])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_products_are_those_of_the_layers(kind, activation, bias):
    torch.manual_seed(0)
    layers = nn.Linear(48, 32, bias=bias), nn.Linear(48, 16, bias=bias)
    # A token a thousand times as large as the others, and one of zeros.
    x_TD = torch.randn(6, 48)
    x_TD[1] *= 1000
    x_TD[2] = 0
    order = torch.randperm(48)
    exact, found = Linear(*layers, order=order), kind(*layers, order=order)
    expected, got = exact(x_TD, activation), found(x_TD, activation)
    size = expected.abs().amax(dim=1, keepdim=True).clamp(min=1e-3)
    assert ((got - expected) / size).abs().max() < 0.03
    other = torch.randn(6, 48)
    for operation in ("add", "mul"):
        wanted = exact.with_other(operation, x_TD, other)
        error = (found.with_other(operation, x_TD, other) - wanted).abs()
        assert (error / size / other.abs().clamp(min=1)).max() < 0.03


@torch.inference_mode()
def test_8_bits_round_each_number_to_its_nearest_level():
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.copy_(torch.eye(8))
    x_TD = torch.tensor([[127.0, 126.4, -126.6, 0.4, -0.6, 1.5, -127.0, 63.0]])
    levels = [127.0, 126, -127, 0, -1, 2, -127, 63]
    torch.testing.assert_close(Int8Linear(layer)(x_TD), torch.tensor([levels]))


@torch.inference_mode()
def test_without_vnni_no_sum_of_two_products_overflows_16_bits(monkeypatch):
    monkeypatch.setattr(fast, "_sums_are_wide", lambda: False)
    layer = nn.Linear(64, 8, bias=False)
    layer.weight.fill_(1.0)
    found = Int8Linear(layer)
    assert torch.allclose(found.scale_N * fast.LEVELS_IN_16_BITS, torch.ones(8))
    torch.testing.assert_close(found(torch.ones(1, 64)), torch.full((1, 8), 64.0))


def test_a_model_of_which_no_products_are_near_stays_exact(monkeypatch):
    only(Int8Linear, monkeypatch)
    backbone, batch = made(CONFIGS["bert"]), texts(9, 4)
    exact = states(backbone, batch)
    monkeypatch.setattr(Int8Linear, "least_cosine", 1.01)
    with pytest.warns(SlowPathWarning, match="BertModel"):
        backbone.compute_fast()
    assert not backbone.fast and backbone.products == "float32"
    assert torch.equal(states(backbone, batch), exact)


def test_a_family_without_fused_layers_says_so():
    torch.manual_seed(0)
    config = T5Config(vocab_size=90, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    backbone = Backbone(AutoModel.from_config(config).get_encoder().eval())
    with pytest.warns(SlowPathWarning, match="T5"):
        backbone.compute_fast()
    assert not backbone.fast


def test_bfloat16_is_not_tried_where_it_is_emulated(monkeypatch):
    monkeypatch.setattr(fast, "exact_linears", lambda: (Linear,))
    monkeypatch.setattr(fast, "_has_bfloat16", lambda: False)
    monkeypatch.setattr(fast, "_seconds", lambda kind: 1.0 if kind is Linear else 0.1)
    assert fast._measured() == (Int8Linear,)


def test_the_fastest_products_come_first(monkeypatch):
    monkeypatch.setattr(fast, "exact_linears", lambda: (Linear,))
    monkeypatch.setattr(fast, "_has_bfloat16", lambda: True)
    seconds = {Linear: 1.0, Bfloat16Linear: 0.4, Int8Linear: 0.5}
    monkeypatch.setattr(fast, "_seconds", seconds.__getitem__)
    assert fast._measured() == (Bfloat16Linear, Int8Linear)
    # Integers must be clearly faster than bfloat16, and both than float32.
    seconds[Int8Linear] = 0.39
    assert fast._measured() == (Bfloat16Linear, Int8Linear)
    seconds[Bfloat16Linear] = 0.95
    assert fast._measured() == (Int8Linear,)
    # Of float32's products the one that is used counts.
    monkeypatch.setattr(fast, "exact_linears", lambda: (MklLinear, Linear))
    seconds |= {MklLinear: 0.44, Linear: 0.0}
    assert fast._measured() == ()


def test_the_choice_is_kept_for_all_processes_of_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fast, "exact_linears", lambda: (Linear,))
    measured = [(Int8Linear,), ()]
    monkeypatch.setattr(fast, "_measured", lambda: measured.pop(0))
    assert fast_linears.__wrapped__() == fast_linears.__wrapped__() == (Int8Linear, Linear)
    monkeypatch.setattr(fast, "kernels", lambda: ["another processor"])
    assert fast_linears.__wrapped__() == fast_linears.__wrapped__() == (Linear,)


@pytest.mark.parametrize("damage", ["", "3", "[3]", '{"int8": 1, "a": 2}', '["int4"]'])
def test_a_damaged_choice_is_measured_again(damage, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fast, "exact_linears", lambda: (Linear,))
    monkeypatch.setattr(fast, "_measured", lambda: (Int8Linear,))
    fast_linears.__wrapped__()
    (entry,) = (tmp_path / "polyvec" / "products").iterdir()
    kept = entry.read_text()
    entry.write_text(damage)
    assert fast_linears.__wrapped__() == (Int8Linear, Linear)
    assert entry.read_text() == kept


def test_a_choice_that_cannot_be_kept_is_measured_again(monkeypatch, tmp_path):
    (tmp_path / "polyvec").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fast, "exact_linears", lambda: (Linear,))
    monkeypatch.setattr(fast, "_measured", lambda: (Int8Linear,))
    assert fast_linears.__wrapped__() == (Int8Linear, Linear)


def test_products_are_timed_on_one_thread(monkeypatch):
    """Threads that wait for each other on a busy machine took integers for seven times as slow."""
    threads: list[int] = []

    class Counting(Linear):
        def __call__(self, *args: object) -> torch.Tensor:
            threads.append(torch.get_num_threads())
            return super().__call__(*args)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert fast._seconds(Counting) < float("inf")
        assert set(threads) == {1} and torch.get_num_threads() == 2
        monkeypatch.setattr(Counting, "__call__", lambda *_: torch.empty(-1))  # RuntimeError
        assert fast._seconds(Counting) == float("inf") and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_torch_without_these_products_stays_exact(monkeypatch):
    def missing(*layers: object, **options: object) -> None:
        raise AttributeError("qlinear_prepack")

    monkeypatch.setattr(Int8Linear, "__init__", missing)
    monkeypatch.setattr(fast, "_has_bfloat16", lambda: False)
    assert fast._measured() == ()


def test_gradients_flow_through_the_models_own_layers(monkeypatch):
    only(Int8Linear, monkeypatch)
    backbone = made(CONFIGS["bert"])
    backbone.compute_fast()
    backbone(texts(4, 3)).last_BTD.sum().backward()
    assert backbone.model.encoder.layer[0].output.dense.weight.grad is not None


class TestEmbedder:
    def test_vectors_are_near_and_the_fingerprint_another(self, monkeypatch):
        only(Int8Linear, monkeypatch)
        exact, found = Embedder("polyvec/nano-lm"), Embedder("polyvec/nano-lm", dtype="fast")
        sentences = ["a cat sat on the mat", "stocks fell on Monday"]
        a, b = (e.encode(sentences, normalize_embeddings=True) for e in (exact, found))
        assert b.dtype == np.float32 and (a * b).sum(axis=1).min() > 0.98
        assert exact.fingerprint() != found.fingerprint()
        assert "products of int8" in found.described()
        assert "products of float32" in exact.described()

    def test_a_copy_computes_alike(self, monkeypatch):
        only(Int8Linear, monkeypatch)
        found = Embedder("polyvec/nano-lm", dtype="fast")
        twin = copy.deepcopy(found)
        assert np.array_equal(twin.encode("a cat"), found.encode("a cat"))
        assert twin.fingerprint() == found.fingerprint()

    def test_saving_writes_the_exact_weights(self, tmp_path, monkeypatch):
        only(Int8Linear, monkeypatch)
        Embedder("polyvec/nano-lm", dtype="fast").save_pretrained(tmp_path / "saved")
        exact = Embedder("polyvec/nano-lm").encode("a cat")
        with warnings.catch_warnings():
            warnings.simplefilter("error", SlowPathWarning)
            found = Embedder(tmp_path / "saved").encode("a cat")
        np.testing.assert_allclose(found, exact, atol=1e-5)

    def test_encode_says_where_fast_belongs(self):
        with pytest.raises(ValueError, match="dtype='fast'"):
            Embedder("polyvec/nano-lm").encode("a", precision="fast")
