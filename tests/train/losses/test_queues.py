"""The momentum queue, and the encoder that follows."""

import copy

import pytest
import torch
from given_vectors import batch_of, columns
from torch import nn
from torch.nn import functional as F

from polyvec.errors import DataError, SettingsError
from polyvec.train.losses.info_nce import info_nce
from polyvec.train.losses.queues import MomentumQueue, follow


def batches(count, rows=3):
    """Batches with keys of a momentum encoder."""
    return [
        (columns(rows, rows, seed=seed), torch.cat(columns(rows, seed=100 + seed)))
        for seed in range(count)
    ]


def test_contriever_by_hand():
    """The third batch sees the keys of the two before; the queue holds four."""
    loss = MomentumQueue(vector_size=6, size=4, temperature=0.1).double()
    seen = torch.zeros(0, 6).double()
    for vectors, key in batches(3):
        found = loss(batch_of(vectors, key_NE=key))
        q, k = F.normalize(vectors[0]), F.normalize(key)
        own = (q * k).sum(dim=1, keepdim=True)
        scores = torch.cat([own, q @ seen[-4:].T], dim=1) / 0.1
        expected = F.cross_entropy(scores, torch.zeros(3, dtype=torch.long))
        torch.testing.assert_close(found, expected)
        seen = torch.cat([seen, k])
        assert loss.queue_QE.shape == (4, 6)
    torch.testing.assert_close(loss.queue_QE.sum(0), seen[-4:].sum(0))


def test_a_batch_that_is_larger_than_the_queue_leaves_its_last_keys():
    loss = MomentumQueue(vector_size=6, size=2).double()
    vectors, key = batches(1)[0]
    loss(batch_of(vectors, key_NE=key))
    assert sorted(loss.queue_QE[:, 0].tolist()) == sorted(F.normalize(key)[1:, 0].tolist())


def test_esimcse_adds_the_queue_to_the_batch():
    loss = MomentumQueue(vector_size=6, size=8, in_batch=True).double()
    (first, key), (second, more) = batches(2)
    torch.testing.assert_close(loss(batch_of(first, key_NE=key)), info_nce(batch_of(first)))
    found = loss(batch_of(second, key_NE=more))
    q, d, k = (F.normalize(each) for each in (*second, key))
    scores = torch.cat([q @ d.T, q @ k.T], dim=1) / 0.05
    torch.testing.assert_close(found, F.cross_entropy(scores, torch.arange(3)))


def test_own_vectors_as_keys_have_no_gradient_later():
    loss = MomentumQueue(vector_size=6, size=8, momentum_keys=False).double()
    first, second = columns(3, 3), columns(3, 3, seed=1)
    for each in first:
        each.requires_grad_()
    loss(batch_of(first))
    loss(batch_of(second)).requires_grad_()
    assert not loss.queue_QE.requires_grad
    q, d, k = F.normalize(second[0]), F.normalize(second[1]), F.normalize(first[1].detach())
    scores = torch.cat([(q * d).sum(1, keepdim=True), q @ k.T], dim=1) / 0.05
    again = MomentumQueue(vector_size=6, size=8, momentum_keys=False).double()
    again(batch_of(first))
    torch.testing.assert_close(
        again(batch_of(second)), F.cross_entropy(scores, torch.zeros(3, dtype=torch.long))
    )


def test_the_backward_pass_after_the_queue_has_moved():
    loss = MomentumQueue(vector_size=6, size=3).double()
    for vectors, key in batches(3):
        vectors[0].requires_grad_()
        loss(batch_of(vectors, key_NE=key)).backward()
        assert vectors[0].grad.isfinite().all()


def test_the_state_dict_goes_on_where_it_was():
    loss = MomentumQueue(vector_size=6, size=5).double()
    again = MomentumQueue(vector_size=6, size=5).double()
    every = [batch_of(vectors, key_NE=key) for vectors, key in batches(4)]
    for batch in every[:2]:
        loss(batch)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    for batch in every[2:]:
        assert loss(batch) == again(batch)


def test_evaluation_leaves_the_queue():
    loss = MomentumQueue(vector_size=6, size=5).double().eval()
    vectors, key = batches(1)[0]
    assert loss(batch_of(vectors, key_NE=key)) == loss(batch_of(vectors, key_NE=key))
    assert loss.num_seen == 0


def test_keys_are_needed():
    with pytest.raises(DataError, match="vectors of a momentum encoder"):
        MomentumQueue(vector_size=6)(batch_of(columns(2, 2)))


def test_a_slow_copy_follows():
    torch.manual_seed(0)
    fast, slow = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    nn.init.normal_(fast.weight)
    before, new = slow.weight.clone(), fast.weight.clone()
    fast.running_mean += 3
    follow(slow, fast, momentum=0.9)
    torch.testing.assert_close(slow.weight, 0.9 * before + 0.1 * new, rtol=0, atol=1e-6)
    torch.testing.assert_close(slow.running_mean, fast.running_mean)
    torch.testing.assert_close(fast.weight, new)
    with pytest.raises(SettingsError, match="different weights"):
        follow(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
