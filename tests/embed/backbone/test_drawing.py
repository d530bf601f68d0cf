"""Tokens from logits: transformers' nuclei, the softmax's frequencies, and rounding."""

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from polyvec.embed.backbone.drawing import Drawing, draw, noise
from polyvec.errors import SettingsError

SETTINGS = {
    "greedy": Drawing(),
    "sampled": Drawing(0.7),
    "top_p": Drawing(1.3, top_p=0.8),
    "narrow top_p": Drawing(0.5, top_p=0.2),
    "top_1": Drawing(1.0, top_k=1),
    "top_k": Drawing(1.0, top_k=5),
}


def rows(count, size=400, scale=2.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0)) * scale


def test_draws_have_the_frequencies_of_the_softmax():
    logits_V, generator = torch.tensor([1.0, 0.0, -1.0, 2.0]), torch.Generator().manual_seed(3)
    drawing = Drawing(0.8)
    drawn = [draw(logits_V, noise(generator, 4), drawing, 0.0)[0] for _ in range(6_000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    torch.testing.assert_close(counts, (logits_V / 0.8).softmax(0), atol=0.02, rtol=0)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_is_that_of_transformers(top_p):
    for logits_V in rows(6, size=400, scale=0.5):
        kept = TopPLogitsWarper(top_p)(None, logits_V[None] / 0.7)[0].isfinite()
        assert drawable(logits_V, Drawing(0.7, top_p=top_p)) == set(
            kept.nonzero().flatten().tolist()
        )


@pytest.mark.parametrize("top_k", [1, 50, 390])
def test_the_likeliest_k_are_those_of_transformers(top_k):
    for logits_V in rows(3):
        kept = TopKLogitsWarper(top_k)(None, logits_V[None])[0].isfinite()
        assert drawable(logits_V, Drawing(1.0, top_k=top_k)) == set(
            kept.nonzero().flatten().tolist()
        )


def drawable(logits_V, drawing):
    """The tokens that are drawn if noise wants them."""
    found = set()
    for token in range(len(logits_V)):
        wanted_V = torch.zeros(len(logits_V))
        wanted_V[token] = 1e4
        if draw(logits_V, wanted_V, drawing, 0.0)[0] == token:
            found.add(token)
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_no_change_below_the_tolerance_changes_a_certain_token(name):
    drawing, tolerance = SETTINGS[name], 0.02
    generator, uncertain = torch.Generator().manual_seed(1), 0
    for logits_V in rows(150):
        noise_V = noise(generator if drawing.temperature else None, len(logits_V))
        token, certain = draw(logits_V, noise_V, drawing, tolerance)
        uncertain += not certain
        for _ in range(5 if certain else 0):
            change_V = (torch.rand(len(logits_V), generator=generator) * 2 - 1) * tolerance
            assert draw(logits_V + change_V, noise_V, drawing, 0.0)[0] == token
    assert 0 < uncertain < 60


def test_what_is_not_allowed_is_never_drawn():
    logits_V = torch.full((6,), -torch.inf)
    logits_V[4] = -3.0
    generator = torch.Generator().manual_seed(0)
    for drawing in SETTINGS.values():
        noise_V = noise(generator if drawing.temperature else None, 6)
        assert draw(logits_V, noise_V, drawing, 0.1) == (4, True)


def test_two_cuts_at_once_are_refused():
    with pytest.raises(SettingsError, match="top_k and top_p"):
        Drawing(1.0, top_p=0.5, top_k=3)
