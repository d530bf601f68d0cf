"""Negatives that give way to the next of their list (Conan-embedding)."""

import dataclasses

import pytest
import torch

from polyvec import load_recipe
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.data.training.table import DataTable
from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.engine import joined
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks.contrastive import contrastive
from polyvec.train.tasks.dynamic import DynamicNegatives, DynamicSettings

ROWS = [
    TrainingRow("a cat", ("a kitten",), ("a dog", "a mouse", "a bird", "a fish")),
    TrainingRow("the sea", ("an ocean",), ("a lake", "a pond")),
]


def unit(cosine):
    return [cosine, (1 - cosine**2) ** 0.5]


def recorded(kept, *cosines):
    """A batch whose negatives have these cosines to their queries."""
    query = torch.tensor([[1.0, 0.0]] * 2)
    negatives = [unit(each) for row in cosines for each in row]
    document = torch.tensor([[1.0, 0.0]] * 2 + negatives)
    owner = torch.tensor([0, 1, *(i for i, row in enumerate(cosines) for _ in row)])
    positive = torch.arange(len(document)) < 2
    kept.record(Compared(query, document, owner, positive), kept.numbers(ROWS))


def made(**settings):
    found = DynamicNegatives(DynamicSettings(num_negatives=2, every=10, **settings))
    found.prepare(ROWS)
    return found


def test_a_negative_is_replaced_when_its_score_has_fallen_by_the_ratio():
    kept = made()
    assert kept.of(ROWS[0]) == ("a dog", "a mouse")
    recorded(kept, (0.60, 0.60), (0.60, 0.95))
    # 0.53 * 1.15 is above 0.60, 0.52 * 1.15 below; 0.81 * 1.15 is below 0.95, but above 0.8.
    recorded(kept, (0.53, 0.52), (0.52, 0.81))
    assert kept.check(5) == 0 and kept.of(ROWS[0]) == ("a dog", "a mouse")
    assert kept.check(10) == 1
    assert kept.of(ROWS[0]) == ("a dog", "a bird")
    assert kept.of(ROWS[1]) == ("a lake", "a pond")  # its list has no more
    recorded(kept, (0.60, 0.90), (0.60, 0.90))  # the first score of the new one
    recorded(kept, (0.52, 0.79), (0.60, 0.90))
    assert kept.check(20) == 1 and kept.of(ROWS[0]) == ("a fish", "a bird")


def test_rows_that_differ_in_their_negatives_alone_are_kept_apart():
    rows = [ROWS[0], dataclasses.replace(ROWS[0], negatives=("a lake", "a pond", "a river"))]
    rows.append(dataclasses.replace(ROWS[0], place="other.jsonl:1"))
    kept = DynamicNegatives(DynamicSettings(num_negatives=1, every=1))
    kept.prepare(rows)
    assert kept.numbers(rows) == (0, 1, 2)
    query, easy = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], unit(0.1)])
    for document in (torch.tensor([[1.0, 0.0], unit(0.6)]), easy):
        batch = Compared(query, document, torch.tensor([0, 0]), torch.tensor([True, False]))
        kept.record(batch, kept.numbers(rows[:1]))
    assert kept.check(1) == 1
    assert [kept.of(row) for row in rows] == [("a mouse",), ("a lake",), ("a dog",)]


def test_an_epoch_may_draw_positives_but_not_negatives():
    """By default one of the positives is drawn."""
    row = dataclasses.replace(ROWS[0], positives=("a kitten", "a tomcat"))
    data = TrainingData([TrainingSet("pets", [row])], seed=0)
    kept = DynamicNegatives(DynamicSettings())
    kept.prepare(data)
    assert len(data.drawn(0, 0).positives) == 1
    assert kept.of(data.drawn(0, 0)) == ("a dog",)
    few = TrainingSet("pets", [row], DataTable(num_negatives=2))
    with pytest.raises(SettingsError, match="'pets' has num_negatives, which draws others"):
        made().prepare(TrainingData([few], seed=0))


def test_a_checkpoint_keeps_which_are_used():
    kept, again = made(), made()
    recorded(kept, (0.60, 0.60), (0.60, 0.60))
    recorded(kept, (0.10, 0.10), (0.60, 0.60))
    kept.check(10)
    again.load_state_dict(kept.state_dict())
    assert again.of(ROWS[0]) == ("a bird", "a fish")


def test_a_stage_takes_the_negatives_of_now():
    torch.manual_seed(0)
    embedder = load_recipe("causal-mean").build("nano")
    table = {"num_negatives": 1, "every": 2, "ratio": 1.0, "ceiling": 1.0}
    task = contrastive(embedder, StageSettings("scl", max_length=16), dynamic_negatives=table)
    task.prepare(ROWS)
    assert "dynamic_negatives.place_Rn" in task.heads.state_dict()
    optimizer = torch.optim.AdamW(embedder.parameters(), lr=1e-3)
    seen = []
    for number in range(4):
        task.batch_number = number
        work = task.work(ROWS, [Share(0, 2)], 0)
        seen.append([task.dynamic.of(row)[0] for row in ROWS])
        found = [task.jobs[piece.job](embedder, piece.payload) for piece in work.pieces]
        rows = work.ordered(joined(work.pieces, found))
        assert len(task.compared(rows, work.facts).document_NE) == 4
        optimizer.zero_grad()
        sum(task.loss(rows, work.facts).values()).backward()
        optimizer.step()
    # Training moves negatives away; the check is before the third step.
    assert seen == [["a dog", "a lake"]] * 2 + [["a mouse", "a pond"]] * 2


@pytest.mark.parametrize(
    ("table", "mining", "says"),
    [
        ({"num_negatives": 0}, {}, "num_negatives is 0, expected 1"),
        ({"evry": 3}, {}, "'evry' is not known. Did you mean 'every'"),
        ({}, {"refresh_epochs": 1}, "leave out refresh_epochs"),
    ],
)
def test_what_cannot_be(table, mining, says):
    embedder = load_recipe("causal-mean").build("nano")
    with pytest.raises(SettingsError, match=says):
        contrastive(embedder, StageSettings("scl", mining=mining), dynamic_negatives=table)
    row = dataclasses.replace(ROWS[0], teacher_scores=(1.0,) * 5)
    with pytest.raises(DataError, match="has a teacher's scores"):
        made().prepare([row])
