"""Every loss of the table."""

import ast
import inspect
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from polyvec.embed.projection.trained import Flow, SparseAutoencoder
from polyvec.train.compared import Compared
from polyvec.train.losses import table
from polyvec.train.losses.table import LOSSES
from polyvec.train.losses.terms import Objective

SETTINGS = {
    "softmax_nli": {"num_labels": 2},
    "relational_info_nce": {"num_relations": 2},
    "kd_projected": {"teacher_size": 8},
    "csr": {},
}


def whole_batch(dtype=torch.float32, requires_grad=False):
    """Six queries with a positive and a negative each, and all that a loss may ask for."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    query, document = drawn(6, 8), drawn(12, 8)
    if requires_grad:
        query.requires_grad_(), document.requires_grad_()
    return Compared.pairs(
        query,
        document,
        score_B=torch.linspace(0, 1, 6, dtype=dtype),
        label_B=torch.tensor([0, 1, 0, 1, 0, 1]),
        teacher_N=drawn(12),
        guide_query_BG=drawn(6, 4),
        guide_document_NG=drawn(12, 4),
        teacher_query_BS=drawn(6, 8),
        teacher_document_NS=drawn(12, 8),
        key_NE=drawn(12, 8),
        base_query_BE=drawn(6, 8),
        base_document_NE=drawn(12, 8),
        view_NKE=drawn(12, 3, 8),
        datasets=("a",) * 6,
        step=4,
    )


def objective(name):
    torch.manual_seed(0)
    facts = {
        "vector_size": 8,
        "autoencoder": SparseAutoencoder(8, num_latents=16, k=4),
        "flow": Flow(8),
    }
    return Objective.of([{"kind": name, **SETTINGS.get(name, {})}], facts=facts)


@pytest.mark.parametrize("name", LOSSES)
def test_a_finite_scalar_with_a_gradient(name):
    batch = whole_batch(requires_grad=True)
    loss = objective(name)
    loss(whole_batch())  # fills queues, without which there are no negatives yet
    (value,) = loss(batch).values()
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    value.backward()
    grads = [each.grad for each in (batch.query_BE, batch.document_NE) if each.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)
    assert max(grad.abs().max() for grad in grads) > 1e-7


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_in_float32_out(name):
    """The value of bfloat16 vectors is that of the same numbers in float32."""
    half = whole_batch(torch.bfloat16)
    fields = {name: getattr(half, name) for name in Compared.__dataclass_fields__}
    wide = {
        name: value.float()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in fields.items()
    }
    with torch.autocast("cpu", torch.bfloat16):  # as a trainer may have it
        (found,) = objective(name)(half).values()
    (expected,) = objective(name)(Compared(**wide)).values()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_rows_changes_nothing(name):
    """A cache, a sorted batch and several processes may give rows in any order."""
    if name == "mixed_negatives":
        pytest.skip("draws by the place in the batch")
    batch = whole_batch(torch.float64)
    shuffled = batch.of_queries(torch.tensor([3, 0, 5, 1, 4, 2]))
    losses = [objective(name).double() for _ in range(2)]
    (one,), (other,) = (
        each(rows).values() for each, rows in zip(losses, (batch, shuffled), strict=True)
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_docstring_with_a_paper(name):
    part = LOSSES[name]
    words = inspect.getdoc(part)
    assert words and len(words.splitlines()[0]) <= 100
    assert any(sign in words for sign in ("arXiv", "et al.", "sentence-transformers", "AAAI"))


def test_no_loop_over_rows():
    """Loops are over settings and sides of a batch, never over range(len(a tensor))."""
    for path in Path(table.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.For | ast.comprehension):
                over = ast.unparse(node.iter)
                assert "tolist()" not in over and "len(batch" not in over, f"{path.name}: {over}"


def test_of_datasets_keeps_what_belongs_together():
    batch = whole_batch(torch.float64)
    part = batch.of_queries(torch.tensor([4, 1]))
    assert part.owner_N.tolist() == [1, 0, 1, 0]
    for row, before in enumerate((4, 1)):
        torch.testing.assert_close(part.query_BE[row], batch.query_BE[before])
        own = part.document_NE[(part.owner_N == row) & ~part.positive_N]
        torch.testing.assert_close(own[0], batch.document_NE[6 + before])
    cosine = F.cosine_similarity(part.query_BE, part.document_NE[part.first_positive])
    whole = F.cosine_similarity(batch.query_BE, batch.document_NE[batch.first_positive])
    torch.testing.assert_close(cosine, whole[[4, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert batch.of_datasets(("b",)) is None
        assert batch.of_datasets(("a", "b")) is batch
