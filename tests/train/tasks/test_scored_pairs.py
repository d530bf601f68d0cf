"""Pairs with a score or a class are no matches: losses that take them for some refuse them."""

import pytest
import torch

from polyvec import load_recipe
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.sources import rows_of
from polyvec.errors import DataError
from polyvec.train.compared import NO_LABEL, Compared
from polyvec.train.losses.terms import Objective
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks.contrastive import Contrastive

SCORED = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 4} for i in range(4)]
CLASSES = [{"premise": f"a {i}", "hypothesis": f"b {i}", "label": i % 3} for i in range(4)]
SETTINGS = {"softmax_nli": {"num_labels": 3}}


@pytest.fixture(scope="module")
def embedder():
    return load_recipe("causal-mean").build("nano")


def work(embedder, rows, *losses):
    stage = StageSettings(
        "scl", losses=tuple({"kind": kind, **SETTINGS.get(kind, {})} for kind in losses)
    )
    return Contrastive(embedder, stage).work(rows, [Share(0, len(rows))], 0)


@pytest.mark.parametrize(
    ("records", "losses", "message"),
    [
        (
            SCORED,
            ["info_nce"],
            r"row 0: the pair has a score \(0\) that no loss reads \(info_nce\)",
        ),
        (SCORED, [], r"row 0: the pair has a score"),
        (
            CLASSES,
            ["info_nce", "flops"],
            r"the pair has a class that no loss reads \(info_nce, flops\)",
        ),
    ],
)
def test_a_judged_pair_is_no_match(embedder, records, losses, message):
    rows = rows_of(records).rows
    with pytest.raises(DataError, match=message):
        work(embedder, rows, *losses)


@pytest.mark.parametrize(
    ("records", "losses"),
    [(SCORED, ["cosent"]), (SCORED, ["info_nce", "angle"]), (CLASSES, ["softmax_nli"])],
)
def test_losses_that_read_scores_and_classes_take_them(embedder, records, losses):
    assert work(embedder, rows_of(records).rows, *losses).pieces


def test_losses_of_other_data_sets_do_not_count(embedder):
    rows = [*rows_of(SCORED, name="sts").rows, *rows_of([{"a": "b", "c": "d"}], name="qa").rows]
    cosent, nce = {"kind": "cosent", "datasets": ["sts"]}, {"kind": "info_nce", "datasets": ["qa"]}
    share = [Share(0, len(rows))]
    stage = StageSettings("scl", losses=(cosent, nce))
    assert Contrastive(embedder, stage).work(rows, share, 0).pieces
    stage = StageSettings("scl", losses=({"kind": "info_nce"}, {**cosent, "datasets": ["other"]}))
    with pytest.raises(
        DataError, match=r"no loss reads \(info_nce\), so it would count as a match"
    ):
        Contrastive(embedder, stage).work(rows, share, 0)


def test_high_scores_become_matches(embedder):
    rows = rows_of(SCORED, min_score=0.5).rows
    assert len(rows) == 2
    assert work(embedder, rows, "info_nce").pieces


TAUGHT = [
    {"query": f"a {i}", "pos": [f"b {i}"], "neg": ["c"], "pos_scores": [1], "neg_scores": [0]}
    for i in range(3)
]
UNJUDGED = {"sentence1": "a", "sentence2": "b"}
PAIR = {"query": "a", "pos": ["b"], "neg": ["c"]}


@pytest.mark.parametrize(
    ("records", "loss", "message"),
    [
        ([*TAUGHT, PAIR], "kl_rank", r"a teacher's score of each document, .* lacks at x 3\. Give"),
        ([PAIR], "margin_mse", "Give pos_scores and neg_scores, or a list in label or scores"),
        ([PAIR], "softmax_nli", "a label of each row, which data set 'x' lacks at x 0"),
        ([PAIR], "soft_info_nce", "Give a column score"),
        # Beside a pair of label 0 it would make that one a match.
        (
            [{"sentence1": f"a {i}", "sentence2": "b", "label": 0} for i in range(4)] + [UNJUDGED],
            "contrastive",
            "a label of each row, which data set 'x' lacks at x 4",
        ),
    ],
)
def test_what_a_loss_reads_is_there_before_the_first_batch(embedder, records, loss, message):
    stage = StageSettings("scl", losses=({"kind": loss, **SETTINGS.get(loss, {})},))
    data = TrainingData([rows_of(records, name="x")])
    with pytest.raises(DataError, match=message):
        Contrastive(embedder, stage).prepare(data)
    other = TrainingData([*data.sets, rows_of(TAUGHT, name="y")])
    stage = StageSettings("scl", losses=({"kind": "kl_rank", "datasets": ["y"]},))
    Contrastive(embedder, stage).prepare(other)


@pytest.mark.parametrize(
    ("loss", "judged"),
    [
        ("cosent", {"score_B": torch.tensor([0.1, float("nan"), 0.9])}),
        ("online_contrastive", {"label_B": torch.tensor([0, NO_LABEL, 1])}),
    ],
)
def test_a_batch_of_judged_and_other_rows_is_refused(loss, judged):
    """Without the scores of all rows, a pair with score 0.1 would count as a match."""
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    batch = Compared.pairs(vectors[:3], vectors, datasets=("sts", "qa", "sts"), **judged)
    with pytest.raises(DataError, match="some rows of the batch have and others lack"):
        Objective.of([{"kind": loss}])(batch)
    assert Objective.of([{"kind": loss, "datasets": ["sts"]}])(batch)
