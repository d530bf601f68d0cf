"""Stages whose losses read more than final vectors: momentum keys, vectors before a projection."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy_run import PAIRS, write_recipe

from polyvec import Trainer, TrainingArguments, load_recipe
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import SettingsError
from polyvec.train.engine import joined
from polyvec.train.run import train_recipe
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks.contrastive import contrastive

ROWS = [TrainingRow(query=a, positives=(b,)) for a, b in PAIRS]
WHOLE = [Share(0, len(ROWS))]


def nano():
    return load_recipe("causal-mean").build("nano")


def stage(*losses, **more):
    return StageSettings(kind="scl", losses=losses, max_length=16, **more)


def test_keys_are_the_documents_by_a_copy_that_follows_after_each_step():
    embedder = nano()
    task = contrastive(embedder, stage({"kind": "momentum_queue", "momentum": 0.75, "size": 4}))
    task.prepare(ROWS)
    slow = copy.deepcopy(embedder)
    documents = [b for _, b in PAIRS]
    for number in (0, 1):
        task.batch_number = number
        keys = task.work(ROWS, WHOLE, 0).facts.fields["key_NE"]
        expected = slow.eval().encode_document(documents)
        np.testing.assert_allclose(
            F.normalize(keys), F.normalize(torch.tensor(expected)), atol=1e-5
        )
        with torch.no_grad():
            for own, other in zip(embedder.parameters(), slow.parameters(), strict=True):
                own += 0.01 * torch.randn(own.shape)
                other.copy_(0.75 * other + 0.25 * own)


def test_keys_follow_once_for_batches_that_share_a_step():
    embedder = nano()
    losses = {"kind": "momentum_queue", "momentum": 0.5}
    task = contrastive(embedder, stage(losses, accumulate=2))
    task.prepare(ROWS)
    found = []
    for number in (1, 2):  # the second batch of a step, and the first of the next
        with torch.no_grad():
            next(iter(embedder.parameters())).mul_(1.5)
        task.batch_number = number
        found.append(task.work(ROWS, WHOLE, 0).facts.fields["key_NE"])
    whole = embedder.eval().encode_document([b for _, b in PAIRS])
    assert not torch.equal(*found)
    assert not np.allclose(F.normalize(found[1]), F.normalize(torch.tensor(whole)), atol=1e-4)


@pytest.mark.medium
def test_a_run_with_a_momentum_encoder_learns_and_saves_the_model_alone(tmp_path):
    loss = '{ kind = "momentum_queue", momentum = 0.9, size = 4, in_batch = true }'
    path = write_recipe(tmp_path, f"losses = [{loss}]\nmax_steps = 30\n")
    trained = train_recipe(load_recipe(path), "full", tmp_path / "run")
    untrained = load_recipe(path).build("full")
    queries, documents = zip(*PAIRS, strict=True)

    def margin(model):
        scores = (
            F.normalize(torch.tensor(model.encode(queries)))
            @ F.normalize(torch.tensor(model.encode(documents))).T
        )
        return float(scores.diag().mean() - scores.mean())

    assert margin(trained) > margin(untrained) + 0.1
    assert sum(p.numel() for p in trained.parameters()) == untrained.num_parameters


def with_autoencoder():
    torch.manual_seed(0)
    settings = load_recipe("causal-mean").at(EMBEDDER, "nano")

    projections = ({"kind": "csr", "num_latents": 256, "k": 8},)
    return compose(dataclasses.replace(settings, projections=projections))


def test_the_autoencoders_loss_gets_the_vectors_before_it():
    embedder = with_autoencoder()
    task = contrastive(embedder, stage({"kind": "csr", "gamma": 0.0, "beta": 0.0}))
    work = task.work(ROWS, WHOLE, 0)
    found = [task.jobs[piece.job](embedder, piece.payload) for piece in work.pieces]
    batch = task.compared(work.ordered(joined(work.pieces, found)), work.facts)
    plain = nano()
    expected = plain.encode([a for a, _ in PAIRS])
    np.testing.assert_allclose(
        F.normalize(batch.query_BE.detach()), F.normalize(torch.tensor(expected)), atol=1e-5
    )


@pytest.mark.medium
def test_an_autoencoder_on_a_frozen_model_learns_to_rebuild_its_vectors(tmp_path):
    embedder = with_autoencoder()
    (coder,) = [each for each in embedder.projections if hasattr(each, "reconstruct")]
    texts = [text for pair in PAIRS for text in pair]
    plain = torch.tensor(nano().encode(texts))

    def error():
        return float(F.mse_loss(coder.reconstruct(plain), plain).detach() / plain.var())

    before = error()
    args = TrainingArguments(
        tmp_path / "run",
        per_device_train_batch_size=8,
        max_steps=60,
        learning_rate=0.02,
        adapter={"kind": "frozen"},
        use_cpu=True,
        save_strategy="no",
    )
    rows = [{"anchor": a, "positive": b} for a, b in PAIRS]
    Trainer(embedder, args, rows, loss={"kind": "csr", "num_auxiliary": 32}).train()
    assert error() < before / 2
    found = np.asarray(embedder.eval().encode(texts))
    assert ((found != 0).sum(1) <= 8).all()


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (({"kind": "csr"},), "'csr' needs autoencoder, which the model does not have"),
        (({"kind": "momentum_queue", "momentum": 1.5},), "momentum is 1.5, expected 0 to 1"),
    ],
)
def test_what_cannot_be(losses, says):
    with pytest.raises(SettingsError, match=says):
        contrastive(nano(), stage(*losses))


def test_an_autoencoders_loss_is_alone():
    with pytest.raises(SettingsError, match="give it alone"):
        contrastive(with_autoencoder(), stage({"kind": "csr"}, {"kind": "info_nce"}))
