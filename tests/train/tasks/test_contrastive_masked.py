"""Vectors compared and masked tokens predicted in one step, against transformers' BERT."""

import copy

import numpy as np
import pytest
import torch
from test_diffcse import bert, plain
from test_language import loss_of
from torch.nn import functional as F

from polyvec import Embedder
from polyvec.data.training.rows import TrainingRow
from polyvec.errors import SettingsError
from polyvec.train.adapters import prepare
from polyvec.train.settings import StageSettings
from polyvec.train.tasks.multi_task import ContrastiveMasked

ROWS = [
    TrainingRow("the cat sat on the mat", ("a cat on a mat",)),
    TrainingRow("a dog looks", ("nobody looks",)),
    TrainingRow("the very long text of two", ("a text",)),
]
STAGE = StageSettings("scl_mlm", losses=({"kind": "info_nce", "temperature": 1.0},), seed=3)


def made(folder, **settings):
    lm = bert(folder / "body")
    embedder = Embedder.from_pretrained(folder / "body", pooling="first")
    task = ContrastiveMasked(embedder, STAGE, probability=0.5, **settings)
    prepare(embedder, {"kind": "full"}, head=True)
    return lm, embedder, task


def reference(lm, embedder, task, weight):
    """The value by transformers' own forward, text by text; gradients are left in a copy."""
    model = plain(copy.deepcopy(lm))
    words = embedder.tokenizer

    def vectors(texts):
        ids = [torch.tensor([words(text).input_ids]) for text in texts]
        return torch.cat([model.bert(input_ids=each).last_hidden_state[:, 0] for each in ids])

    cosine = F.cosine_similarity(
        vectors([row.query for row in ROWS])[:, None],
        vectors([row.positives[0] for row in ROWS])[None],
        dim=-1,
    )
    losses = []
    for place, row in enumerate(ROWS):
        seen = task.language.example(row, np.random.default_rng([STAGE.seed, 0, place]))
        logits = model(input_ids=torch.tensor(seen.tokens.ids.astype(np.int64))[None]).logits[0]
        targets = torch.tensor(seen.targets.astype(np.int64))
        losses.append(F.cross_entropy(logits[seen.places], targets, reduction="none"))
    assert sum(map(len, losses)) > 4
    value = F.cross_entropy(cosine, torch.arange(3)) + weight * torch.cat(losses).mean()
    value.backward()
    return float(value.detach()), model


@pytest.mark.parametrize(
    ("budget", "shares", "cached"), [(0, 1, False), (0, 3, False), (12, 2, True)]
)
def test_loss_and_gradients_are_those_of_transformers(budget, shares, cached, tmp_path):
    lm, embedder, task = made(tmp_path, weight=0.5)
    task.contrastive.budget = task.language.budget = budget or 8192
    wanted, model = reference(lm, embedder, task, 0.5)
    assert loss_of(embedder, task, ROWS, shares, cached) == pytest.approx(wanted, abs=1e-5)
    own = dict(embedder.backbone.lm.named_parameters())
    compared = 0
    for name, each in model.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(own[name].grad, each.grad, rtol=1e-3, atol=1e-5, msg=name)
            compared += 1
    assert compared > 30


def test_a_weight_of_nothing_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="weight is 0, expected more than 0"):
        made(tmp_path, weight=0)
