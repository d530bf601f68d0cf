"""The same numbers as MTEB itself, on the same data and vectors, in every score it reports."""

import dataclasses
import math
import re

import pytest
import toy_data
from toy_encoders import Bag

from polyvec.evaluate import protocols

pytest.importorskip("mteb", reason="needs MTEB to compare with")
import mteb_side

SIMILARITIES = ("cosine", "dot")
# MTEB reports confidence curves (nAUC) beside retrieval's measures; it rounds to five digits.
LEFT_OUT = re.compile(r"nauc.*|main_score|scores_per_experiment|v_measures|ami_scores|og|changed")
ROUNDED = 5.1e-6


def agree(found, theirs: dict, rename=lambda name: name, tolerance: float = 1e-6) -> None:
    """All their scores equal ours; `rename` maps their name to ours, or to None if we have none."""
    compared = 0
    for name, value in theirs.items():
        if LEFT_OUT.fullmatch(name) or rename(name) is None:
            continue
        compared += 1
        assert found.scores[rename(name)] == pytest.approx(value, abs=tolerance), name
    assert compared >= 2
    assert found.main_score == found.scores[found.main_measure]


def ours(name: str) -> str:
    """MTEB's name of a measure of retrieval as ours."""
    renamed = {"accuracy": "recall@1", "p-MRR": "p_mrr", "robustness_at_10": "robustness@10"}
    return renamed.get(name, name.replace("hit_rate", "accuracy").replace("_at_", "@"))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("seed", range(3))
def test_sts(seed, similarity):
    data = toy_data.sts(seed)
    found = protocols.run(Bag(similarity), data)
    agree(found, mteb_side.sts(data, Bag(similarity)))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("seed", range(5))
def test_pair_classification(seed, similarity):
    data = toy_data.pairs(seed)
    found = protocols.run(Bag(similarity), data)
    agree(found, mteb_side.pair_classification(data, Bag(similarity)))


@pytest.mark.parametrize(("num_labels", "samples", "seed"), [(2, 8, 0), (2, 3, 1), (12, 4, 2)])
def test_classification(num_labels, samples, seed):
    """Two labels have an average precision; with twelve, "10" is sorted after "9"."""
    data = toy_data.classes(seed, num_labels, samples=samples)
    num = 10 if seed == 2 else 4
    theirs = mteb_side.classification(data, Bag(), n_experiments=num)
    found = protocols.run(Bag(), data, num_experiments=num)
    assert 0.3 < found.main_score < 1
    assert ("ap" in found.scores) == (num_labels == 2)
    agree(found, {k: v for k, v in theirs.items() if not (k[:2] == "ap" and math.isnan(v))})


def test_classification_with_another_seed_and_labels_in_words():
    data = toy_data.classes(7, 4, names=lambda label: "zyxw"[label])
    found = protocols.run(Bag(), data, seed=3, num_experiments=3)
    theirs = mteb_side.classification(data, Bag(), whole=False, seed=3, n_experiments=3)
    agree(found, {name: value for name, value in theirs.items() if name[:2] != "ap"})
    assert found.scores != protocols.run(Bag(), data, num_experiments=3).scores


@pytest.mark.parametrize(
    "settings", [{}, {"fraction": 0.5}, {"max_texts": 90}], ids=["all", "fraction", "number"]
)
def test_clustering(settings):
    data = toy_data.clusters(1, **settings)
    found = protocols.run(Bag(), data, draw_size=600, num_draws=4)
    theirs = mteb_side.clustering(data, Bag(), max_documents_per_cluster=600, n_clusters=4)
    assert 0.1 < found.main_score < 1 and found.scores["v_measure_std"] > 0
    agree(found, theirs)


def test_clustering_with_another_seed():
    data = toy_data.clusters(2, fraction=0.6)
    found = protocols.run(Bag(), data, draw_size=300, num_draws=2, seed=7)
    options = {"max_documents_per_cluster": 300, "n_clusters": 2, "seed": 7}
    agree(found, mteb_side.clustering(data, Bag(), **options))


@pytest.mark.parametrize("seed", range(2))
def test_clustering_of_sets(seed):
    """Parts overlap; the third has one label, which MTEB gives a 1."""
    data = toy_data.clusters(seed)
    one = [row for row, label in enumerate(data.labels) if label == "topic 0"]
    parts = tuple(range(60)), tuple(range(40, 150)), tuple(one[:9]), tuple(range(149, 80, -1))
    data = dataclasses.replace(data, protocol="sets", parts=parts)
    found = protocols.run(Bag(), data)
    assert found.main_score < 1
    agree(found, mteb_side.legacy_clustering(data, Bag()))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("seed", range(3))
def test_bitext(seed, similarity):
    data = toy_data.bitext(seed)
    found = protocols.run(Bag(similarity), data)
    assert 0.2 < found.main_score < 1
    agree(found, mteb_side.bitext(data, Bag(similarity)))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("seed", range(3))
def test_summarization(seed, similarity):
    data = toy_data.summaries(seed)
    found = protocols.run(Bag(similarity), data)
    agree(found, mteb_side.summarization(data, Bag(similarity)))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("seed", range(3))
def test_retrieval(seed, similarity):
    data = toy_data.corpus(seed)
    found = protocols.run(Bag(similarity), data)
    assert 0.1 < found.main_score < 0.9
    agree(found, mteb_side.retrieval(data, Bag(similarity)), ours, ROUNDED)


def test_retrieval_of_more_documents_than_are_kept():
    data = toy_data.corpus(5, num_documents=1300, num_queries=6)
    theirs = mteb_side.retrieval(data, Bag())
    assert theirs["recall_at_1000"] < 1
    agree(protocols.run(Bag(), data), theirs, ours, ROUNDED)


def test_retrieval_without_the_query_itself():
    """MTEB takes equal ids out after it has cut at 1000; with fewer documents that is the same."""
    data = toy_data.corpus(4)
    data.queries["d7"], data.qrels["d7"] = data.corpus["d7"], {"d7": 0, "d8": 1}
    data = dataclasses.replace(data, identical=frozenset(["d7"]))
    theirs = mteb_side.retrieval(data, Bag("dot"), ignore_identical_ids=True)
    agree(protocols.run(Bag("dot"), data), theirs, ours, ROUNDED)


def test_retrieval_with_excluded_documents():
    """MTEB's BRIGHT ranks all other documents as candidates."""
    data = toy_data.corpus(6)
    names = list(data.corpus)
    data.excluded.update({"q0": frozenset(names[:40]), "q5": frozenset(names[90:])})
    left = {q: [n for n in names if n not in data.excluded.get(q, ())] for q in data.queries}
    theirs = mteb_side.retrieval(dataclasses.replace(data, candidates=left), Bag("dot"))
    agree(protocols.run(Bag("dot"), data), theirs, ours, ROUNDED)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("seed", range(3))
def test_reranking(seed, similarity):
    data = toy_data.corpus(seed, candidates=toy_data.candidates(seed))
    found = protocols.run(Bag(similarity), data)
    assert (found.kind, found.main_measure) == ("reranking", "map")
    theirs = mteb_side.retrieval(data, Bag(similarity))
    assert found.main_score == pytest.approx(theirs["map_at_1000"], abs=ROUNDED)
    agree(found, theirs, ours, ROUNDED)


@pytest.mark.parametrize("with_candidates", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_changed_instructions(seed, with_candidates):
    data = toy_data.instructed(seed, changed=True)
    if with_candidates:
        chosen = toy_data.candidates(seed)
        chosen["q3"] = chosen["q2"]
        data = dataclasses.replace(data, candidates=chosen)
    theirs = mteb_side.instruction(data, Bag("dot"))
    found = protocols.run(Bag("dot"), data)
    assert found.scores["p_mrr"] == pytest.approx(theirs["p-MRR"], abs=1e-9) != 0
    agree(found, theirs, ours, ROUNDED)
    for part, names in {"original": theirs["og"], "changed": theirs["changed"]}.items():
        agree(found, names, lambda name, part=part: f"{part}_{ours(name)}", ROUNDED)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_instructions_of_all_kinds(seed, joined):
    data = toy_data.instructed(seed, changed=False)
    theirs = mteb_side.instruction(data, Bag("dot"))
    found = protocols.run(Bag("dot"), data, joined=joined)
    assert found.main_measure == "robustness@10"
    assert found.main_score == pytest.approx(theirs["robustness_at_10"], abs=1e-9)
    agree(found, theirs, ours, ROUNDED)
