"""Trained maps of vectors: by hand, invertibility, sparsity, settings, precision."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from polyvec.embed.projection.trained import PROJECTORS
from polyvec.errors import SettingsError, ShapeError

D = 6
CASES = {
    "mlp": {"in_features": D, "out_features": 4},
    "mlp two": {"in_features": D, "out_features": 4, "hidden_features": 9, "num_hidden": 2},
    "topk_mask": {"in_features": D, "k": 2},
    "topk_mask value": {"in_features": D, "k": 2, "by": "value"},
    "gate": {"in_features": D, "out_features": 10},
    "residual_adapter": {"in_features": D, "hidden_features": 3},
    "flow": {"in_features": D, "num_blocks": 3, "seed": 4},
    "csr": {"in_features": D, "num_latents": 12, "k": 3},
}
VECTORS = torch.randn(5, D, generator=torch.Generator().manual_seed(0))


def build(case: str, *, shaken: bool = True) -> nn.Module:
    """The module, its weights moved off their first values unless told not to."""
    torch.manual_seed(0)
    module = PROJECTORS[case.split()[0]](**CASES[case])
    if shaken:
        for weight in module.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    return module


def test_every_projector_has_a_case():
    assert {case.split()[0] for case in CASES} == set(PROJECTORS)


@pytest.mark.parametrize("case", CASES)
def test_a_text_does_not_depend_on_its_batch(case):
    module = build(case)
    out = module(VECTORS)
    assert out.shape == (5, module.out_features) and module.in_features == D
    assert_close(torch.cat([module(row[None]) for row in VECTORS]), out)
    assert_close(module(VECTORS.flip(0)), out.flip(0))


@pytest.mark.equality
@pytest.mark.parametrize("case", CASES)
def test_settings_rebuild_the_module(case):
    module = build(case)
    settings = json.loads(json.dumps(module.settings()))
    torch.manual_seed(99)
    rebuilt = PROJECTORS[case.split()[0]](**settings)
    rebuilt.load_state_dict(module.state_dict())
    assert_close(rebuilt(VECTORS), module(VECTORS), rtol=0, atol=0)
    assert CASES[case].items() <= settings.items()


@pytest.mark.equality
@pytest.mark.parametrize("case", CASES)
def test_half_precision_in_half_precision_out_float32_between(case):
    module = build(case).half()
    half = VECTORS.bfloat16()
    assert module(half).dtype == torch.bfloat16
    assert_close(module(half), module(half.float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_every_weight_learns(case):
    module = build(case)
    vectors = VECTORS.clone().requires_grad_()
    out = module(vectors)
    (out * torch.randn(out.shape)).sum().backward()
    assert vectors.grad.abs().max() > 0
    for name, weight in module.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("case", CASES)
def test_vectors_of_another_size_are_refused(case):
    with pytest.raises(ShapeError, match="of 6 dimensions"):
        build(case)(torch.ones(2, 5))


def test_mlp_by_hand():
    module = PROJECTORS["mlp"](2, 1, 2)
    first, last = module.layers[0], module.layers[2]
    first.weight.data, first.bias.data = torch.eye(2), torch.tensor([0.0, 1.0])
    last.weight.data, last.bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])
    # GELU(1) = 0.8413447, GELU(0) = 0.
    assert_close(module(torch.tensor([[1.0, -1.0]])), torch.tensor([[1.3413447]]))
    assert [type(x).__name__ for x in build("mlp two").layers] == [
        "Linear",
        "GELU",
        "Linear",
        "GELU",
        "Linear",
    ]


def test_topk_by_hand():
    vector = torch.tensor([[-5.0, 1.0, 3.0, -2.0]])
    make = PROJECTORS["topk_mask"]
    assert_close(make(4, 2)(vector), torch.tensor([[-5.0, 0.0, 3.0, 0.0]]))
    assert_close(make(4, 2, "value")(vector), torch.tensor([[0.0, 1.0, 3.0, 0.0]]))
    assert_close(make(4, 4)(vector), vector)
    assert ((build("topk_mask")(VECTORS) != 0).sum(1) == 2).all()
    assert ((make(4, 2)(torch.ones(3, 4)) != 0).sum(1) == 2).all()  # ties too


def test_a_closed_gate_is_exactly_zero():
    module = build("gate")
    out, gate = module(VECTORS), module.gate(VECTORS).sigmoid()
    important = module.importance(VECTORS).relu()
    assert (out[gate <= 0.5] == 0).all() and (important[gate <= 0.5] > 0).any()
    assert_close(out[gate > 0.5], important[gate > 0.5])
    assert (out > 0).any()
    always = PROJECTORS["gate"](D, 10, threshold=0.0)
    assert_close(always(VECTORS), always.importance(VECTORS).relu())


def test_the_gate_is_trained_as_its_sigmoid():
    module = build("gate")
    module(VECTORS).sum().backward()
    soft = module.gate(VECTORS).sigmoid()
    wanted = (module.importance(VECTORS).relu() * soft * (1 - soft)).sum(0)
    assert_close(module.gate.bias.grad, wanted)


@pytest.mark.equality
def test_the_adapter_starts_as_the_identity():
    module = build("residual_adapter", shaken=False)
    assert torch.equal(module(VECTORS), VECTORS)
    module.out.bias.data += 1
    assert_close(module(VECTORS), VECTORS + 1)


def test_flow_is_inverted():
    module = build("flow")
    latents = module(VECTORS)
    assert (latents - VECTORS).abs().max() > 0.1
    assert_close(module.inverse(latents), VECTORS, rtol=0, atol=1e-4)
    assert_close(module(module.inverse(VECTORS)), VECTORS, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [2, 5])
def test_flow_log_determinant_is_that_of_its_jacobian(size):
    torch.manual_seed(0)
    module = PROJECTORS["flow"](size, num_blocks=3).double()
    for weight in module.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    vectors = torch.randn(4, size, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: module(x[None])[0]))(vectors)
    assert_close(module.log_determinant(vectors), torch.linalg.slogdet(jacobians).logabsdet)
    assert module.log_determinant(vectors).std() > 1e-3


def test_an_untrained_flow_moves_no_cosine():
    module = build("flow", shaken=False)
    cosine = nn.functional.cosine_similarity
    out = module(VECTORS)
    assert not torch.equal(out, VECTORS)
    assert_close(cosine(out[:1], out), cosine(VECTORS[:1], VECTORS))
    assert_close(module.log_determinant(VECTORS), torch.zeros(5))


def test_sparse_autoencoder_by_hand():
    module = PROJECTORS["csr"](2, 3, 2)
    module.weight_ED.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    module.bias_E.data = torch.tensor([0.0, 0.5, 0.0])
    module.bias_pre_D.data = torch.tensor([1.0, 0.0])
    vectors = torch.tensor([[3.0, 1.0], [1.0, -2.0]])
    # Before: (2, 1.5, -2) and (0, -1.5, 0); the two largest, then ReLU.
    latents = torch.tensor([[2.0, 1.5, 0.0], [0.0, 0.0, 0.0]])
    assert_close(module(vectors), latents)
    reconstructed = torch.tensor([[3.0, 1.5], [1.0, 0.0]])
    assert_close(module.reconstruct(vectors), reconstructed)
    assert_close(module.decode(latents), reconstructed)


def test_sparse_autoencoder_has_at_most_k_entries_none_negative():
    out = build("csr")(VECTORS)
    assert ((out != 0).sum(1) <= 3).all() and (out >= 0).all() and (out > 0).any()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mlp", (6, 4, 4, 3)),
        ("mlp", (6, 4, 0)),
        ("mlp", (0, 4)),
        ("topk_mask", (6, 0)),
        ("topk_mask", (6, 7)),
        ("topk_mask", (6, 2, "size")),
        ("gate", (6, 4, 1.0)),
        ("residual_adapter", (6, 0)),
        ("flow", (1,)),
        ("flow", (6, 0)),
        ("csr", (6, 4, 5)),
    ],
)
def test_settings_that_cannot_be(name, settings):
    with pytest.raises(SettingsError):
        PROJECTORS[name](*settings)
