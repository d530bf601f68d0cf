"""`backend="onnx"`: ONNX Runtime gives the model's own states of a short text, or says why not."""

import builtins
import copy
import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch
from test_fused import made, states, texts
from transformers import BertConfig, LlamaConfig, RobertaConfig

from polyvec import Embedder
from polyvec.embed.backbone import backbone as backbones
from polyvec.embed.backbone import fast, onnx_layers
from polyvec.embed.backbone.fast import Int8Linear
from polyvec.embed.backbone.fused import Bert, Linear
from polyvec.embed.backbone.onnx_layers import MOST_TOKENS, ShortTexts
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.errors import MissingExtraError, ModelError, SettingsError

SMALL = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "bert, tanh": BertConfig(**SMALL, hidden_act="gelu_new"),
    "bert relu": BertConfig(**SMALL, hidden_act="relu"),
    "bert silu": BertConfig(**SMALL, hidden_act="silu"),
    "roberta": RobertaConfig(**SMALL),
}
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture(autouse=True)
def with_onednn() -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("fused layers are used on x86 processors with AVX2 only")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each text that ONNX Runtime computed."""
    counted: list[int] = []
    own = ShortTexts.states

    def counting(self: ShortTexts, ids_T: np.ndarray, *rest: object) -> torch.Tensor:
        counted.append(len(ids_T))
        return own(self, ids_T, *rest)

    monkeypatch.setattr(ShortTexts, "states", counting)
    return counted


def with_onnx(config: object, **options: object) -> object:
    backbone = made(config, **options)
    backbone.use_backend("onnx")
    assert backbone.backend == "onnx"
    return backbone


@pytest.mark.parametrize("length", [1, 2, 13, MOST_TOKENS])
@pytest.mark.parametrize("name", CONFIGS)
def test_states_are_the_models(name, length, runs):
    batch = texts(length)
    expected = states(made(CONFIGS[name]), batch)
    backbone = with_onnx(CONFIGS[name])
    runs.clear()
    found = states(backbone, batch)
    assert runs == [length]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 13, 40])
def test_integers_are_those_of_the_other_products(length, monkeypatch, runs):
    monkeypatch.setattr(backbones, "fast_linears", lambda: (Int8Linear, Linear))
    if fast._seconds(Int8Linear) == float("inf"):
        pytest.skip("no 8-bit products on this processor")
    backbone, batch = made(CONFIGS["bert"]), texts(length)
    exact = states(backbone, batch)
    backbone.compute_fast()
    expected = states(backbone, batch)
    backbone.use_backend("onnx")
    runs.clear()
    found = states(backbone, batch)
    assert runs == [length] and backbone.products == "int8"
    # A sum in another order may turn one number to the next level.
    assert torch.cosine_similarity(found, expected).min() > 0.9999
    assert torch.cosine_similarity(found, exact).min() > 0.99
    assert not torch.equal(found, exact)


def test_token_types_and_given_positions_are_read():
    draw = np.random.default_rng(3)
    ids, types = draw.integers(5, 90, 9), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    places = np.array([0, 1, 2, 3, 4, 9, 10, 11, 12])
    batch = dataclasses.replace(TokenBatch.of_ids([ids]), types_T=types, positions_T=places)
    expected = states(made(CONFIGS["bert"]), batch)
    found = states(with_onnx(CONFIGS["bert"]), batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert (expected - states(made(CONFIGS["bert"]), TokenBatch.of_ids([ids]))).abs().max() > 0.01


@pytest.mark.parametrize("lengths", [(5, 4), (MOST_TOKENS + 1,)])
def test_batches_and_longer_texts_stay_with_torch(lengths, runs):
    backbone, batch = with_onnx(CONFIGS["bert"]), texts(*lengths)
    runs.clear()
    expected = states(made(CONFIGS["bert"]), batch)
    assert torch.equal(states(backbone, batch), expected) and not runs


def test_other_attention_and_all_layers_stay_with_torch(runs):
    backbone, batch = with_onnx(CONFIGS["bert"], attention="causal"), texts(7)
    runs.clear()
    expected = states(made(CONFIGS["bert"], attention="causal"), batch)
    assert torch.equal(states(backbone, batch), expected) and not runs
    backbone = with_onnx(CONFIGS["bert"])
    runs.clear()
    with torch.inference_mode():
        layers = backbone(batch, needs=frozenset({"all_layers"})).all_layers
    assert len(layers) == 3 and not runs


def edited(backbone: object) -> None:
    with torch.no_grad():
        backbone.model.encoder.layer[1].output.dense.weight.mul_(2)


def edited_norm(backbone: object) -> None:
    with torch.no_grad():
        backbone.model.encoder.layer[1].output.LayerNorm.weight.mul_(2)
        backbone.model.embeddings.LayerNorm.bias.add_(1)


def edited_table(backbone: object) -> None:
    with torch.no_grad():
        backbone.model.embeddings.word_embeddings.weight.mul_(-1)


def replaced_norm(backbone: object) -> None:
    norm = torch.nn.LayerNorm(32)
    torch.nn.init.constant_(norm.weight, 3.0)
    backbone.model.encoder.layer[0].output.LayerNorm = norm.eval()


def moved_norm(backbone: object) -> None:
    norm = backbone.model.encoder.layer[0].output.LayerNorm
    norm.share_memory()  # frees the memory that was read
    with torch.no_grad():
        norm.weight.mul_(2)


def moved_table(backbone: object) -> None:
    weight = backbone.model.embeddings.word_embeddings.weight
    weight.data = weight.data * -1


def without_bias(backbone: object) -> None:
    backbone.model.encoder.layer[0].output.LayerNorm.bias = None
    with torch.no_grad():
        backbone.model.encoder.layer[0].output.LayerNorm.weight.mul_(2)


def loaded(backbone: object) -> None:
    weights = {k: v * 1.5 for k, v in backbone.model.state_dict().items() if v.is_floating_point()}
    backbone.model.load_state_dict(weights, strict=False)


CHANGES = (edited, edited_norm, edited_table, replaced_norm, moved_norm, moved_table, loaded)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(change, runs):
    backbone, plain, batch = with_onnx(CONFIGS["bert"]), made(CONFIGS["bert"]), texts(6)
    before = states(backbone, batch)
    change(backbone)
    change(plain)
    runs.clear()
    after = states(backbone, batch)
    assert runs and (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, states(plain, batch), atol=2e-5, rtol=1e-5)


def test_a_norm_without_a_bias_stays_with_torch(runs):
    backbone, plain, batch = with_onnx(CONFIGS["bert"]), made(CONFIGS["bert"]), texts(6)
    without_bias(backbone)
    without_bias(plain)
    runs.clear()
    torch.testing.assert_close(states(backbone, batch), states(plain, batch))
    assert not runs and backbone.runner.fused_layers() is not None


def test_a_token_below_zero_is_an_error():
    backbone = with_onnx(CONFIGS["bert"])
    with pytest.raises(IndexError):
        states(backbone, TokenBatch.of_ids([np.array([5, -1])]))


def test_another_number_of_threads_makes_another_session(monkeypatch, runs):
    backbone, batch = with_onnx(CONFIGS["bert"]), texts(6)
    first = backbone.runner.fused_layers().short
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    runs.clear()
    assert torch.isfinite(states(backbone, batch)).all() and 6 in runs
    assert backbone.runner.fused_layers().short is not first


def test_a_graph_that_gives_other_states_is_refused(monkeypatch):
    monkeypatch.setitem(onnx_layers.WITH_BIAS, ("gelu", "none"), "FastGelu")
    monkeypatch.setattr(backbones.runners, "FUSED_TOLERANCE", 1e-7)
    backbone = made(CONFIGS["bert"])
    with pytest.raises(ModelError, match="backend 'onnx': not for BertModel"):
        backbone.use_backend("onnx")
    assert backbone.backend == "torch"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_make_their_own(copied, runs):
    backbone, batch = with_onnx(CONFIGS["bert"]), texts(6)
    before = states(backbone, batch)
    other = copied(backbone)
    edited(backbone)
    runs.clear()
    assert other.backend == "onnx" and torch.equal(states(other, batch), before)
    assert 6 in runs


def test_other_models_are_refused():
    config = LlamaConfig(**SMALL, num_key_value_heads=2)
    with pytest.raises(ModelError, match="not for LlamaModel"):
        made(config).use_backend("onnx")
    decoder = BertConfig(**SMALL, is_decoder=True)
    with pytest.raises(ModelError, match="not for BertModel"):
        made(decoder).use_backend("onnx")
    with pytest.raises(SettingsError, match=r"backend 'onxn' is not known.*onnx"):
        made(CONFIGS["bert"]).use_backend("onxn")


def test_without_onnxruntime_the_command_is_named(monkeypatch):
    own = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return own(name, *rest)

    backbone = made(CONFIGS["bert"])
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"onnxruntime.*polyvec\[onnx\]"):
        backbone.use_backend("onnx")


def test_a_forked_process_stays_with_torch(monkeypatch, runs):
    backbone, batch = with_onnx(CONFIGS["bert"]), texts(6)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    runs.clear()
    assert torch.isfinite(states(backbone, batch)).all() and not runs


def test_an_embedder_takes_it_and_vectors_stay(tiny_bert, runs):
    plain = Embedder.from_pretrained(tiny_bert)
    found = Embedder.from_pretrained(tiny_bert, backend="onnx")
    assert (plain.backend, found.backend) == ("torch", "onnx")
    query = "how long does bread keep"
    runs.clear()
    np.testing.assert_allclose(found.encode(query), plain.encode(query), atol=1e-5)
    assert runs
    assert found.fingerprint() == plain.fingerprint()
    assert any("ONNX Runtime" in line for line in found.described())
    found.backend = "torch"
    assert np.array_equal(found.encode(query), plain.encode(query))
    assert not any("ONNX Runtime" in line for line in found.described())


def test_the_graph_has_few_nodes(monkeypatch):
    """What a query costs beside its products, counted."""
    made_of: list[int] = []
    own = onnx_layers._Graph.session
    monkeypatch.setattr(
        onnx_layers._Graph, "session", lambda self: made_of.append(len(self._nodes)) or own(self)
    )
    backbone = with_onnx(CONFIGS["bert"])
    layers = backbone.runner.fused_layers()
    assert isinstance(layers, Bert)
    assert made_of == [1 + 10 * 2]  # 6 products, attention, an activation and 2 norms a layer
