"""A stage's losses as one objective."""

import pytest
import torch
from given_vectors import batch_of, columns

from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.info_nce import info_nce
from polyvec.train.losses.scored import cosent
from polyvec.train.losses.terms import Objective


def test_weighted_terms_by_name():
    objective = Objective.of(
        [{"kind": "info_nce", "temperature": 0.1}, {"kind": "cosent", "weight": 3, "name": "sts"}]
    )
    batch = batch_of(columns(4, 4, 4))
    found = objective(batch)
    assert list(found) == ["info_nce", "sts"]
    torch.testing.assert_close(found["info_nce"], info_nce(batch, temperature=0.1))
    torch.testing.assert_close(found["sts"], 3 * cosent(batch))


def test_a_weight_of_zero_computes_nothing_and_needs_nothing():
    objective = Objective.of([{"kind": "info_nce"}, {"kind": "kl_rank", "weight": 0.0}])
    assert list(objective(batch_of(columns(3, 3)))) == ["info_nce"]
    assert not objective.needs


def test_the_data_set_selects_the_loss():
    """Piccolo2: rows of sts take CoSENT, those of retrieval InfoNCE."""
    objective = Objective.of(
        [
            {"kind": "info_nce", "datasets": ["retrieval"]},
            {"kind": "cosent", "datasets": ["sts"]},
            {"kind": "info_nce", "name": "other", "datasets": ["missing"]},
        ]
    )
    query, document = columns(5, 5)
    query.requires_grad_()
    score = torch.rand(5, dtype=torch.float64)
    datasets = ("sts", "retrieval", "sts", "retrieval", "sts")
    found = objective(batch_of([query, document], score_B=score, datasets=datasets))
    one, two = [1, 3], [0, 2, 4]
    torch.testing.assert_close(found["info_nce"], info_nce(batch_of([query[one], document[one]])))
    torch.testing.assert_close(
        found["cosent"], cosent(batch_of([query[two], document[two]], score_B=score[two]))
    )
    assert found["other"] == 0
    found["other"].backward()


def test_weights_of_losses_are_parameters():
    objective = Objective.of([{"kind": "info_nce_learned"}])
    assert [name for name, _ in objective.named_parameters()] == ["terms.0.loss.log_scale"]


def test_what_a_task_must_fill():
    losses = [{"kind": "kl_rank"}, {"kind": "info_nce", "false_negatives": "absolute"}]
    assert Objective.of(losses).needs == {"teacher_N"}
    losses[1]["guide"] = True
    assert Objective.of(losses).needs == {"teacher_N", "guide_query_BG"}
    with pytest.raises(DataError, match=r"loss 'kl_rank' needs a teacher's score"):
        Objective.of(losses)(batch_of(columns(2, 2)))


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([], "no losses are given"),
        ([{"weight": 1.0}], r"losses\[0\]: setting 'kind' is missing"),
        ([{"kind": "infonce"}], "Did you mean 'info_nce'"),
        ([{"kind": "info_nce", "temprature": 1}], "Did you mean 'temperature'"),
        ([{"kind": "info_nce", "batch": 1}], "setting 'batch' is not known"),
        ([{"kind": "info_nce", "weight": "high"}], "'weight' is 'high', not float"),
        ([{"kind": "cosent"}, {"kind": "cosent"}], "two losses are called 'cosent'"),
    ],
)
def test_wrong_losses(losses, says):
    with pytest.raises(SettingsError, match=says):
        Objective.of(losses)


def own(batch, *, factor: float):
    """A user's loss."""
    return factor * batch.query_BE.sum()


def test_a_loss_of_ones_own():
    objective = Objective.of([{"kind": f"{__name__}:own", "factor": 2.0}])
    query, document = columns(2, 2)
    (value,) = objective(batch_of([query, document])).values()
    torch.testing.assert_close(value, 2 * query.sum())


def test_scores_that_only_some_data_sets_have():
    """A batch of retrieval and similarity rows, as Conan-embedding's: each loss sees its own."""
    vectors = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    score = torch.tensor([float("nan"), float("nan"), 0.2, 0.9])
    batch = Compared.pairs(
        vectors[:4], vectors[4:], score_B=score, datasets=("pairs", "pairs", "sts", "sts")
    )
    tables = [
        {"kind": "info_nce", "datasets": ["pairs"]},
        {"kind": "cosent", "weight": 0.8, "datasets": ["sts"]},
    ]
    terms = Objective.of(tables)(batch)
    apart = Compared.pairs(vectors[2:4], vectors[6:], score_B=score[2:])
    torch.testing.assert_close(terms["cosent"], 0.8 * cosent(apart))
    torch.testing.assert_close(
        terms["info_nce"], info_nce(Compared.pairs(vectors[:2], vectors[4:6]))
    )
    with pytest.raises(DataError, match="mse_score' reads a score of each row, which some rows"):
        Objective.of([{"kind": "mse_score"}])(batch)
