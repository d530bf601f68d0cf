"""Odd texts, answers, dates and folders: what must hold all the same."""

import json

import numpy as np
import pytest
from clusters_by_hand import Oracle, embed, planted

from polyvec.cli import main
from polyvec.cli.cluster import _column
from polyvec.cluster.algorithms import ALGORITHMS
from polyvec.cluster.asking import Asker, Question
from polyvec.cluster.choosing import granularity
from polyvec.cluster.clusterer import TextClusterer
from polyvec.cluster.events import peaks
from polyvec.cluster.feedback.pair import Pair
from polyvec.cluster.feedback.triplet import Triplet
from polyvec.cluster.grouping import Grouping, Tools
from polyvec.cluster.naming import keyword_names
from polyvec.cluster.page import page
from polyvec.cluster.uncertainty import RANKINGS
from polyvec.errors import InputError, SettingsError
from polyvec.llm.answers import Usage
from polyvec.llm.function import FunctionLanguageModel
from polyvec.synthesize.spending import Budget, BudgetedLanguageModel

DRAW = np.random.default_rng(0)


def grouping(labels, vectors=None):
    labels = np.array(labels)
    if vectors is None:
        vectors = np.random.default_rng(0).standard_normal((len(labels), 4))
    texts = [f"text {number}" for number in range(len(labels))]
    kmeans = ALGORITHMS["kmeans"]()
    return Grouping(
        texts, np.array(vectors, np.float32), labels, lambda v, seed: kmeans.labels(v, 2, seed)
    )


# ---- selection ----------------------------------------------------------------------------------


def test_margin_is_a_difference_of_distances():
    """Means at 0 and 10 (by two texts each); 4 and 6 away is nearer to the middle than 1 and 9."""
    far = np.array([[-1.0], [1.0], [99.0], [101.0], [50.0], [149.0]], np.float32)
    labels = np.array([0, 0, 1, 1, 0, 1])
    means = np.array([far[labels == g].mean() for g in (0, 1)])
    distances = np.sort(np.abs(far - means[None]), 1)
    expected = np.argsort(distances[:, 1] - distances[:, 0], kind="stable")
    assert RANKINGS["margin"](far, labels, DRAW).tolist() == expected.tolist()


def test_texts_in_no_group_are_no_candidates():
    vectors = np.array([[0.0], [0.1], [0.2], [0.3], [5.0], [5.1]], np.float32)
    state = grouping([0, 0, -1, -1, 1, 1], vectors)
    groups = Triplet(candidates="neighbours", num_neighbours=5)._candidates(state)(0)
    assert [members.tolist() for members in groups] == [[1], [4, 5]]


def test_candidates_are_of_the_own_group_and_of_the_nearest_other():
    """As LOOP's code has it (utils/neighbor_dataset.py), not of the two most frequent groups."""
    vectors = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], np.float32)
    state = grouping([0, 0, 2, 1, 1, 1], vectors)
    groups = Triplet(candidates="neighbours", num_neighbours=5)._candidates(state)(0)
    assert [members.tolist() for members in groups] == [[1], [2]]


def test_self_pairs_are_of_texts_that_nobody_asked_about():
    state = grouping([0, 1] * 10)
    found = Triplet(self_pairs=50, num_neighbours=3)._neighbour_rows(state, {0, 1, 2})
    assert {row["query"] for row in found} == {f"text {number}" for number in range(3, 20)}


# ---- what answers change ------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["pckmeans", "contract"])
def test_pairs_without_a_usable_answer_change_no_group(use):
    state = grouping([0, 1, -1, 0, 1, 0, -1, 1, 2, 2])
    asker = Asker(FunctionLanguageModel(lambda prompt: "maybe"))
    found, _ = Pair(num_queries=5, use=use).apply(state, asker, Tools())
    assert found.labels_N.tolist() == state.labels_N.tolist()


def test_an_answer_that_contracting_leaves_out_has_no_effect():
    asker = Asker(FunctionLanguageModel(lambda prompt: "No"))
    Pair(num_queries=3, use="contract").apply(grouping([0, 1] * 5), asker, Tools())
    assert {call.effect for call in asker.calls} == {""}


def test_a_move_is_told_by_texts_as_groups_are_numbered_anew():
    texts, vectors, _ = planted(spread=0.6)
    feedback = [{"kind": "reassign", "num_queries": 9, "share": 0.8, "num_candidates": 4}]
    given = {"k": 4, "embedder": embed, "language_model": Oracle().model(), "name": False}
    found = TextClusterer(feedback=feedback, **given).fit(texts, vectors=vectors)
    moved = [call for call in found.calls if call.effect not in ("", "stays")]
    assert moved
    for call in moved:
        assert call.effect.startswith("moves from the group of text ")
        other = int(call.effect.rsplit(" ", 1)[1])
        assert other in call.texts and found.labels[other] == found.labels[call.texts[0]]


def test_one_group_is_asked_nothing_about():
    asker = Asker(Oracle().model())
    state = grouping([0] * 6)
    from polyvec.cluster.feedback.reassign import Reassign

    assert Reassign().apply(state, asker, Tools())[0] is state and not asker.calls


def test_days_apart_need_dates():
    texts, vectors, _ = planted()
    merge = {"kind": "merge", "max_days": 7.0}
    clusterer = TextClusterer(k=4, feedback=[merge], language_model=Oracle().model())
    with pytest.raises(InputError, match="max_days needs the date of each text"):
        clusterer.fit(texts, vectors=vectors)


def test_all_of_a_budget_is_used_for_questions_that_are_scored():
    class Scores(FunctionLanguageModel):
        def score_checked(self, prompts, choices):
            return np.tile([0.0, 1.0], (len(prompts), 1))

    model = BudgetedLanguageModel(Scores(str), Budget(calls=10), Usage())
    calls = Asker(model, answers="likelihood").choose(
        "pair", "same", [Question({"first": "a", "second": "b"})] * 25
    )
    assert sum(call.value == 1 for call in calls) == 10


# ---- k and dates --------------------------------------------------------------------------------


def test_k_and_distance_exclude_each_other():
    clusterer = TextClusterer(method={"kind": "agglomerative", "distance": 1.0}, k=2)
    with pytest.raises(SettingsError, match=r"distance 1\.0 .* k 2"):
        clusterer.fit(["a", "b", "c"], vectors=np.eye(3))


@pytest.mark.parametrize("method", ["kmeans", "agglomerative"])
@pytest.mark.parametrize("num", [2, 3])
def test_k_of_very_few_texts(method, num):
    vectors = np.eye(3, dtype=np.float32)[:num]
    found = TextClusterer(k="auto", method=method).fit(["a", "b", "c"][:num], vectors=vectors)
    assert len(found.names) == 2 and np.isfinite(list(found.choice.scores["stability"].values()))


def test_granularity_of_three_texts_is_one_clear_line():
    with pytest.raises(InputError, match="3 texts are too few"):
        granularity(["a", "b", "c"], np.eye(3), Asker(Oracle().model()), 0)


def test_a_shoulder_is_no_peak():
    days = np.repeat([0.0, 1, 2, 3, 4, 5, 6, 7], [1, 4, 4, 9, 1, 0, 0, 0])
    assert peaks(days, 1).tolist() == [3.0]


def test_a_window_longer_than_all_days_is_all_days():
    assert peaks(np.array([0.0, 0, 0, 1, 2]), 10**15).tolist() == [1.0]


def test_dates_without_a_zone_are_utc_wherever_they_are_read(monkeypatch):
    import time

    row = {"a": "2026-03-01T08:00", "b": "2026-03-01T08:00+00:00", "c": "2026-03-01T09:00+01:00"}
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        days = {_column("row 1", row, name, "date") for name in row}
    finally:
        monkeypatch.undo()
        time.tzset()
    assert len(days) == 1


# ---- names --------------------------------------------------------------------------------------


def answered(answer):
    texts, vectors, _ = planted(spread=0.1)
    model = FunctionLanguageModel(lambda prompt: answer)
    return TextClusterer(k=4, language_model=model).fit(texts, vectors=vectors)


def test_names_of_a_model_differ_and_are_short():
    found = answered("<b onclick='x()'>" + "very long " * 1000)
    assert len(set(found.names)) == 4
    assert all(len(name) <= 100 for name in found.names)
    assert all(len(call.value) <= 1504 for call in found.calls)
    assert "<b onclick" not in "".join(page("t", found, {}))


def test_names_have_no_control_characters():
    found = answered("lost\tcard\x1b[31m red\x07")
    assert all(name.startswith("lost card") for name in found.names)
    assert all(name.isprintable() for name in found.names)


def test_groups_without_words_are_named_by_their_number():
    texts = ["!!! 1", "?? 22", "... 333", "-- 4"]
    vectors = [[1, 0], [1, 0.1], [0, 1], [0.1, 1]]
    found = TextClusterer(k=2).fit(texts, vectors=vectors)
    assert found.names == ["group 0", "group 1"]
    assert keyword_names([["a"], ["a"]]) == ["a", "a (1)"]


@pytest.mark.parametrize("words", [{"noun": ""}, {"facet": " "}])
def test_words_for_texts_and_groups_are_not_empty(words):
    with pytest.raises(SettingsError, match="is empty"):
        TextClusterer(k=2, language_model=Oracle().model(), **words)


# ---- the verb -----------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in planted(4)[0]))
    return path


def told(command, capsys):
    try:
        status = main(["cluster", *map(str, command)])
    except SystemExit as error:
        status = error.code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return status, shown


def test_the_texts_are_never_written_over(file, capsys):
    before = file.read_text()
    status, shown = told([file, "--k", "4", "-o", file.parent], capsys)
    assert status == 2 and "would be written over" in shown
    assert file.read_text() == before


def test_a_language_model_with_nothing_to_ask_is_refused(file, capsys):
    command = [file, "--k", "4", "--llm", "polyvec/nano-lm", "--no-names"]
    status, shown = told(command, capsys)
    assert status == 2 and "nothing to ask" in shown


def test_a_method_that_finds_k_replaces_a_recipes_k(file, capsys):
    command = [file, "--recipe", "clusterllm", "--scale", "nano", "--llm", "polyvec/nano-lm"]
    status, shown = told([*command, "--method", "peaks"], capsys)
    assert status == 2 and "needs the date of each text" in shown


def test_what_a_run_spent_is_known_after_it_was_ended(file, tmp_path, monkeypatch, capsys):
    """Each answer is in the ledger at once, so that the budget holds over an interrupted run."""
    import polyvec.synthesize.models as models

    class Ended(FunctionLanguageModel):
        def __init__(self):
            super().__init__(self.say, "ended")
            self.num = 0

        def say(self, prompt):
            self.num += 1
            if self.num > 3:
                raise KeyboardInterrupt
            return "card"

    monkeypatch.setattr(models, "load_language_model", lambda name, **options: Ended())
    out = tmp_path / "out"
    command = [file, "--k", "4", "--llm", "some", "--feedback", "keyphrase", "-o", out]
    status, _ = told(command, capsys)
    assert status == 130
    last = json.loads((out / "ledger.jsonl").read_text().splitlines()[-1])
    assert last["prompts"] >= 3 and last["state"] == "interrupted"


def test_only_the_texts_that_are_drawn_are_put_on_the_plane(monkeypatch):
    import polyvec.cluster.page as pages

    sizes = []
    plane = pages.plane
    monkeypatch.setattr(pages, "MOST_POINTS", 10)
    monkeypatch.setattr(pages, "plane", lambda v, seed: sizes.append(len(v)) or plane(v, seed))
    texts, vectors, _ = planted(spread=0.1)
    found = TextClusterer(k=4).fit(texts, vectors=vectors)
    assert "PCA, 8 of 48 texts" in "".join(page("t", found, {})) and sizes == [8]


@pytest.mark.medium
def test_vectors_of_a_trained_embedder_are_standardized_too():
    from polyvec import Embedder

    stage = {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 1}
    found = TextClusterer(
        k=4,
        feedback=[{"kind": "triplet", "num_queries": 8, "stage": stage}],
        embedder=Embedder.from_pretrained("polyvec/nano-lm"),
        language_model=Oracle().model(),
        name=False,
        standardize=True,
    ).fit(planted(4)[0])
    assert any("trained" in call.effect for call in found.calls)
    assert np.allclose(found.vectors.std(0), 1, atol=1e-3)
