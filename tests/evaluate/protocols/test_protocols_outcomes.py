"""Outcomes: perfect vectors score 1, and items, statistic and similarities are consistent."""

import collections
import dataclasses

import numpy as np
import pytest
import toy_data
from toy_encoders import Bag, Toy, at_angles, plane

from polyvec.data.tasks.kinds import KINDS
from polyvec.data.tasks.sets import (
    BitextMiningSet,
    ClassificationSet,
    ClusteringSet,
    ConditionalStsSet,
    InstructionRetrievalSet,
    PairClassificationSet,
    RetrievalSet,
    StsSet,
    SummarizationSet,
)
from polyvec.errors import SettingsError
from polyvec.evaluate import measures, protocols
from polyvec.evaluate.outcome import Outcome
from polyvec.evaluate.protocols import PROTOCOLS, options_of, ranked
from polyvec.evaluate.protocols.classification import drawn, numbered

SMALL = {"draw_size": 400, "num_draws": 3}  # of the clustering
STS = toy_data.sts(0)
CONDITIONAL = ConditionalStsSet(
    "toy conditions",
    "test",
    STS.sentences1,
    STS.sentences2,
    ("shape",) * 45 + ("size",) * 45,
    STS.scores,
)
ONE_OF_EACH = {
    "sts": (STS, {}),
    "conditional_sts": (CONDITIONAL, {}),
    "pair_classification": (toy_data.pairs(0), {}),
    "classification": (toy_data.classes(0, 3), {}),
    "clustering": (toy_data.clusters(0), SMALL),
    "bitext_mining": (toy_data.bitext(0), {}),
    "summarization": (toy_data.summaries(0), {}),
    "retrieval": (toy_data.corpus(0), {}),
    "reranking": (toy_data.corpus(0, candidates=toy_data.candidates(0)), {}),
    "instruction_reranking": (toy_data.instructed(0, changed=True), {}),
    "instruction_retrieval": (toy_data.instructed(0, changed=False), {}),
}
ALL = pytest.mark.parametrize(("data", "options"), ONE_OF_EACH.values(), ids=ONE_OF_EACH)


def angles(*degrees: float) -> tuple[str, ...]:
    return tuple(map(str, degrees))


# Vectors at angles, close for what is similar. Each must score 1.
GOLD = np.cos(np.radians([0, 20, 40, 60, 80])).tolist()
TOPICS = angles(*range(12), *range(120, 132), *range(240, 252))
NAMES = ("a",) * 12 + ("b",) * 12 + ("c",) * 12
PLACES = {"north": "90", "east": "0", "south": "270"}
PERFECT = [
    StsSet("s", "test", angles(*[5] * 5), angles(5, 25, 45, 65, 85), tuple(GOLD)),
    PairClassificationSet("p", "test", angles(0, 50, 0, 50), angles(5, 55, 80, 140), (1, 1, 0, 0)),
    ClassificationSet("c", "test", TOPICS, NAMES, TOPICS[::5], NAMES[::5]),
    ClusteringSet("k", "test", TOPICS, NAMES),
    ClusteringSet(
        "k", "test", TOPICS, NAMES, protocol="sets", parts=((*range(24),), (*range(36),))
    ),
    BitextMiningSet("b", "test", angles(0, 90, 180), angles(181, 2, 91), ((0, 1), (1, 2), (2, 0))),
    SummarizationSet(
        "m",
        "test",
        ("t", "u"),
        (angles(0, 180), angles(90)),
        (angles(50, 175, 20), angles(95, 50, 0)),
        ((1.0, 5.0, 2.0), (5.0, 4.0, 0.0)),
    ),
    RetrievalSet("r", "test", PLACES, {"q": "88"}, {"q": {"north": 2, "east": 1}}),
    RetrievalSet(
        "r", "test", PLACES, {"q": "1"}, {"q": {"east": 1}}, candidates={"q": ("south", "east")}
    ),
    InstructionRetrievalSet(
        "i",
        "test",
        PLACES,
        {"q": "1", "p": "91"},
        {"q": ("near", "far"), "p": ("near",)},
        {"q": ({"east": 1}, {"east": 2}), "p": ({"north": 1},)},
    ),
]


@pytest.mark.parametrize("data", PERFECT, ids=lambda data: type(data).__name__)
def test_perfect_vectors_score_one(data):
    found = protocols.run(Toy(at_angles), data, **(SMALL if data in PERFECT[3:4] else {}))
    assert found.main_score == pytest.approx(1, abs=1e-6)
    if isinstance(data, StsSet):
        assert found.scores["pearson"] == pytest.approx(1, abs=1e-6)


def test_every_kind_has_its_protocol_and_its_main_measure():
    assert set(PROTOCOLS) == set(KINDS)
    for name, (data, options) in ONE_OF_EACH.items():
        found = protocols.run(Bag(), data, **options)
        assert (data.kind, found.kind) == (name, name)
        assert found.main_measure == KINDS[name].main_measure in found.scores
    assert set(ONE_OF_EACH) == set(KINDS)


@ALL
def test_only_protocols_that_draw_take_a_seed(data, options):
    if KINDS[data.kind].draws:
        assert "seed" in options_of(PROTOCOLS[data.kind])
        return
    with pytest.raises(SettingsError, match=f"{data.kind} has no option 'seed'"):
        protocols.run(Bag(), data, seed=1)


@ALL
def test_the_statistic_of_the_items_is_the_main_score(data, options):
    found = protocols.run(Bag(), data, **options)
    assert isinstance(found, Outcome) and found.scores[found.main_measure] == found.main_score
    assert all(isinstance(value, float) for value in found.scores.values())
    assert np.isfinite(list(found.scores.values())).all()
    if found.kind == "clustering":
        assert found.paired is found.statistic is None
        return
    assert found.statistic(found.paired) == pytest.approx(found.main_score, abs=1e-12)
    assert len({item.id for item in found.items}) == len(found.items) >= len(found.paired)


@ALL
def test_two_runs_are_equal(data, options):
    one, two = (protocols.run(Bag(), data, **options) for _ in range(2))
    assert one.scores == two.scores
    if one.kind != "summarization":  # a text that does not count has the value NaN
        assert one.items == two.items


@ALL
def test_roles_are_those_of_retrieval_alone(data, options):
    encoder = Bag()
    kind = protocols.run(encoder, data, **options).kind
    ranked_kind = kind.endswith(("retrieval", "reranking"))
    expected = {"query", "document"} if ranked_kind else {None}
    assert {role for role, _, _ in encoder.calls} == expected


def test_items_of_pairs():
    data = toy_data.sts(1)
    found = protocols.run(Bag(), data)
    assert [item.texts for item in found.items] == list(
        zip(data.sentences1, data.sentences2, strict=True)
    )
    assert [item.gold for item in found.items] == list(data.scores)
    assert found.similarities["pairs"].tolist() == [item.value for item in found.items]
    pairs = toy_data.pairs(1)
    groups = protocols.run(Bag(), pairs).similarities
    assert [len(groups["label 1"]), len(groups["label 0"])] == [
        sum(pairs.labels),
        90 - sum(pairs.labels),
    ]
    assert groups["label 1"].mean() > groups["label 0"].mean()


def test_pairs_are_compared_by_the_function_that_scores_best():
    """Of equal direction and other length: cosine sees nothing, distances do."""
    lengths = {"a": 1.0, "b": 1.2, "c": 9.0, "d": 30.0}
    data = PairClassificationSet("p", "test", tuple("acbd"), tuple("bdac"), (1, 0, 1, 0))
    found = protocols.run(Toy(lambda text: lengths[text] * plane(30), "dot"), data)
    assert found.scores["euclidean_ap"] == found.main_score == 1
    assert found.scores["similarity_ap"] < 1
    assert "cosine_ap" not in found.scores or found.scores["cosine_ap"] < 1
    assert found.statistic(found.paired) == 1


def test_items_of_a_classification_say_what_was_predicted():
    data = toy_data.classes(3, 4, samples=2)
    found = protocols.run(Bag(), data)
    for item, text, label in zip(found.items, data.texts, data.labels, strict=True):
        assert (item.texts, item.gold) == ((text,), label)
        assert sum(share for _, _, share, _ in item.found) == pytest.approx(1)
        right = [share for name, _, share, is_right in item.found if is_right and name == label]
        assert item.value == pytest.approx(sum(right))
    assert np.mean([item.value for item in found.items]) == pytest.approx(found.main_score)


def test_each_experiment_draws_its_texts():
    """MTEB's draws as MTEB computes them: one list, shuffled repeatedly from the same seed."""
    labels = toy_data.classes(5, 12).train_labels
    names, (places,) = numbered(labels)
    rows = list(range(len(labels)))
    for found in drawn(places, 3, 5, 42):
        np.random.RandomState(42).shuffle(rows)
        seen, expected = collections.Counter(), []
        for row in rows:
            if seen[labels[row]] < 3:
                seen[labels[row]] += 1
                expected.append(row)
        assert found.tolist() == expected
    assert names == sorted(set(labels), key=int)


def test_only_texts_that_were_drawn_are_encoded():
    data = dataclasses.replace(toy_data.classes(5, 3), samples_per_label=1)
    encoder = Bag()
    protocols.run(encoder, data, num_experiments=2)
    (_, _, num_train), (_, _, num_test) = encoder.calls
    assert num_train <= 6 and num_test == len(data.texts)


def test_a_sentence_that_is_everybodys_neighbour_costs_precision():
    """Two of three find row 0, one of them rightly: F1 is (2/3 + 0 + 1) / 3, accuracy 2/3."""
    data = BitextMiningSet(
        "b", "test", angles(0, 10, 90), angles(1, 40, 91), ((0, 0), (1, 1), (2, 2))
    )
    found = protocols.run(Toy(at_angles), data)
    assert found.main_score == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found.scores["accuracy"] == found.scores["recall"] == pytest.approx(2 / 3)
    wrong = found.items[1]
    assert (wrong.texts, wrong.value, wrong.gold) == (("10", "40"), 0, "1")
    assert [wrong.found[0][:2], wrong.found[0][3]] == [("0", "1"), 0]
    apart = {name: np.degrees(np.arccos(found.similarities[name])) for name in ("gold", "other")}
    assert apart["gold"] == pytest.approx([1, 30, 1], abs=0.1)
    assert apart["other"] == pytest.approx([40, 9, 50], abs=0.1)


def test_bitext_of_unequal_sides_asks_for_gold_sentences_only():
    data = BitextMiningSet("b", "test", angles(200, 0, 90), angles(91, 3, 45, 44), ((2, 0), (1, 1)))
    encoder = Toy(at_angles)
    assert protocols.run(encoder, data).main_score == 1
    assert [num for _, _, num in encoder.calls] == [2, 4]


def test_items_of_retrieval_show_what_was_found_and_what_should_have_been():
    corpus = {f"d{i}": f"{i * 10} " + "x" * 400 for i in range(8)}
    data = RetrievalSet("r", "test", corpus, {"q": "21"}, {"q": {"d2": 1, "d7": 2, "d0": 0}})
    found = protocols.run(Toy(at_angles), data)
    (item,) = found.items
    assert [name for name, *_ in item.found] == ["d2", "d3", "d1", "d4", "d0"]
    assert [grade for *_, grade in item.found] == [1, 0, 0, 0, 0]
    assert item.texts == ("21", corpus["d7"][:300], corpus["d2"][:300])
    name, text, score, _ = item.found[0]
    assert (text, score) == (corpus[name][:300], pytest.approx(np.cos(np.radians(1)), abs=1e-6))
    assert item.value == found.main_score
    expected = np.cos(np.radians([1, 49]))
    assert sorted(found.similarities["relevant"])[::-1] == pytest.approx(expected, abs=1e-6)
    assert found.similarities["other"] == pytest.approx([np.cos(np.radians(9))], abs=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_ranking_is_measured_as_measures_retrieval_does(similarity):
    data = toy_data.corpus(8)
    found = protocols.run(Bag(similarity), data)
    encoder = Bag(similarity)
    documents = encoder.encode(list(data.corpus.values()), "document")
    scores = encoder.similarity(encoder.encode(list(data.queries.values()), "query"), documents)
    run = {
        query: dict(zip(data.corpus, row.tolist(), strict=True))
        for query, row in zip(data.queries, scores, strict=True)
    }
    names = (*measures.MTEB_MEASURES, "map")
    assert set(found.scores) == set(names)
    assert found.scores == pytest.approx(measures.retrieval(data.qrels, run, names), abs=1e-9)
    each = measures.per_query(data.qrels, run, "ndcg@10")
    assert {item.id: item.value for item in found.items} == pytest.approx(each, abs=1e-9)


def test_what_is_excluded_or_the_query_itself_makes_room():
    corpus = {f"d{i}": str(i) for i in range(30)}
    queries = {"d3": "3.2", "q": "10.2"}
    plain = RetrievalSet("r", "test", corpus, queries, {"d3": {"d4": 1}, "q": {"d14": 1}})
    less = dataclasses.replace(
        plain, identical=frozenset(["d3"]), excluded={"q": frozenset(["d10", "d9", "d11"])}
    )
    one, two = (protocols.run(Toy(at_angles), data, depth=5) for data in (plain, less))
    shown = [[name for name, *_ in item.found] for item in (*one.items, *two.items)]
    assert shown == [
        ["d3", "d4", "d2", "d5", "d1"],
        ["d10", "d11", "d9", "d12", "d8"],
        ["d4", "d2", "d5", "d1", "d6"],
        ["d12", "d8", "d13", "d7", "d14"],
    ]
    assert (one.scores["recall@5"], two.scores["recall@5"]) == (0.5, 1.0)


def test_a_model_with_a_similarity_of_its_own_is_searched_by_it():
    """One that no index knows: the encoder is asked, a block of queries at a time."""

    class Odd(Bag):
        def similarity(self, a, b):
            return Bag("dot").similarity(a, b) - 0.25

    data = toy_data.corpus(2, num_queries=70)
    # Vectors of whole numbers: the corpus has equal documents, whose order rounding would decide.
    whole, odd = Bag("dot"), Odd("odd")
    odd.vector = whole.summed
    plain, found = (protocols.run(encoder, data) for encoder in (whole, odd))
    assert found.scores == pytest.approx(plain.scores, abs=1e-9)
    others = plain.similarities["other"] - 0.25
    assert found.similarities["other"] == pytest.approx(others, abs=1e-6)


def test_equal_scores_are_ordered_by_id_the_largest_first():
    ids = ["b", "d", "a", "c"]
    scores = np.array([[0.5, 0.5, 0.9, 0.5], [0.1, 0.2, 0.3, -np.inf]], np.float32)
    rows = np.array([[0, 1, 2, 3], [3, 2, 1, -1]])
    found = ranked.in_order(scores, rows, ids, 3)
    assert [[ids[row] for row in each] for each in found.rows_QK] == [
        ["a", "d", "c"],
        ["d", "a", "c"],
    ]


@pytest.mark.equality
def test_a_model_that_is_blind_to_instructions():
    """Its rankings do not change, so p-MRR is 0; no more does a condition change a similarity."""

    class Blind(Bag):
        def read(self, text, role, instruction):
            return super().read(text, role, None)

    # Whole numbers: otherwise rounding may order equal documents differently each time.
    found = protocols.run(Blind("dot"), toy_data.instructed(3, changed=True))
    assert found.main_score == 0 and not found.paired.any()
    condition = conditions(("shape", "size"))
    with_it = protocols.run(Blind(), condition)
    assert with_it.scores["spearman"] == with_it.scores["unconditional_spearman"]


def test_a_model_that_follows_instructions():
    """The document that the second instruction rules out falls from rank 1 to 4: 1 - 1/4."""
    corpus = {"a": "0", "b": "40", "c": "60", "d": "80"}
    data = InstructionRetrievalSet(
        "i",
        "test",
        corpus,
        {"q": "0"},
        {"q": ("near", "far")},
        {"q": ({"a": 1, "b": 1}, {"a": 0, "b": 1})},
        changed=True,
    )
    follows = Toy(lambda text: plane(float(text.split()[0]) + (90 if "far" in text else 0)))
    found = protocols.run(follows, data)
    assert found.main_score == pytest.approx(0.75)
    assert found.scores["original_map"] == 1 and found.scores["changed_map"] == pytest.approx(1 / 3)
    assert [item.id for item in found.items] == ["q/1", "q/2"]
    assert found.items[1].texts[0] == "0\nfar"
    assert sorted(follows.calls) == sorted(
        [("document", None, 4), ("query", "near", 1), ("query", "far", 1)]
    )
    # A document outside the ranking counts as just after its last.
    assert protocols.run(follows, data, depth=2).main_score == pytest.approx(1 - 1 / 3)
    turned = dataclasses.replace(data, instructions={"q": ("far", "near")})
    assert protocols.run(follows, turned).main_score == pytest.approx(-0.75)


def test_robustness_is_the_worst_instructions():
    data = PERFECT[-1]
    turns = Toy(lambda text: plane(float(text.split()[0]) + (80 if "far" in text else 0)))
    found = protocols.run(turns, data)
    worst = 1 / np.log2(3)  # "far" sees north before east
    assert found.main_score == pytest.approx((worst + 1) / 2)
    assert found.scores["ndcg@10"] == pytest.approx((1 + worst + 1) / 3)
    assert found.paired.shape == (2, 1)


def conditions(names: tuple[str, str]) -> ConditionalStsSet:
    """Each pair twice: alike by the one condition, not by the other."""
    first, second = ("0", "100", "50", "10"), ("30", "160", "140", "85")
    return ConditionalStsSet(
        "c",
        "test",
        first * 2,
        second * 2,
        (names[0],) * 4 + (names[1],) * 4,
        (5.0, 4.0, 3.0, 4.0, 1.0, 2.0, 3.0, 2.0),
    )


def test_a_condition_that_is_used_is_seen():
    data = conditions(("shape", "size"))
    shrinks = Toy(lambda text: plane(float(text.split()[0]) * (0.1 if "shape" in text else 1)))
    found = protocols.run(shrinks, data)
    assert found.main_measure == "spearman"
    assert found.scores["spearman"] > found.scores["unconditional_spearman"] + 0.2
    assert found.items[0].texts == ("0", "30", "shape")
    asked = [(instruction, num) for _, instruction, num in shrinks.calls]
    assert asked == [("shape", 8), ("size", 8), (None, 16)]
    joined = protocols.run(shrinks, data, joined=True)
    assert joined.scores == found.scores and shrinks.calls[-2] == (None, None, 16)


def test_a_summary_is_compared_with_the_nearest_human_one():
    data = PERFECT[6]
    found = protocols.run(Toy(at_angles), data)
    assert [item.value for item in found.items] == pytest.approx([1, 1])
    swapped = dataclasses.replace(data, scores=((1.0, 5.0, 2.0), (4.0, 5.0, 0.0)))
    assert protocols.run(Toy(at_angles), swapped).main_score == pytest.approx((1 + 0.5) / 2)
    flat = dataclasses.replace(data, scores=((3.0, 3.0, 3.0), (4.0, 5.0, 0.0)))
    left = protocols.run(Toy(at_angles), flat)
    assert left.main_score == left.statistic(left.paired) == pytest.approx(0.5)
    assert len(left.paired) == 2 and np.isnan(left.paired[0, 0])


def test_queries_that_occur_in_their_documents_are_noted():
    """HumanEval's functions contain the docstrings that are its queries."""
    corpus = {"a": 'def f():\n    """Add the numbers\n    of a list."""', "b": "def g(): pass"}
    queries = {"q": "Add the numbers of a list.", "p": "nothing"}
    data = RetrievalSet("code", "test", corpus, queries, {"q": {"a": 1}, "p": {"b": 1}})
    (note,) = protocols.run(Bag(), data).notes
    assert note.startswith("1 of 2 queries occur word for word in a relevant document")
    apart = dataclasses.replace(data, queries=queries | {"q": "Sum up the numbers of a list."})
    assert protocols.run(Bag(), apart).notes == ()
