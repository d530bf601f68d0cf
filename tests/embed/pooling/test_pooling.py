"""Poolings: values by hand, the padding side, partial pooling, agreement with a peer."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from polyvec.embed.formats.schema import POOLING_FLAGS
from polyvec.embed.pooling.functions import POOLINGS, pool
from polyvec.errors import ShapeError

STATES = torch.tensor([[[1.0, 4.0], [3.0, -2.0], [5.0, 0.0]]])  # one text, three tokens
BY_HAND = {
    "first": [1.0, 4.0],
    "max": [5.0, 4.0],
    "mean": [3.0, 2 / 3],
    "mean_sqrt_len": [9 / 3**0.5, 2 / 3**0.5],
    "weighted_mean": [(1 + 6 + 15) / 6, (4 - 4 + 0) / 6],
    "last": [5.0, 0.0],
    "weighted_mean_text": [(1 + 6 + 15) / 6, (4 - 4 + 0) / 6],
}


def test_every_pooling_has_a_value_by_hand():
    assert set(BY_HAND) == set(POOLINGS)


@pytest.mark.parametrize("name", POOLINGS)
def test_value_by_hand(name):
    assert_close(POOLINGS[name](STATES, torch.ones(1, 3)), torch.tensor([BY_HAND[name]]))


@pytest.mark.parametrize("junk", [1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", POOLINGS)
def test_padding_changes_nothing(name, side, junk):
    pads, zeros, ones = torch.full((1, 2, 2), junk), torch.zeros(1, 2), torch.ones(1, 3)
    order = (pads, STATES) if side == "left" else (STATES, pads)
    masks = (zeros, ones) if side == "left" else (ones, zeros)
    padded = POOLINGS[name](torch.cat(order, 1), torch.cat(masks, 1))
    assert_close(padded, torch.tensor([BY_HAND[name]]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("first", [3.0, -2.0]),
        ("max", [5.0, 0.0]),
        ("mean", [4.0, -1.0]),
        ("mean_sqrt_len", [8 / 2**0.5, -2 / 2**0.5]),
        ("weighted_mean", [(2 * 3 + 3 * 5) / 5, (2 * -2 + 3 * 0) / 5]),
        ("last", [5.0, 0.0]),
        ("weighted_mean_text", [(1 * 3 + 2 * 5) / 3, (1 * -2 + 2 * 0) / 3]),
    ],
)
def test_partial_pooling_leaves_the_prompt_out(name, value, side):
    """The first token is read but not pooled; its position still counts in weighted_mean."""
    pad = torch.full((1, 2, 2), 9.0)
    pooled, seen = torch.tensor([[False, True, True]]), torch.ones(1, 3, dtype=torch.bool)
    no = torch.zeros(1, 2, dtype=torch.bool)
    put = (
        (lambda a, b: torch.cat([a, b], 1))
        if side == "left"
        else (lambda a, b: torch.cat([b, a], 1))
    )
    out = pool([name], put(pad, STATES), put(no, pooled), put(no, seen))
    assert_close(out, torch.tensor([value]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mean", "weighted_mean", "weighted_mean_text", "mean_sqrt_len"])
def test_half_precision_is_summed_in_float32(name, dtype):
    """4,096 equal states: a sum in half precision would stop growing at 2,048 or overflow."""
    states = torch.full((1, 4096, 1), 20.0, dtype=dtype)
    out = POOLINGS[name](states, torch.ones(1, 4096))
    assert out.dtype == dtype
    assert_close(out.item(), 20.0 * (64 if name == "mean_sqrt_len" else 1), rtol=1e-2, atol=0)


def test_several_poolings_are_concatenated():
    mask = torch.ones(1, 3, dtype=torch.bool)
    out = pool(["last", "first"], STATES, mask, mask)
    assert_close(out, torch.tensor([[5.0, 0.0, 1.0, 4.0]]))


def test_a_text_without_a_pooled_token_is_refused():
    mask = torch.tensor([[True, True, True], [False, False, False]])
    with pytest.raises(ShapeError, match="no token"):
        pool(["mean"], STATES.expand(2, 3, 2), mask, mask)


def test_masks_of_another_batch_are_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ShapeError, match="masks"):
        pool(["mean"], STATES, mask, mask)


@pytest.mark.parametrize("name", POOLING_FLAGS)
def test_agrees_with_sentence_transformers(name):
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    states = torch.randn(3, 7, 5)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 2 + [1] * 5])
    peer = modules.Pooling(5, pooling_mode=POOLING_FLAGS[name][1])
    theirs = peer({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"]
    np.testing.assert_allclose(POOLINGS[name](states, mask), theirs, atol=1e-6)
