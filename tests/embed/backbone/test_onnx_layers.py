"""`backend="onnx"`: ONNX Runtime gives the model's own states of a short text, or says why not."""

import builtins
import copy
import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_fused import made, states, texts
from transformers import BertConfig, LlamaConfig, RobertaConfig

from polyvec import Embedder
from polyvec.embed.backbone import backbone as backbones
from polyvec.embed.backbone import fast, onnx_layers
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.backbone.fast import Int8Linear
from polyvec.embed.backbone.fused import Bert
from polyvec.embed.backbone.linears import Linear
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
    backbone, plain, batch = with_onnx(CONFIGS["bert"]), made(CONFIGS["bert"]), texts(7)
    runs.clear()
    with torch.inference_mode():
        found, expected = (
            each(batch, attention=AttentionSpec("causal")).last_BTD for each in (backbone, plain)
        )
        layers = backbone(batch, needs=frozenset({"all_layers"})).all_layers
    assert torch.equal(found, expected) and len(layers) == 3 and not runs


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


def test_threads_of_other_numbers_share_the_layers(monkeypatch, runs):
    """torch's number is one of each thread: layers made anew at each text took half a second."""
    backbone, batch = with_onnx(CONFIGS["bert"]), texts(6)
    layers, threads = backbone.runner.fused_layers(), torch.get_num_threads()
    runs.clear()
    for number in (threads + 1, threads, threads + 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        states(backbone, batch)
    assert runs == [6, 6, 6] and backbone.runner.fused_layers() is layers


def test_a_graph_that_gives_other_states_is_refused(monkeypatch):
    monkeypatch.setitem(onnx_layers.WITH_BIAS, ("gelu", "none"), "FastGelu")
    monkeypatch.setattr(backbones.runners, "FUSED_TOLERANCE", 1e-7)
    backbone = made(CONFIGS["bert"])
    with pytest.raises(ModelError, match="backend 'onnx': not for parts of other kinds"):
        backbone.use_backend("onnx")
    assert backbone.backend == "torch"
    assert torch.isfinite(states(backbone, texts(5))).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_make_their_own(copied, runs):
    backbone, batch = with_onnx(CONFIGS["bert"]), texts(6)
    before = states(backbone, batch)
    other = copied(backbone)
    edited(backbone)
    runs.clear()
    assert other.backend == "onnx" and torch.equal(states(other, batch), before)
    assert 6 in runs


def test_other_models_are_refused_with_the_reason():
    bert = CONFIGS["bert"]
    training, doubled = made(bert), made(bert)
    training.model.train()
    doubled.to(torch.float64)
    refused = {
        "not for LlamaModel": made(LlamaConfig(**SMALL, num_key_value_heads=2)),
        "not for parts of other kinds": made(BertConfig(**SMALL, hidden_act="mish")),
        "not with attention 'causal'": made(bert, attention="causal"),
        "these are padded": made(bert, layout="padded"),
        "not in training mode": training,
        "the model is in float64 on cpu": doubled,
    }
    for reason, backbone in refused.items():
        with pytest.raises(ModelError, match=reason):
            backbone.use_backend("onnx")
        assert backbone.backend == "torch"
    with pytest.raises(ModelError, match="backend 'onnx'"):
        made(BertConfig(**SMALL, is_decoder=True)).use_backend("onnx")
    with pytest.raises(SettingsError, match=r"backend 'onxn' is not known.*onnx"):
        made(bert).use_backend("onxn")


def test_fewer_bits_are_refused(monkeypatch):
    monkeypatch.setattr(backbones, "fast_linears", lambda: (Int8Linear, Linear))
    if fast._seconds(Int8Linear) == float("inf"):
        pytest.skip("no 8-bit products on this processor")
    backbone = made(CONFIGS["bert"])
    backbone.compute_fast()
    assert backbone.products == "int8"
    with pytest.raises(ModelError, match="dtype='fast'"):
        backbone.use_backend("onnx")
    assert backbone.products == "int8"


def test_a_route_that_refuses_leaves_all_as_they_were(tiny_bert):
    plain, model = Embedder.from_pretrained(tiny_bert), Embedder.from_pretrained(tiny_bert)
    model.routes = {"query": plain, "document": Embedder(tiny_bert, attention="causal")}
    with pytest.raises(ModelError, match="causal"):
        model.backend = "onnx"
    assert (model.backend, plain.backend) == ("torch", "torch")


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
    found.to(torch.float64)
    assert not any("ONNX Runtime" in line for line in found.described())
    found.to(torch.float32)
    found.backend = "torch"
    assert np.array_equal(found.encode(query), plain.encode(query))
    assert not any("ONNX Runtime" in line for line in found.described())


@pytest.mark.medium
def test_nothing_is_reported_and_a_forked_process_ends(tiny_bert, tmp_path):
    """onnxruntime keeps a device's id; a child would wait for threads that it has not."""
    code = (
        "import os, sys\nfrom polyvec import Embedder\n"
        f"model = Embedder({str(tiny_bert)!r}, backend='onnx')\nmodel.encode('a')\n"
        "child = os.fork()\n"
        "if child == 0:\n    model.encode('a')\n    sys.exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    home = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    home["OMP_NUM_THREADS"] = "2"
    home.pop("ORT_DISABLE_TELEMETRY", None)
    ended = subprocess.run([sys.executable, "-c", code], env=home, timeout=120)
    assert ended.returncode == 7
    kept = {part for path in tmp_path.rglob("*") for part in path.relative_to(tmp_path).parts}
    assert not [name for name in kept if "Microsoft" in name or "onnxruntime" in name]


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
