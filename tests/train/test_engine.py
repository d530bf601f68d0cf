"""One step: the gradient of pieces, with and without the cache."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from polyvec.train import engine
from polyvec.train.engine import Piece, RandomState, step


class Small(nn.Module):
    """Two layers with dropout between them, so that a cache needs its random state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.calls: list[int] = []

    def forward(self, pieces):
        self.calls.append(len(pieces))
        found = []
        for piece in pieces:
            hidden = nn.functional.dropout(self.first(piece.payload).tanh(), 0.5, self.training)
            found.append(self.second(hidden))
        return found


def contrast(rows):
    """A loss over all pairs of rows of two jobs, and one of a job alone."""
    scores = rows["query"] @ rows["document"].T
    pairs = nn.functional.cross_entropy(scores, torch.arange(len(scores)))
    return {"pairs": pairs, "length": 0.1 * rows["query"].pow(2).mean()}


def pieces(sizes=(3, 2, 1)):
    torch.manual_seed(0)
    return [
        Piece(job, torch.randn(size, 5), size) for job in ("query", "document") for size in sizes
    ]


def gradients(*, cached):
    torch.manual_seed(1)
    model = Small()
    torch.manual_seed(2)  # dropout
    terms = step(model, pieces(), contrast, cached=cached)
    return model, terms, [parameter.grad.clone() for parameter in model.parameters()]


def test_the_cache_changes_neither_loss_nor_gradient():
    plain, plain_terms, expected = gradients(cached=False)
    cached, cached_terms, found = gradients(cached=True)
    torch.testing.assert_close(cached_terms, plain_terms, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert plain.calls == [6], "one forward pass"
    assert cached.calls == [1] * 12, "each piece twice, alone"


def test_another_random_state_would_change_the_gradient(monkeypatch):
    """What sentence-transformers' cached losses got wrong (its issue 3862)."""
    _, _, expected = gradients(cached=True)
    monkeypatch.setattr(engine.RandomState, "restored", lambda _: contextlib.nullcontext())
    _, _, found = gradients(cached=True)
    assert not torch.allclose(found[0], expected[0])


def test_the_random_state_goes_on_where_it_was():
    state = RandomState.now()
    first = torch.rand(3)
    with state.restored():
        torch.testing.assert_close(torch.rand(3), first)
    assert not torch.equal(torch.rand(3), first)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and glibc's malloc alone trims")
def test_memory_that_tensors_left_goes_back_to_the_system():
    """malloc keeps what lies between blocks in use, so a run's peak grew with the pieces."""
    blocks = [torch.ones(25_000) for _ in range(2_000)]
    del blocks[:-1]
    before = resident()
    engine.return_freed_memory()
    assert before - resident() > 150  # of 200
    assert blocks[0].sum() == 25_000


def test_each_cached_piece_begins_with_the_memory_of_the_last_given_back(monkeypatch):
    calls = []
    monkeypatch.setattr(
        engine, "return_freed_memory", lambda: calls.append(torch.is_grad_enabled())
    )
    gradients(cached=True)
    assert calls == [True] * len(pieces())
    gradients(cached=False)
    assert len(calls) == len(pieces())


def resident() -> float:
    """Memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    (line,) = (each for each in lines if each.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
