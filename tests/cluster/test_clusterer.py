"""Texts to groups: algorithms, the number of groups, names, and what is refused."""

import numpy as np
import pytest
from clusters_by_hand import GROUPS, Oracle, embed, planted
from sklearn.metrics import adjusted_rand_score

from polyvec.cluster.algorithms import ALGORITHMS
from polyvec.cluster.asking import Asker
from polyvec.cluster.choosing import candidates, f_beta, granularity, silhouette, stability
from polyvec.cluster.clusterer import TextClusterer
from polyvec.cluster.feedback import FEEDBACK
from polyvec.cluster.naming import keywords
from polyvec.errors import DataError, InputError, PolyvecError, SettingsError, ShapeError
from polyvec.llm.function import FunctionLanguageModel

METHODS = {
    "kmeans": {"k": 4},
    "agglomerative": {"k": 4},
    "spectral": {"k": 4},
    "hdbscan": {"method": {"kind": "hdbscan", "min_cluster_size": 5}},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_algorithm_finds_planted_groups(name):
    texts, vectors, gold = planted(spread=0.1)
    found = TextClusterer(**{"method": name, **METHODS[name]}).fit(texts, vectors=vectors)
    assert adjusted_rand_score(gold, found.labels) == 1.0
    assert found.sizes == [12] * 4


def test_groups_are_numbered_by_size_and_named_by_keywords():
    texts = ["a cat", "the cat sleeps", "cats and a cat", "a stock falls", "the stock"]
    vectors = [[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1]]
    found = TextClusterer(k=2).fit(texts, vectors=vectors)
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert [words[0] for words in found.keywords] == ["cat", "stock"]


def test_keywords_are_weighted_as_c_tf_idf():
    """tf * log(1 + A / f), with A = 6 words / 2 groups: f is 4 of xx, 1 of yy and of zz."""
    found = keywords(["xx xx xx yy", "xx zz"], np.array([0, 1]))
    assert found == [["xx", "yy"], ["zz", "xx"]]
    assert 3 * np.log(1 + 3 / 4) > np.log(1 + 3 / 1) > np.log(1 + 3 / 4)
    two = keywords(["xx xx yy", "xx zz"], np.array([0, 1]))  # 2 log(1 + 2.5 / 3) < log(1 + 2.5)
    assert two == [["yy", "xx"], ["zz", "xx"]]


def test_keywords_of_a_script_without_spaces_are_letters():
    assert keywords(["猫 猫", "犬"], np.array([0, 1])) == [["猫"], ["犬"]]


def test_hdbscan_leaves_texts_out_and_refuses_k():
    texts, vectors, _ = planted(spread=0.1)
    texts, vectors = [*texts, "far away"], np.vstack([vectors, -np.ones((1, 8))])
    found = TextClusterer(method={"kind": "hdbscan", "min_cluster_size": 5}).fit(
        texts, vectors=vectors
    )
    assert found.labels[-1] == -1 and len(found.names) == 4
    with pytest.raises(SettingsError, match="finds the number of groups itself, so k 3"):
        TextClusterer(method="hdbscan", k=3).fit(texts, vectors=vectors)


@pytest.mark.parametrize("by", ["silhouette", "stability"])
def test_k_is_found_where_groups_are_clear(by):
    texts, vectors, _ = planted(spread=0.1)
    found = TextClusterer(k="auto", choose_by=by).fit(texts, vectors=vectors)
    assert found.choice is not None and found.choice.by == by
    assert found.choice.says["silhouette"] == 4
    assert set(found.choice.scores["stability"]) == set(candidates(len(texts)))


def test_granularity_follows_the_answers_and_not_the_vectors():
    """Four groups in the vectors; who says that pairs of them are one group gets two."""
    texts, vectors, _ = planted(spread=0.1)
    asker = Asker(Oracle().model(), "text", "topic")
    assert granularity(texts, vectors, asker, 0).k == 4
    assert len(asker.calls) == len({call.texts for call in asker.calls}) > 20

    def two(prompt):
        pair = [line for line in prompt.splitlines() if line.startswith("Sentence")]
        return "Yes" if len({("card" in p or "rate" in p) for p in pair}) == 1 else "No"

    merged = vectors.copy()
    merged[:24] += 1.5 * np.eye(8, dtype=np.float32)[6]
    merged[24:] -= 1.5 * np.eye(8, dtype=np.float32)[6]
    assert granularity(texts, merged, Asker(FunctionLanguageModel(two)), 0).k == 2


def test_f_beta_is_scikit_learns():
    from sklearn.metrics import fbeta_score

    draw = np.random.default_rng(0)
    truth, predicted = draw.random(50) < 0.5, draw.random(50) < 0.4
    assert f_beta(truth, predicted) == pytest.approx(fbeta_score(truth, predicted, beta=0.92))
    assert f_beta(truth, np.zeros(50, bool)) == 0.0


def test_silhouette_and_stability_of_clear_and_of_no_groups():
    _, vectors, gold = planted(spread=0.05)
    labelled = ALGORITHMS["kmeans"]().labels
    assert silhouette(vectors, np.array(gold)) > 0.8
    assert silhouette(vectors, np.zeros(len(gold), int)) == -1.0
    assert stability(vectors, labelled, 4, 0) == 1.0
    noise = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    assert stability(noise, labelled, 6, 0) < 0.7


def test_names_are_the_language_models_where_it_gives_one():
    texts, vectors, _ = planted(spread=0.1)
    found = TextClusterer(k=4, language_model=Oracle().model()).fit(texts, vectors=vectors)
    assert sorted(found.names) == sorted(GROUPS)
    assert [call.effect for call in found.calls] == [f"name of group {g}" for g in range(4)]
    mute = TextClusterer(k=4, language_model=FunctionLanguageModel(lambda prompt: " "))
    unnamed = mute.fit(texts, vectors=vectors)
    assert unnamed.problems == {"empty": 4} and all(unnamed.names)


BAD = {
    "fewer texts than k": ({"k": 5}, ["a", "b"], None, "2 different texts cannot make 5 groups"),
    "equal texts": ({"k": 2}, ["a", "a"], None, "all 2 texts are equal"),
    "an empty text": ({"k": 2}, ["a", " "], None, r"texts\[1\] is empty"),
    "no text": ({"k": 2}, [3, "a"], None, r"texts\[0\] is int"),
    "one text": ({"k": 2}, ["a"], None, "1 texts cannot be grouped"),
    "a text for a list": ({"k": 2}, "ab", None, "got one text"),
    "equal vectors": ({"k": 2}, ["a", "b"], [[1, 0], [1, 0]], "1 different vectors cannot make 2"),
    "NaN": ({"k": 2}, ["a", "b"], [[1, 0], [np.nan, 0]], "row 1 holds NaN"),
    "too few vectors": ({"k": 2}, ["a", "b"], [[1, 0]], r"expected \[2, E\]"),
    "no vectors": ({"k": 2}, ["a", "b"], "none", "has no embedder"),
    "k of 1": ({"k": 1}, ["a", "b"], None, "k 1 must be a whole number from 2"),
    "k true": ({"k": True}, ["a", "b"], None, "k True"),
    "no k": ({}, ["a", "b"], None, "kmeans needs k"),
    "a method": ({"method": "kmean", "k": 2}, ["a", "b"], None, "Did you mean 'kmeans'"),
    "a setting": (
        {"method": {"kind": "kmeans", "n": 3}, "k": 2},
        ["a", "b"],
        None,
        "setting 'n' is not known",
    ),
    "feedback alone": ({"k": 2, "feedback": ["label"]}, ["a", "b"], None, "asks a language model"),
    "unknown feedback": ({"k": 2, "feedback": ["labels"]}, ["a", "b"], None, "mean 'label'"),
    "choose_by": ({"k": "auto", "choose_by": "x"}, ["a", "b"], None, "choose_by 'x' is not known"),
    "k auto of hdbscan": ({"method": "hdbscan", "k": "auto"}, ["a", "b"], None, "leave k out"),
    "nothing but noise": (
        {"method": {"kind": "hdbscan", "min_cluster_size": 3}},
        ["a", "b", "c", "d"],
        None,
        "no group among 4 texts",
    ),
    "choose_by without auto": (
        {"k": 2, "choose_by": "stability"},
        ["a", "b"],
        None,
        "does nothing",
    ),
    "a date": ({"method": "peaks"}, ["a", "b"], None, "needs the date of each text"),
}


OUTSIDE = {
    "kmeans": {"n_init": 0},
    "hdbscan": {"min_cluster_size": 1},
    "agglomerative": {"distance": -1.0},
    "spectral": {"n_neighbors": 0},
    "peaks": {"window": 0},
    "label": {"at_once": 0},
    "keyphrase": {"num_queries": 0},
    "triplet": {"share": 0.0},
    "pair": {"weight": -1.0},
    "reassign": {"num_candidates": 1},
    "merge": {"threshold": 2.0},
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_settings_have_a_range(kind):
    (setting,) = OUTSIDE[kind]
    table = {"kind": kind, **OUTSIDE[kind]}
    is_feedback = kind in FEEDBACK.elsewhere
    given = {"k": 2, "feedback": [table]} if is_feedback else {"method": table}
    with pytest.raises(SettingsError, match=f"'{kind}': {setting} .* must be at least"):
        TextClusterer(**given, language_model=Oracle().model())


@pytest.mark.parametrize("table", [{"prompt": "lable"}, {"select": "entropi"}])
def test_prompts_and_selections_are_checked_before_anything_is_asked(table):
    oracle = Oracle()
    with pytest.raises(SettingsError, match=r"Did you mean '(label|entropy)'"):
        kind = "label" if "prompt" in table else "reassign"
        TextClusterer(k=2, feedback=[{"kind": kind, **table}], language_model=oracle.model())
    assert not oracle.asked


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_grouped_is_one_line(name):
    settings, texts, vectors, message = BAD[name]
    given = np.eye(len(texts), 3) if vectors is None else None if vectors == "none" else vectors
    with pytest.raises(PolyvecError, match=message) as caught:
        TextClusterer(**settings).fit(texts, vectors=given)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError | SettingsError | DataError | ShapeError)


def test_large_sets_are_refused_where_all_pairs_are_compared():
    vectors = np.zeros((20_001, 2), np.float32)
    with pytest.raises(InputError, match="20,001 are more than 20,000; use kmeans"):
        ALGORITHMS["agglomerative"]().labels(vectors, 2, 0)


def test_an_embedder_may_be_a_function():
    texts, _, gold = planted()
    found = TextClusterer(k=4, embedder=embed).fit(texts)
    assert adjusted_rand_score(gold, found.labels) == 1.0
