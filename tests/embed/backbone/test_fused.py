"""Fused layers give the model's own states, and are not used where they could not."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from polyvec.embed.backbone import attention, fused, linears, runners
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.linears import Linear, MklLinear
from polyvec.embed.inputs.tokens import TokenBatch

SMALL = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "bert relu": BertConfig(**SMALL, hidden_act="relu"),
    "bert gelu_new": BertConfig(**SMALL, hidden_act="gelu_new"),
    "roberta": RobertaConfig(**SMALL),
    "xlm-r": XLMRobertaConfig(**SMALL),
    "llama": LlamaConfig(**GROUPED),
    "llama biased": LlamaConfig(**GROUPED, attention_bias=True, head_dim=16),
    "llama scaled": LlamaConfig(
        **GROUPED,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    ),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "qwen2": Qwen2Config(**GROUPED),
}
UNSUITED = {
    "bert silent activation": BertConfig(**SMALL, hidden_act="mish"),
    "mistral with windows": MistralConfig(**GROUPED, sliding_window=3),
}


@pytest.fixture(autouse=True, params=[Linear, MklLinear])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Linear]:
    """Each processor's choice of products, whatever this one would choose."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("fused layers are used on x86 processors with AVX2 only")
    if request.param is MklLinear and not torch.backends.mkl.is_available():
        pytest.skip("this torch has no MKL")
    monkeypatch.setattr(fused, "exact_linears", lambda: (request.param,))
    return request.param


def made(config: object, **options: object) -> Backbone:
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:  # zeros would hide a lost bias
                parameter.normal_()
    return Backbone(model, **options)


def texts(*lengths: int) -> TokenBatch:
    draw = np.random.default_rng(1)
    return TokenBatch.of_ids([draw.integers(5, 90, length) for length in lengths])


def states(backbone: Backbone, batch: TokenBatch) -> torch.Tensor:
    with torch.inference_mode():
        found = backbone(batch)
    return found.last_BTD[found.attention_mask_BT]


def layers_of(backbone: Backbone) -> object:
    made = backbone.runner.fused._made
    return None if made is None else made[1]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "native") for name in CONFIGS),
        ("bert", "causal"),
        ("llama", "bidirectional"),
        ("llama scaled", "last-1"),
    ],
)
def test_fused_layers_give_the_models_states(name, attention, monkeypatch):
    backbone = made(CONFIGS[name], attention=attention)
    batch = texts(11, 7, 7, 3, 1)
    found = states(backbone, batch)
    assert layers_of(backbone) is not None
    monkeypatch.setattr(fused, "_may_be_fused", lambda model: False)
    torch.testing.assert_close(found, states(backbone, batch), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", UNSUITED)
def test_other_models_run_their_own_layers(name):
    backbone = made(UNSUITED[name])
    states(backbone, texts(5, 3))
    assert layers_of(backbone) is None


def test_layers_that_give_other_states_are_not_used(monkeypatch):
    monkeypatch.setitem(fused.ACTIVATIONS, "gelu", ("relu", ""))
    backbone = made(CONFIGS["bert"])
    states(backbone, texts(5, 3))
    assert layers_of(backbone) is None


def edited(backbone: Backbone) -> None:
    weight = backbone.model.encoder.layer[1].output.dense.weight
    with torch.no_grad():
        weight.mul_(2)


def edited_past_the_counter(backbone: Backbone) -> None:
    backbone.model.encoder.layer[0].intermediate.dense.weight.data *= 20


def replaced(backbone: Backbone) -> None:
    torch.manual_seed(1)
    backbone.model.encoder.layer[0].intermediate.dense = nn.Linear(32, 48)


def hooked(backbone: Backbone) -> None:
    backbone.model.encoder.layer[0].register_forward_hook(lambda module, args, out: out * 2)


@pytest.mark.parametrize("change", [edited, edited_past_the_counter, replaced, hooked])
def test_changed_weights_are_seen(change, monkeypatch):
    backbone = made(CONFIGS["bert"])
    batch = texts(6, 4)
    before = states(backbone, batch)
    change(backbone)
    after = states(backbone, batch)
    assert (after - before).abs().max() > 1e-3
    monkeypatch.setattr(fused, "_may_be_fused", lambda model: False)
    torch.testing.assert_close(after, states(backbone, batch), atol=2e-5, rtol=1e-5)


def test_gradients_come_from_the_model():
    backbone = made(CONFIGS["bert"])
    assert backbone(texts(4)).last_BTD.requires_grad
    with torch.no_grad():
        backbone(texts(4))
    assert layers_of(backbone) is None


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_all_layers_are_the_models(name, monkeypatch):
    backbone = made(CONFIGS[name])
    batch = texts(6, 4)

    def layers() -> torch.Tensor:
        with torch.inference_mode():
            return torch.stack(backbone(batch, needs=frozenset({"all_layers"})).all_layers)

    found = layers()
    assert len(found) == 3
    assert layers_of(backbone) is not None
    monkeypatch.setattr(fused, "_may_be_fused", lambda model: False)
    torch.testing.assert_close(found, layers(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_make_their_own_layers(copied):
    backbone = made(CONFIGS["llama"])
    batch = texts(6, 4)
    before = states(backbone, batch)
    other = copied(backbone)
    with torch.no_grad():
        backbone.model.layers[0].mlp.up_proj.weight.zero_()
    torch.testing.assert_close(states(other, batch), before)


def test_a_batch_is_one_product_a_layer_and_kind(kind, monkeypatch):
    """What speed rests on, counted: products, their rows, and calls of attention."""
    backbone = made(CONFIGS["bert"])
    batch = texts(9, 9, 4, 4, 2)
    states(backbone, batch)
    rows: list[int] = []
    own, other = kind.__call__, kind.with_other
    monkeypatch.setattr(
        kind, "__call__", lambda self, x, *rest: rows.append(len(x)) or own(self, x, *rest)
    )
    monkeypatch.setattr(
        kind,
        "with_other",
        lambda self, name, x, *rest: rows.append(len(x)) or other(self, name, x, *rest),
    )
    monkeypatch.setattr(runners, "call", lambda *args, **inputs: pytest.fail("not fused"))
    states(backbone, batch)
    assert rows == [9 + 9 + 4 + 4 + 2] * 4 * 2  # no padding; 4 products in each of 2 layers


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_a_torch_without_these_products_uses_the_models_layers(error, kind, monkeypatch):
    def lacking(*_: object, **__: object) -> None:
        raise error("no such product")

    backbone = made(CONFIGS["bert"])
    monkeypatch.setattr(kind, "with_other", lacking)
    assert torch.isfinite(states(backbone, texts(6, 4))).all()
    assert layers_of(backbone) is None


def test_products_have_few_numbers_of_rows(kind, monkeypatch):
    """Each is compiled and kept: a server's memory grew by most of a gigabyte."""
    backbone, rows = made(CONFIGS["bert"]), set()
    product = kind.__call__

    def seen(self, x_TD, *activation):
        rows.add(x_TD.shape[0])
        return product(self, x_TD, *activation)

    monkeypatch.setattr(kind, "__call__", seen)
    for tokens in range(1, 331):
        lengths = [60] * (tokens // 60) + [tokens % 60]
        states(backbone, texts(*filter(None, lengths)))
    assert len(rows) <= 45


def test_intels_processors_use_mkl_and_others_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(linears, "is_intel", lambda: True)
    assert linears.exact_linears.__wrapped__() == (MklLinear, Linear)
    monkeypatch.setattr(linears, "is_intel", lambda: False)
    assert linears.exact_linears.__wrapped__() == (Linear,)
    monkeypatch.setattr(linears, "is_intel", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert linears.exact_linears.__wrapped__() == (Linear,)


def test_a_torch_without_mkls_products_uses_onednns(monkeypatch):
    def missing(*_: object, **__: object) -> None:
        raise AttributeError("_mkl_linear")

    monkeypatch.setattr(fused, "exact_linears", lambda: (MklLinear, Linear))
    monkeypatch.setattr(MklLinear, "__init__", missing)
    backbone = made(CONFIGS["bert"])
    states(backbone, texts(6, 4))
    assert type(layers_of(backbone).layers[0].qkv) is Linear


LENGTHS = [60, 60, 33, 33, 33, 32, 18, 17, 16, 15, 5, 4, 1] * 2 + [31]
KEYS = {
    60: 64, 33: 48, 32: 32, 31: 32, 18: 32, 17: 32, 16: 16, 15: 16, 5: 16, 4: 4, 1: 1,
}  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "llama", "qwen2"])
def test_attention_has_whole_lanes_of_keys(name, monkeypatch):
    """Those behind a text's own change nothing. Alone it has as many as among others: 8-bit
    integers turn another order of sums into another vector."""
    backbone = made(CONFIGS[name])
    rows: set[tuple[int, int]] = set()
    attend = attention.attend

    def seen(query, key, *rest, **options):
        rows.add((query.shape[2], key.shape[2]))
        return attend(query, key, *rest, **options)

    states(backbone, texts(5, 3))  # makes and checks the layers
    assert layers_of(backbone) is not None
    monkeypatch.setattr(attention, "attend", seen)
    found = states(backbone, texts(*LENGTHS))
    assert rows == set(KEYS.items())
    for length, keys in KEYS.items():
        rows.clear()
        states(backbone, texts(length))
        assert rows == {(length, keys)}
    monkeypatch.setattr(attention, "attend", attend)
    monkeypatch.setattr(fused, "_may_be_fused", lambda model: False)
    torch.testing.assert_close(found, states(backbone, texts(*LENGTHS)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_text_among_many_sees_nothing_of_the_next(name):
    """Bit for bit: the same texts at the same places, with other texts behind them."""
    backbone, lengths = made(CONFIGS[name]), [21] * 9 + [37] * 5
    draw = np.random.default_rng(1)
    first = [draw.integers(5, 90, length) for length in lengths]
    second = [np.full_like(ids, 7) if i % 2 else ids for i, ids in enumerate(first)]
    found, other = (states(backbone, TokenBatch.of_ids(each)) for each in (first, second))
    pairs = zip(found.split(lengths), other.split(lengths), strict=True)
    assert [torch.equal(*pair) for pair in pairs] == [i % 2 == 0 for i in range(len(lengths))]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_text_that_is_not_finite_stays_alone(name):
    backbone, lengths = made(CONFIGS[name]), [21] * 9 + [37] * 5
    draw = np.random.default_rng(1)
    ids = [draw.integers(5, 89, length) for length in lengths]
    ids[6][4] = 89
    states(backbone, texts(5, 3))
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[89] = torch.nan
    found = states(backbone, TokenBatch.of_ids(ids)).split(lengths)
    assert layers_of(backbone) is not None
    assert [i for i, each in enumerate(found) if not bool(each.isfinite().all())] == [6]
