"""Losses of pairs with classes."""

import pytest
import torch
from given_vectors import GivenVectors, agree, batch_of, columns
from sentence_transformers.sentence_transformer import losses as st

from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.labelled import SoftmaxNLI, contrastive, online_contrastive

LABELS = torch.tensor([1, 0, 0, 1, 1, 0])
METRICS = {
    "cosine": st.SiameseDistanceMetric.COSINE_DISTANCE,
    "euclidean": lambda x, y: (x - y).norm(dim=-1),
    "manhattan": lambda x, y: (x - y).abs().sum(dim=-1),
}


@pytest.mark.parametrize("distance", METRICS)
@pytest.mark.parametrize("margin", [0.5, 3.0])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(st.ContrastiveLoss, contrastive), (st.OnlineContrastiveLoss, online_contrastive)],
)
def test_sentence_transformers(theirs, ours, distance, margin):
    agree(
        theirs(GivenVectors(), METRICS[distance], margin=margin),
        lambda v: ours(batch_of(v, label_B=LABELS), distance=distance, margin=margin),
        columns(6, 6),
        LABELS,
    )


def test_without_labels_positives_are_1_and_negatives_0():
    query = torch.eye(2)
    document = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    # Distances 0 and 1 - root of 1/2 of the positives, 1 and 0 of the negatives.
    expected = 0.5 * ((1 - 0.5**0.5) ** 2 + 0.5**2) / 4
    torch.testing.assert_close(contrastive(Compared.pairs(query, document)), torch.tensor(expected))


def test_labels_that_are_not_0_or_1():
    with pytest.raises(DataError, match="labels 0 and 1"):
        contrastive(batch_of(columns(2, 2), label_B=torch.tensor([0, 2])))


def test_one_class_alone():
    with pytest.raises(DataError, match="both labels"):
        online_contrastive(batch_of(columns(2, 2), label_B=torch.tensor([1, 1])))


@pytest.mark.parametrize("product", [False, True])
def test_softmax(product):
    model = GivenVectors()
    theirs = st.SoftmaxLoss(model, 6, 3, concatenation_sent_multiplication=product).double()
    features = ("query", "document", "difference", *["product"] * product)
    ours = SoftmaxNLI(vector_size=6, num_labels=3, features=features).double()
    ours.head.load_state_dict(theirs.classifier.state_dict())
    labels = torch.tensor([0, 1, 2, 0, 2, 1])
    agree(theirs, lambda v: ours(batch_of(v, label_B=labels)), columns(6, 6), labels)
    torch.testing.assert_close(ours.head.weight.grad, theirs.classifier.weight.grad)


def test_the_head_learns_three_classes():
    torch.manual_seed(0)
    query = torch.randn(30, 8)
    labels = torch.arange(30) % 3
    document = query * (labels - 1.0)[:, None]
    head = SoftmaxNLI(vector_size=8, num_labels=3)
    batch = Compared.pairs(query, document, label_B=labels)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        head(batch).backward()
        optimizer.step()
    assert (head.logits(batch).argmax(-1) == labels).float().mean() > 0.9


def test_one_label_is_no_classification():
    with pytest.raises(SettingsError, match="two labels"):
        SoftmaxNLI(vector_size=4, num_labels=1)
