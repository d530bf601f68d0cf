"""Tokens from logits: transformers' nuclei, the softmax's frequencies, and rounding."""

import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from polyvec.embed.backbone.drawing import Drawing, draw
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
    logits_V, drawing = torch.tensor([1.0, 0.0, -1.0, 2.0]), Drawing(0.8, seed=2**64 - 3)
    drawn = [draw(logits_V.numpy(), drawing, 0.0, drawing.noise(n))[0] for n in range(20_000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    torch.testing.assert_close(counts, (logits_V / 0.8).softmax(0), atol=0.012, rtol=0)


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
        wanted = lambda ids, token=token: np.where(ids == token, 1e4, 0.0)  # noqa: E731
        if draw(logits_V.numpy(), drawing, 0.0, wanted)[0] == token:
            found.add(token)
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_no_change_below_the_tolerance_changes_a_certain_token(name):
    drawing, tolerance = SETTINGS[name], 0.02
    generator, uncertain = np.random.default_rng(1), 0
    for place, logits_V in enumerate(rows(150).numpy()):
        noise = drawing.noise(place)
        token, certain = draw(logits_V, drawing, tolerance, noise)
        uncertain += not certain
        for _ in range(5 if certain else 0):
            change_V = generator.uniform(-tolerance, tolerance, len(logits_V))
            assert draw(logits_V + change_V, drawing, 0.0, noise)[0] == token
    assert 0 < uncertain < 60


def test_what_is_not_allowed_is_never_drawn():
    logits_V = np.full(6, -np.inf, np.float32)
    logits_V[4] = -3.0
    for drawing in SETTINGS.values():
        assert draw(logits_V, drawing, 0.1, drawing.noise(0)) == (4, True)


def test_tokens_and_places_have_noise_of_their_own():
    ids = np.arange(500)
    first, other = Drawing(1.0, seed=5).noise(0)(ids), Drawing(1.0, seed=5).noise(1)(ids)
    assert len({*first, *other}) == 1000
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.15
    # Of a part of the tokens it is the same: what else may be drawn changes nothing.
    assert (Drawing(1.0, seed=5).noise(0)(ids[7:9]) == first[7:9]).all()


def test_two_cuts_at_once_are_refused():
    with pytest.raises(SettingsError, match="top_k and top_p"):
        Drawing(1.0, top_p=0.5, top_k=3)
