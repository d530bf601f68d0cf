"""Every loss through the gradient cache: the value and the gradient of the whole batch."""

import dataclasses

import pytest
import torch
from test_table import objective, whole_batch
from torch import nn

from polyvec.train.engine import Piece, step
from polyvec.train.losses.table import LOSSES


class Small(nn.Module):
    """Vectors of eight numbers, under dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, pieces):
        return [
            self.second(nn.functional.dropout(self.first(piece.payload).tanh(), 0.3, self.training))
            for piece in pieces
        ]


def gradients(name, *, cached):
    facts = whole_batch()
    torch.manual_seed(1)
    model = Small()
    loss = objective(name)
    loss(facts)  # fills queues
    pieces = [
        Piece(job, vectors, len(vectors))
        for job, side in (("query", facts.query_BE), ("document", facts.document_NE))
        for vectors in side.split(3)
    ]

    def terms(rows):
        vectors = {"query_BE": rows["query"], "document_NE": rows["document"]}
        return loss(dataclasses.replace(facts, **vectors))

    torch.manual_seed(2)  # dropout
    found = step(model, pieces, terms, cached=cached)
    heads = {key: each.grad for key, each in loss.named_parameters()}
    return found, [each.grad for each in model.parameters()], heads


@pytest.mark.parametrize("name", LOSSES)
def test_the_cache_changes_nothing(name):
    plain, cached = gradients(name, cached=False), gradients(name, cached=True)
    assert max(grad.abs().max() for grad in plain[1]) > 1e-7
    torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-6)
