"""InfoNCE and its options: values by hand, and sentence-transformers'."""

import math

import pytest
import torch
from given_vectors import GivenVectors, agree, batch_of, columns
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sparse_encoder import losses as sparse
from sentence_transformers.util import dot_score
from torch import nn

from polyvec.errors import DataError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.losses.info_nce import LearnedInfoNCE, info_nce

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


def test_by_hand():
    query, document = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0], [1.0, 1.0]])
    batch = Compared.pairs(query, document)
    root = 0.5**0.5
    first = -math.log(math.e / (math.e + 1 + 1 + math.exp(root)))
    second = -math.log(math.e / (math.e + 1 + math.e + math.exp(root)))
    found = info_nce(batch, temperature=1.0)
    torch.testing.assert_close(found, torch.tensor((first + second) / 2))
    # Dot products of the second query: 0, 2, 3, 1.
    first = -math.log(math.e / (math.e + 1 + 1 + math.e))
    second = -math.log(math.exp(2) / (1 + math.exp(2) + math.exp(3) + math.e))
    found = info_nce(batch, temperature=1.0, similarity="dot")
    torch.testing.assert_close(found, torch.tensor((first + second) / 2))


@pytest.mark.parametrize(
    ("in_batch", "candidates"), [(True, 8), ("positives", 5), ("negatives", 5), (False, 2)]
)
def test_which_documents_are_negatives(in_batch, candidates):
    """Four queries with a positive and a negative each; equal scores give log(candidates)."""
    same = torch.ones(8, 3)
    found = info_nce(Compared.pairs(same[:4], same), in_batch=in_batch)
    torch.testing.assert_close(found, torch.tensor(math.log(candidates)))


@pytest.mark.parametrize("counts", [(5, 5), (5, 5, 5), (5, 5, 5, 5)])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"scale": 50.0}, {"temperature": 0.02}),
        ({"scale": 1.0, "similarity_fct": dot_score}, {"temperature": 1.0, "similarity": "dot"}),
        ({"directions": ALL}, {"directions": ALL}),
        ({"directions": ALL[:2]}, {"directions": ALL[:2]}),
        ({"directions": ALL[::2]}, {"directions": ALL[::2]}),
        (
            {"directions": ALL[::2], "partition_mode": "per_direction"},
            {"directions": ALL[::2], "partition_mode": "per_direction"},
        ),
        *(
            2 * ({"hardness_mode": mode, "hardness_strength": 5.0},)
            for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")
        ),
    ],
)
def test_multiple_negatives_ranking(theirs, ours, counts):
    loss = st.MultipleNegativesRankingLoss(GivenVectors(), **theirs)
    agree(loss, lambda v: info_nce(batch_of(v), **ours), columns(*counts))


@pytest.mark.parametrize("mini_batch", [2, 50])
def test_cached_multiple_negatives_ranking(mini_batch):
    """The loss that their gradient cache computes of all vectors."""
    theirs = st.CachedMultipleNegativesRankingLoss(
        [GivenVectors()], scale=30.0, mini_batch_size=mini_batch
    )
    agree(
        lambda features, _: theirs.calculate_loss([[each["vectors"]] for each in features]),
        lambda v: info_nce(batch_of(v), temperature=1 / 30),
        columns(5, 5, 5),
    )


def test_sparse_multiple_negatives_ranking():
    theirs = sparse.SparseMultipleNegativesRankingLoss(GivenVectors())
    agree(
        lambda features, _: theirs.compute_loss_from_embeddings(
            [each["vectors"] for each in features], None
        ),
        lambda v: info_nce(batch_of(v), temperature=1.0, similarity="dot"),
        columns(5, 5, 5),
    )


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("margin", [("absolute", 0.0), ("absolute", 0.1), ("relative", 0.2)])
@pytest.mark.parametrize("contrast", [(True, True), (False, True), (False, False)])
def test_gist_embed(negatives, margin, contrast):
    """Their guide's vectors stand beside the model's in the inputs."""
    loss = gist(*margin, *contrast)
    counts = (6, 6, 6)[: 3 if negatives else 2]
    guide = columns(*counts, seed=1, size=4)
    directions = ["query_to_doc"]
    directions += ["query_to_query"] if contrast[0] else []
    directions += ["positive_to_positive"] if contrast[1] else []

    def ours(vectors):
        more = {"guide_query_BG": guide[0], "guide_document_NG": torch.cat(guide[1:])}
        return info_nce(
            batch_of(vectors, **more),
            temperature=0.1,
            directions=directions,
            false_negatives=margin[0],
            margin=margin[1],
            guide=True,
        )

    def theirs(features, labels):
        each = zip(features, guide, strict=True)
        return loss([{**feature, "guide": vectors} for feature, vectors in each], labels)

    agree(theirs, ours, columns(*counts))


@pytest.mark.parametrize("margin", [("absolute", 0.3), ("absolute", -0.2), ("relative", 0.3)])
@pytest.mark.parametrize("count", [3, 5])
def test_cached_gist_embed_with_several_negatives(margin, count):
    """Their cached loss takes more negatives than the other, and margins below 0."""
    loss = gist(*margin, True, False, st.CachedGISTEmbedLoss)
    counts = (5,) * count
    guide = columns(*counts, seed=1, size=4)

    def ours(vectors):
        more = {"guide_query_BG": guide[0], "guide_document_NG": torch.cat(guide[1:])}
        directions = ("query_to_doc", "query_to_query")
        kind, limit = margin
        settings = {"false_negatives": kind, "margin": limit, "guide": True}
        batch = batch_of(vectors, **more)
        return info_nce(batch, temperature=0.1, directions=directions, **settings)

    def theirs(features, labels):
        return loss.calculate_loss([[each["vectors"]] for each in features], [[x] for x in guide])

    agree(theirs, ours, columns(*counts))


def gist(strategy, margin, anchors, positives, kind=st.GISTEmbedLoss):
    class Guide(nn.Module):
        def forward(self, features):
            return {"sentence_embedding": features["guide"]}

    loss = kind.__new__(kind)  # its constructor wants tokenizers
    nn.Module.__init__(loss)
    loss.model, loss.guide, loss.must_retokenize = GivenVectors(), Guide(), False
    loss.mini_batch_size, loss.show_progress_bar = 2, False  # of the cached one
    loss.temperature, loss.similarity_fct = 0.1, nn.CosineSimilarity(dim=-1)
    loss.margin_strategy, loss.margin = strategy, margin
    loss.contrast_anchors, loss.contrast_positives = anchors, positives
    loss.gather_across_devices, loss.cross_entropy_loss = False, nn.CrossEntropyLoss()
    return loss


def test_gte_is_at_least_info_nce():
    batch = batch_of(columns(5, 5))
    assert info_nce(batch, directions=ALL) > info_nce(batch)


def test_symmetric_under_tower_swap():
    query, document = columns(5, 5)
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    there = info_nce(Compared.pairs(query, document), **both)
    torch.testing.assert_close(there, info_nce(Compared.pairs(document, query), **both))
    assert info_nce(Compared.pairs(query, document)) != info_nce(Compared.pairs(document, query))


def test_several_positives_are_averaged_and_no_negatives_of_each_other():
    query, document = columns(2, 5)
    owner = torch.tensor([0, 0, 0, 1, 1])
    positive = torch.tensor([True, True, False, True, False])
    found = info_nce(Compared(query, document, owner, positive), temperature=1.0)
    score = nn.functional.normalize(query) @ nn.functional.normalize(document).T
    losses = [
        -score[row, place] + score[row, [place, *others]].logsumexp(0)
        for row, place, others in ((0, 0, [2, 3, 4]), (0, 1, [2, 3, 4]), (1, 3, [0, 1, 2, 4]))
    ]
    torch.testing.assert_close(found, ((losses[0] + losses[1]) / 2 + losses[2]) / 2)


@pytest.mark.parametrize("directions", [ALL[:1], ALL[:2], (ALL[0], "doc_to_doc"), ALL])
@pytest.mark.parametrize("with_texts", [True, False])
def test_equal_texts_are_no_negatives(directions, with_texts):
    """Queries 0 and 3 are one text, and so are their positives; known pairs alone say it, too."""
    query, document = columns(4, 4)
    query[3], document[3] = query[0], document[0]
    known = torch.eye(4, dtype=torch.bool)
    known[0, 3] = known[3, 0] = True
    texts = {"query_text_B": torch.tensor([0, 1, 2, 0])}
    texts |= {"document_text_N": torch.tensor([3, 4, 5, 3])}
    batch = Compared.pairs(query, document, known_BN=known, **(texts if with_texts else {}))
    found = info_nce(batch, directions=directions)
    q, d = (nn.functional.normalize(each) / 0.05**0.5 for each in (query, document))
    expected = []
    for i in range(4):
        other = [j for j in range(4) if {i, j} != {0, 3} and i != j]
        scores = [q[i] @ d[i], *(q[i] @ d[j] for j in other)]
        scores += [q[i] @ q[j] for j in other] * ("query_to_query" in directions)
        scores += [d[i] @ d[j] for j in other] * ("doc_to_doc" in directions)
        scores += [d[i] @ q[j] for j in [i, *other]] * ("doc_to_query" in directions)
        expected.append(torch.stack(scores).logsumexp(0) - q[i] @ d[i])
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_a_query_of_equal_text_is_no_negative_though_its_positive_is_another():
    query, document = columns(3, 3)
    text = {"query_text_B": torch.tensor([0, 0, 1])}
    plain = info_nce(Compared.pairs(query, document), directions=ALL[:2])
    assert info_nce(Compared.pairs(query, document, **text), directions=ALL[:2]) < plain


def test_a_false_negative_above_the_threshold_counts_nothing():
    query = torch.eye(3)
    document = torch.eye(3)
    document[2] = torch.tensor([0.9, 0.0, 0.1])
    found = info_nce(
        Compared.pairs(query, document), false_negatives="threshold", margin=0.8, temperature=1.0
    )
    close = document[2] / document[2].norm()
    rows = [(1.0, [0.0]), (1.0, [0.0, 0.0]), (float(close[2]), [0.0, 0.0])]
    each = [math.log(1 + sum(math.exp(n - p) for n in negatives)) for p, negatives in rows]
    torch.testing.assert_close(found, torch.tensor(sum(each) / 3))


def test_qwen3_margin_keeps_negatives_just_above_the_positive():
    query = torch.tensor([[1.0, 0.0]])
    document = torch.tensor([[0.8, 0.6], [0.85, 0.5268], [1.0, 0.0]])
    settings = {"false_negatives": "absolute", "margin": -0.1, "temperature": 1.0}
    found = info_nce(Compared.pairs(query, document), **settings)
    torch.testing.assert_close(
        found, torch.tensor(math.log(1 + math.exp(0.85 - 0.8))), rtol=0, atol=1e-4
    )


def test_a_learned_temperature_is_trained_and_has_a_floor():
    batch = batch_of(columns(4, 4))
    learned = LearnedInfoNCE(temperature=0.05)
    value = learned(batch)
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    torch.testing.assert_close(value, info_nce(batch, **both), rtol=1e-6, atol=1e-6)
    value.backward()
    step = 1e-3
    sides = [info_nce(batch, temperature=0.05 * math.exp(-e), **both) for e in (step, -step)]
    slope = (sides[0] - sides[1]) / (2 * step)
    torch.testing.assert_close(learned.log_scale.grad.double(), slope, rtol=1e-3, atol=1e-5)
    floor = LearnedInfoNCE(temperature=0.001, least_temperature=0.02).temperature
    torch.testing.assert_close(floor, torch.tensor(0.02))


def test_half_precision_is_computed_in_float32():
    """Of scores that bfloat16 cannot tell apart."""
    query, document = (each.bfloat16() for each in columns(8, 8, size=64))
    found = info_nce(Compared.pairs(query, document), temperature=0.01)
    expected = info_nce(Compared.pairs(query.double(), document.double()), temperature=0.01)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_query_without_negatives_has_no_loss_and_no_nan():
    query = columns(1)[0].requires_grad_()
    value = info_nce(Compared.pairs(query, columns(1, seed=1)[0]))
    value.backward()
    assert value == 0
    assert not query.grad.isnan().any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"directions": ("doc_to_query",)}, "query_to_doc"),
        ({"directions": ALL, "partition_mode": "per_direction"}, "doc_to_doc"),
        ({"hardness_strength": 2.0}, "no effect"),
        ({"margin": 0.1}, "false_negatives"),
    ],
)
def test_wrong_settings(settings, says):
    with pytest.raises(SettingsError, match=says):
        info_nce(batch_of(columns(2, 2)), **settings)


def test_a_guide_without_vectors():
    with pytest.raises(DataError, match="vectors of a guide model"):
        info_nce(batch_of(columns(2, 2)), false_negatives="absolute", guide=True)
