"""What is asked, about which texts, and what the answers change."""

import numpy as np
import pytest
from clusters_by_hand import GROUPS, Oracle, embed, group_of, planted
from sklearn.metrics import adjusted_rand_score

from polyvec.cluster.asking import Asker, Question, chosen, first_line
from polyvec.cluster.clusterer import TextClusterer
from polyvec.cluster.constrained import broken, components, contracted, pckmeans
from polyvec.cluster.feedback import FEEDBACK
from polyvec.cluster.sections import MAX_CHARACTERS
from polyvec.cluster.uncertainty import RANKINGS, closest_pairs, nearest_groups, neighbours
from polyvec.errors import InputError, SettingsError
from polyvec.llm.answers import Usage
from polyvec.llm.function import FunctionLanguageModel
from polyvec.synthesize.prompt_files import prompt_file, prompt_names
from polyvec.synthesize.spending import Budget, BudgetedLanguageModel

ASKING = {
    "label": {"smooth": ()},
    "keyphrase": {},
    "pair": {"num_queries": 150},
    "reassign": {"num_queries": 24, "share": 0.5, "num_candidates": 4},
}


def fitted(feedback, oracle, spread=0.5, **settings):
    texts, vectors, gold = planted(spread=spread)
    clusterer = TextClusterer(
        k=4,
        feedback=feedback,
        embedder=embed,
        language_model=oracle if not isinstance(oracle, Oracle) else oracle.model(),
        name=False,
        **settings,
    )
    found = clusterer.fit(texts, vectors=vectors)
    return adjusted_rand_score(gold, found.labels), found


@pytest.mark.parametrize("name", ASKING)
def test_right_answers_make_better_groups(name):
    plain, _ = fitted([], Oracle())
    better, found = fitted([{"kind": name, **ASKING[name]}], Oracle())
    assert better > plain
    assert all(
        call.feedback == name and call.effect for call in found.calls if call.value is not None
    )


def test_labels_help_more_than_pairs_and_pairs_more_than_corrections():
    """For each call of an oracle; the ordering of the measurements on CLINC150."""
    scores = {name: fitted([{"kind": name, **ASKING[name]}], Oracle())[0] for name in ASKING}
    assert scores["label"] >= scores["pair"] >= scores["reassign"]


def test_labels_with_lies_help_less():
    runs = {
        lies: fitted([{"kind": "label", "smooth": ()}], Oracle(lies))[0] for lies in (0, 0.2, 0.4)
    }
    assert runs[0] > runs[0.2] > runs[0.4]


def test_a_label_is_asked_for_after_the_nearest_labelled_texts():
    oracle = Oracle()
    _, found = fitted([{"kind": "label", "num_shown": 3, "at_once": 4}], oracle, spread=0.1)
    first = [call for call in found.calls if call.prompt == "label"]
    later = [call for call in found.calls if call.prompt == "label_like"]
    assert (len(first), len(later)) == (4, 44)
    for call in later:
        own, *shown = call.texts
        assert len(shown) == 3
        # The nearest stands last; a prototype of the text's group is always among the labelled.
        assert group_of(found.texts[shown[-1]]) == group_of(found.texts[own])
    assert oracle.asked[-1].count("label: ") == 3


def test_smoothing_takes_the_neighbourhood_with_the_best_silhouette():
    alone, _ = fitted([{"kind": "label", "smooth": ()}], Oracle(0.4))
    smooth, found = fitted([{"kind": "label", "smooth": (5, 9)}], Oracle(0.4))
    assert smooth >= alone and len(found.calls) == 48


def test_corrections_move_texts_and_nothing_else():
    plain = fitted([], Oracle())[1].labels
    _, found = fitted([{"kind": "reassign", "num_queries": 6, "num_candidates": 2}], Oracle())
    asked = {call.texts[0] for call in found.calls}
    others = [number for number in range(len(plain)) if number not in asked]
    pairs = set(zip(plain[others].tolist(), found.labels[others].tolist(), strict=True))
    assert len(asked) == 6 and len(pairs) == 4  # a renaming of the groups


def test_a_correction_spreads_to_uncertain_neighbours():
    alone = {"kind": "reassign", "num_queries": 6, "num_candidates": 4, "share": 0.8}
    _, one = fitted([alone], Oracle(), spread=0.6)
    _, more = fitted([{**alone, "propagate": 5}], Oracle(), spread=0.6)
    moved = [call.effect for call in more.calls if "neighbours" in call.effect]
    assert moved and len(one.calls) == len(more.calls) == 6


def test_answers_outside_the_choices_are_counted_and_change_nothing():
    for answer in ("maybe", "Yes and No", "Choice 7", ""):
        model = FunctionLanguageModel(lambda prompt, answer=answer: answer)
        for name in ("pair", "reassign"):
            _, found = fitted([{"kind": name, "num_queries": 5}], model)
            assert found.problems == {"outside the choices": 5}
            assert all(call.value is None and not call.effect for call in found.calls)


def test_a_budget_ends_the_questions_and_keeps_what_was_said():
    spent = Usage()
    model = BudgetedLanguageModel(Oracle().model(), Budget(calls=20), spent)
    score, found = fitted([{"kind": "label", "smooth": ()}], model)
    assert spent.prompts == 20 and len(found.calls) == 48
    assert found.problems == {"not asked: the budget is spent": 28}
    assert score >= fitted([], Oracle())[0] - 0.1


def test_likelihood_takes_the_likelier_choice_of_a_local_model():
    class Scores(FunctionLanguageModel):
        def score_checked(self, prompts, choices):
            right = [self.function(prompt[-1]["content"]) for prompt in prompts]
            return np.array([[float(each == text) for each in choices] for text in right])

    feedback = [{"kind": "reassign", "num_queries": 10, "num_candidates": 4}]
    by_text = fitted(feedback, Oracle())[1].labels
    by_score = fitted(feedback, Scores(Oracle().answer), answers="likelihood")[1].labels
    assert by_text.tolist() == by_score.tolist()


def test_a_budget_ends_questions_that_are_scored():
    class Scores(FunctionLanguageModel):
        def score_checked(self, prompts, choices):
            return np.tile([0.0, 1.0], (len(prompts), 1))

    model = BudgetedLanguageModel(Scores(str), Budget(calls=10), Usage())
    calls = Asker(model, answers="likelihood").choose(
        "pair", "same", [Question({"first": "a", "second": "b"})] * 25
    )
    answered = [call for call in calls if call.value == 1]
    assert 5 <= len(answered) <= 10
    assert {call.problem for call in calls} == {None, "not asked: the budget is spent"}


def test_triplets_train_a_copy_of_the_embedder():
    from polyvec import Embedder

    embedder = Embedder.from_pretrained("polyvec/nano-lm")
    texts, _, gold = planted(num_a_group=6)
    before = embedder.encode(texts)
    stage = {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 6}
    oracle = Oracle()
    clusterer = TextClusterer(
        k=4,
        feedback=[{"kind": "triplet", "num_queries": 24, "share": 1.0, "stage": stage}],
        embedder=embedder,
        language_model=oracle.model(),
        name=False,
    )
    found = clusterer.fit(texts)
    assert np.array_equal(before, embedder.encode(texts))
    assert not np.allclose(before, found.vectors, atol=1e-3)
    answered = [call for call in found.calls if call.value is not None]
    assert len(found.calls) == 24 and len(answered) >= 8
    for call in answered:
        query, *both = call.texts
        assert gold[both[call.value]] == gold[query]
    assert adjusted_rand_score(gold, found.labels) >= 0.3


def test_triplets_need_an_embedder_that_can_be_trained():
    with pytest.raises(InputError, match="trains the embedder on the answers"):
        fitted(["triplet"], Oracle())
    with pytest.raises(InputError, match="give an embedder, not vectors alone"):
        texts, vectors, _ = planted()
        TextClusterer(k=4, feedback=["label"], language_model=Oracle().model()).fit(
            texts, vectors=vectors
        )
    with pytest.raises(SettingsError, match="standardize: not with feedback label"):
        TextClusterer(k=4, feedback=["label"], standardize=True, language_model=Oracle().model())


def test_groups_of_one_kind_are_merged_and_others_kept():
    texts, vectors, gold = planted(spread=0.15)
    clusterer = TextClusterer(
        k=8,
        feedback=[{"kind": "merge", "threshold": 0.0}],
        language_model=Oracle().model(),
        name=False,
    )
    found = clusterer.fit(texts, vectors=vectors)
    assert len(found.names) == 4 and adjusted_rand_score(gold, found.labels) == 1.0


def test_pairs_with_texts_in_no_group_charge_no_group():
    vectors = np.array([[0.0], [0.1], [5.0], [5.1], [4.0]], np.float32)
    labels = np.array([0, 0, 1, 1, -1])
    found = pckmeans(vectors, labels, 0, [], [(4, 2), (4, 3)], weight=100.0)
    assert found.tolist() == [0, 0, 1, 1, 0]
    alone = pckmeans(vectors, np.array([0, -1, 1, 1, -1]), 0, [(0, 1)], [], weight=0.0)
    assert alone.tolist() == [0, 0, 1, 1, 1]


# ---- what is asked ------------------------------------------------------------------------------


def test_the_closest_pairs_come_first_and_once():
    vectors = np.array([[0.0], [1.0], [1.1], [5.0]], np.float32)
    assert closest_pairs(vectors, 3).tolist() == [[1, 2], [0, 1], [0, 2]]
    assert len(closest_pairs(vectors, 100)) == 6


def test_neighbours_leave_out_the_text_itself_also_of_equal_texts():
    vectors = np.zeros((4, 2), np.float32)
    near = neighbours(vectors, 2)
    assert near.shape == (4, 2)
    assert all(number not in row for number, row in enumerate(near.tolist()))


def test_weights_of_groups_are_student_t():
    vectors = np.array([[0.0, 0.0]], np.float32)
    centers = np.array([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]], np.float32)
    groups, weights = nearest_groups(vectors, centers, 2)
    assert groups.tolist() == [[0, 1]]
    assert weights[0].tolist() == pytest.approx([(1 / 2) / (1 / 2 + 1 / 5), (1 / 5) / 0.7])


@pytest.mark.parametrize("name", [each for each in RANKINGS if each != "random"])
def test_planted_texts_between_groups_are_the_most_uncertain(name):
    draw = np.random.default_rng(0)
    sides = [draw.normal((side, 0), 0.1, (60, 2)) for side in (-3, 3)]
    between = draw.normal((0, 0), 0.05, (6, 2))
    vectors = np.vstack([*sides, between]).astype(np.float32)
    labels = np.array([0] * 60 + [1] * 60 + [0, 1] * 3)
    order = RANKINGS[name](vectors, labels, draw)
    assert sorted(order.tolist()) == list(range(126))
    assert set(order[:6].tolist()) == set(range(120, 126))


def test_components_connect_what_pairs_connect():
    parts = components(5, [(0, 1), (1, 2)])
    assert parts[0] == parts[1] == parts[2] and len(set(parts.tolist())) == 3


def test_constraints_are_kept_if_their_weight_is_high():
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((40, 3)).astype(np.float32)
    labels = draw.integers(0, 3, 40)
    together, apart = [(0, 1), (1, 2), (5, 6)], [(0, 5), (7, 8)]
    free = pckmeans(vectors, labels, 0, together, apart, weight=0.0)
    kept = pckmeans(vectors, labels, 0, together, apart, weight=100.0)
    assert broken(free, together, apart) > 0
    assert broken(kept, together, apart) == 0
    whole = contracted(vectors, 3, 0, together)
    assert whole[0] == whole[1] == whole[2] and whole[5] == whole[6]


def test_clusterllms_prompt_is_the_codes_to_the_byte():
    oracle = Oracle()
    Asker(oracle.model(), "banking customer utterance", "intent").choose(
        "triplet",
        "triplet",
        [Question({"query": "pin code 1", "first": "top up 2", "second": "pin code 3"})],
    )
    assert oracle.asked == [
        "Select the banking customer utterance that better corresponds with the Query in terms of "
        "intent.\n\nQuery: pin code 1\nChoice 1: top up 2\nChoice 2: pin code 3\n\n"
        "Please respond with 'Choice 1' or 'Choice 2' without explanation."
    ]


def test_every_prompt_is_rendered():
    from polyvec.cluster.asking import FOLDER

    values = {"query": "q", "first": "a", "second": "b", "choices": "c", "text": "t", "listed": "l"}
    words = {"noun": "utterance", "facet": "intent", "short": "utterance"}
    for name in prompt_names(FOLDER):
        found = prompt_file(name, folder=FOLDER)
        asked = found.asked({**values, **words}, [{**words, "text": "s", "label": "x"}])
        assert "{" not in asked[-1]["content"] and found.source


def test_answers_are_read_strictly():
    both = ("Yes", "No")
    assert chosen("yes.", both) == (0, None)
    assert chosen("I know nothing", both)[0] is None
    assert chosen("Choice 12", ("Choice 1", "Choice 12")) == (1, None)
    assert first_line('\n "Lost card." \nmore') == ("Lost card", None)
    assert first_line(" \n:\n") == (None, "empty")


def test_a_long_text_is_cut_in_prompts_and_lines_are_joined():
    asker = Asker(Oracle().model())
    assert asker.shown("a\n\nb\tc") == "a b c"
    assert len(asker.shown("x" * 10_000)) == MAX_CHARACTERS + 4
    assert Asker(Oracle().model(), max_characters=3).shown("abcdef") == "abc ..."
    for wrong in (0, "3", True):
        with pytest.raises(InputError, match="max_characters is"):
            TextClusterer(k=2, max_characters=wrong)


def test_all_feedback_is_known_by_name():
    assert {FEEDBACK.name_of(FEEDBACK.find(name)) for name in FEEDBACK.elsewhere} == set(
        FEEDBACK.elsewhere
    )
    assert len(GROUPS) == 4
