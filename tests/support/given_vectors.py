"""Losses of sentence-transformers beside ours, of the same vectors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from polyvec.train.compared import Compared


class GivenVectors(nn.Module):
    """A model whose vectors are its inputs."""

    device = torch.device("cpu")

    def forward(self, features):
        return {**features, "sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self):
        return None


def columns(*counts: int, size: int = 6, seed: int = 0) -> list[Tensor]:
    """Random vectors in double precision, so that agreement is of formulas, not of rounding."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, size, generator=generator, dtype=torch.float64) for n in counts]


def batch_of(vectors: Sequence[Tensor], **more) -> Compared:
    """Queries, positives, then columns of negatives."""
    return Compared.pairs(vectors[0], torch.cat(list(vectors[1:])), **more)


def total(value):
    return sum(value.values()) if isinstance(value, dict) else value


def agree(
    theirs: nn.Module | Callable,
    ours: Callable[[list[Tensor]], Tensor],
    vectors: Sequence[Tensor],
    labels: Tensor | None = None,
) -> Tensor:
    """Asserts equal values and equal gradients of all vectors, to 1e-6; returns the value."""
    found = []
    for loss in (lambda v: theirs([{"vectors": each} for each in v], labels), ours):
        leaves = [each.clone().requires_grad_() for each in vectors]
        value = total(loss(leaves))
        value.backward()
        found.append((value.detach(), [leaf.grad for leaf in leaves]))
    (expected, expected_grads), (value, grads) = found
    assert any(grad.abs().max() > 1e-4 for grad in expected_grads), "a gradient that can differ"
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-6, atol=1e-6)
    return value
