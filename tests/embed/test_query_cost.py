"""What one short query costs beside its products, counted: it decides how long a query takes."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polyvec import Embedder
from polyvec.embed.backbone import backbone, fused
from polyvec.embed.backbone.fast import Int8Linear
from polyvec.embed.backbone.fused import FusedModel
from polyvec.embed.backbone.linears import Linear, MklLinear

QUERY = "how long does bread keep"
LAYERS = 2  # of tiny_bert


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.number += 1
        return operation(*args, **(kwargs or {}))


def with_products(folder, kind: type[Linear]) -> Embedder:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("oneDNN's layouts are used on x86 processors with AVX2 only")
    model = Embedder.from_pretrained(folder)
    model.backbone.runner.fused = FusedModel(lambda: (kind,))
    if kind is MklLinear and not torch.backends.mkl.is_available():
        pytest.skip("this torch has no MKL")
    model.encode(QUERY)  # makes the layers
    assert type(model.backbone.runner.fused._made[1].layers[0].qkv) is kind
    return model


@pytest.mark.parametrize(("kind", "of_a_layer"), [(Linear, 14), (MklLinear, 17), (Int8Linear, 50)])
def test_a_query_takes_few_operations(kind, of_a_layer, tiny_bert):
    model = with_products(tiny_bert, kind)
    with Operations() as operations:
        model.encode(QUERY)
    assert operations.number <= of_a_layer * LAYERS + 74


def test_fixed_levels_save_operations(tiny_bert, monkeypatch):
    with_products(tiny_bert, Int8Linear)
    monkeypatch.setattr(backbone, "fast_linears", lambda: (Int8Linear,))
    model = Embedder.from_pretrained(tiny_bert, dtype="fast")
    assert model.backbone.products == "static int8"
    model.encode(QUERY)
    with Operations() as operations:
        model.encode(QUERY)
    assert operations.number <= 33 * LAYERS + 74


def test_a_query_takes_few_calls_of_python(tiny_bert):
    model = with_products(tiny_bert, Linear)
    calls: Counter[str] = Counter()

    def count(frame, event, argument) -> None:
        if event == "call":
            calls[frame.f_code.co_qualname] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        model.encode(QUERY)
    finally:
        sys.setprofile(before)
    assert calls.total() <= 500, calls.most_common(20)


@pytest.mark.equality
@pytest.mark.parametrize("is_fused", [True, False])
def test_a_part_in_training_mode_changes_no_vector(is_fused, tiny_bert, monkeypatch):
    model = with_products(tiny_bert, Linear)
    if not is_fused:
        monkeypatch.setattr(fused, "_may_be_fused", lambda model: False)
    expected = model.encode(QUERY)
    layer = model.backbone.model.encoder.layer[0]
    for each in layer.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.5
    layer.train()
    np.testing.assert_array_equal(model.encode(QUERY), expected)
    training = [module for module in model.modules() if module.training]
    assert training == list(layer.modules())
