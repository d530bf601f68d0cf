"""Data that cannot be measured is an error of one line that names task, text and row."""

import dataclasses

import numpy as np
import pytest
import toy_data
from toy_encoders import Bag, Toy

from polyvec.data.tasks.sets import BitextMiningSet, ConditionalStsSet, RetrievalSet, StsSet
from polyvec.errors import DataError, ModelError, SettingsError, ShapeError
from polyvec.evaluate import protocols

STS = toy_data.sts(0)
PAIRS = toy_data.pairs(0)
APART = next(row for row in range(20, 90) if PAIRS.sentences1[row] != PAIRS.sentences2[row])
CLASSES = toy_data.classes(0, 3)
CLUSTERS = toy_data.clusters(0)
BITEXT = toy_data.bitext(0)
SUMMARIES = toy_data.summaries(0)
CORPUS = toy_data.corpus(0)
CANDIDATES = dataclasses.replace(CORPUS, candidates=toy_data.candidates(0))
CHANGED = toy_data.instructed(0, changed=True)
CONDITIONAL = ConditionalStsSet(
    "toy conditions",
    "test",
    STS.sentences1,
    STS.sentences2,
    ("shape",) * 45 + ("size",) * 45,
    STS.scores,
)


class Broken(Bag):
    """One text's vector is not a number."""

    def __init__(self, text: str, value: float = float("nan")) -> None:
        super().__init__()
        self.broken, self.value = text, value

    def summed(self, text):
        found = super().summed(text)
        if self.broken in text:
            found[3] = self.value
        return found


@pytest.mark.parametrize(
    ("data", "text", "named"),
    [
        (STS, STS.sentences1[11], "pair 11, sentence1"),
        (PAIRS, PAIRS.sentences2[APART], f"pair {APART}, sentence2"),
        (CONDITIONAL, STS.sentences2[70], "pair 70, sentence2"),
        (CORPUS, CORPUS.corpus["d17"], "document 'd"),
        (CORPUS, CORPUS.queries["q4"], "query 'q4'"),
        (CANDIDATES, CANDIDATES.queries["q5"], "query 'q5'"),
        (CLASSES, CLASSES.texts[5], "text 5"),
        (CLUSTERS, CLUSTERS.texts[33], "text 33"),
        (BITEXT, BITEXT.sentences1[BITEXT.gold[9][0]], f"row {BITEXT.gold[9][0]} of sentences1"),
        (BITEXT, BITEXT.sentences2[4], "row 4 of sentences2"),
        (SUMMARIES, SUMMARIES.human[3][0], "text 3, human summary 0"),
        (SUMMARIES, SUMMARIES.machine[2][3], "text 2, machine summary 3"),
        (CHANGED, f"{CHANGED.queries['q6']} {CHANGED.instructions['q6'][1]}", "query 'q6/2'"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_vector_with_nan_is_named(data, text, named, value):
    with pytest.raises(ModelError) as error:
        protocols.run(Broken(text, value), data)
    message = str(error.value)
    assert message.startswith(f"{data.name}: the vector of {named}")
    assert message.endswith("contains NaN or infinity") and "\n" not in message


def test_a_train_text_is_named_by_its_row_and_its_first_40_characters():
    texts = tuple(f"{text} {'x' * 50}" for text in CLASSES.train_texts)
    data = dataclasses.replace(CLASSES, train_texts=texts, samples_per_label=200)
    with pytest.raises(ModelError) as error:
        protocols.run(Broken(texts[8]), data)
    assert str(error.value).startswith(
        f"toy classes: the vector of train text 8 ({texts[8][:40]!r}"[:-1]
    )
    assert "..." in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (STS, "all 90 predicted scores are equal"),
        (CONDITIONAL, "all 90 predicted scores are equal"),
        (PAIRS, "all 90 predicted scores are equal"),
        (CORPUS, "all similarities of each of the 25 queries are equal"),
        (CANDIDATES, "all similarities of each of the 25 queries are equal"),
        (CHANGED, "all similarities of each of the 50 queries are equal"),
        (BITEXT, "all 369 predicted scores are equal"),
        (SUMMARIES, "all similarities of each of the 14 texts are equal"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_model_with_one_vector_for_everything_has_no_score(data, message):
    with pytest.raises(DataError, match=f"^{data.name}: .*{message}"):
        protocols.run(Toy(lambda text: np.array([1.0, 0.0])), data)


def changed(data, **fields):
    return dataclasses.replace(data, **fields)


EMPTY = {
    "no pairs": changed(STS, sentences1=(), sentences2=(), scores=()),
    "no texts": changed(CLASSES, texts=(), labels=()),
    "train: no texts": changed(CLASSES, train_texts=(), train_labels=()),
    "no gold pairs": changed(BITEXT, gold=()),
    "no query has a judgement": changed(CORPUS, qrels={}),
    "no query has candidates": changed(CORPUS, candidates={"q0": ()}),
    "text 3: no human_summaries": changed(
        SUMMARIES, human=(*SUMMARIES.human[:3], (), *SUMMARIES.human[4:])
    ),
    "part 1 is empty": changed(CLUSTERS, protocol="sets", parts=(tuple(range(99)), ())),
    "part 0 has row 150 of 150 texts": changed(CLUSTERS, protocol="sets", parts=((3, 150),)),
    "fraction 0.001: selects none of 150 texts": changed(CLUSTERS, fraction=0.001),
}
UNEQUAL = {
    "90 pairs, 90 sentences2, 89 scores": changed(STS, scores=STS.scores[1:]),
    "90 pairs, 88 sentences2, 90 labels": changed(PAIRS, sentences2=PAIRS.sentences2[2:]),
    "90 pairs, 90 sentences2, 2 conditions, 90 scores": changed(
        CONDITIONAL, conditions=("shape", "size")
    ),
    "70 texts, 69 labels": changed(CLASSES, labels=CLASSES.labels[1:]),
    "train: 120 texts, 119 labels": changed(CLASSES, train_labels=CLASSES.train_labels[1:]),
    "150 texts, 149 labels": changed(CLUSTERS, labels=CLUSTERS.labels[1:]),
    "14 texts, 14 human, 13 machine, 14 scores": changed(SUMMARIES, machine=SUMMARIES.machine[1:]),
    "text 0: 5 machine_summaries, 4 scores": changed(
        SUMMARIES, scores=(SUMMARIES.scores[0][1:], *SUMMARIES.scores[1:])
    ),
    "query 'q3' has 1 instructions and 2 sets of judgements; expected 2 of both": changed(
        CHANGED, instructions=CHANGED.instructions | {"q3": ("one",)}
    ),
}
WRONG = {
    "all 90 gold scores are equal": changed(STS, scores=(2.0,) * 90),
    "gold scores hold NaN": changed(STS, scores=(float("nan"), *STS.scores[1:])),
    "labels are 1; expected both 0 and 1": changed(PAIRS, labels=(1,) * 90),
    "labels are 0, 1, 2; expected both 0 and 1": changed(PAIRS, labels=(2, *PAIRS.labels[1:])),
    "train: only one label, 'a'; expected 2 or more": changed(CLASSES, train_labels=("a",) * 120),
    r"no label of the test texts \('cat', ...\) occurs in training": changed(
        CLASSES, labels=("cat",) * 70
    ),
    "only one label, 'a'; expected 2 or more": changed(CLUSTERS, labels=("a",) * 150),
    "the 1 sampled texts have only one label": changed(CLUSTERS, max_texts=1),
    r"gold pair \(3, 155\): row 155 is out of range for the 155 sentences2": changed(
        BITEXT, gold=((0, 0), (3, 155))
    ),
    "query 'x' has judgements but no text": changed(CORPUS, qrels={"x": {"d1": 1}}),
    "candidate 'd999' of query 'q2' is not in the corpus": changed(
        CORPUS, candidates={"q2": ("d1", "d999")}
    ),
    "document 'd1' is excluded for query 'q2' and is among its candidates": changed(
        CORPUS, candidates={"q2": ("d0", "d1")}, excluded={"q2": frozenset({"d1"})}
    ),
    "no second instruction rules out a document": changed(
        CHANGED, qrels={query: (both[0],) * 2 for query, both in CHANGED.qrels.items()}
    ),
}


@pytest.mark.parametrize(("message", "data"), [*EMPTY.items(), *UNEQUAL.items(), *WRONG.items()])
def test_data_that_cannot_be_measured_is_refused(message, data):
    with pytest.raises(DataError, match=f"^{data.name}: .*{message}") as error:
        protocols.run(Bag(), data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (changed(CLUSTERS, protocol="bootstraps"), {}, "Did you mean 'bootstrap'"),
        (changed(CLUSTERS, fraction=0.5, max_texts=9), {}, "mutually exclusive"),
        (CLUSTERS, {"draw_size": 3}, "draw_size 3 is less than the number of labels, 5"),
        (
            CLUSTERS,
            {"draws": 3},
            "no option 'draws'.*Known: draw_size, num_draws, seed",
        ),
    ],
)
def test_impossible_settings_are_refused(data, options, message):
    with pytest.raises(SettingsError, match=message):
        protocols.run(Bag(), data, **options)


def test_data_of_unknown_kind_is_refused():
    with pytest.raises(DataError, match=r"no protocol for data of kind 'dict'\. Known: bitext"):
        protocols.run(Bag(), {"texts": []})


def test_an_encoder_gives_a_vector_a_text():
    class Short(Bag):
        def encode(self, texts, role=None, instruction=None):
            return super().encode(texts, role, instruction)[1:]

    with pytest.raises(ShapeError, match=r"toy sts: vectors of shape \(179, 24\) for 180 texts"):
        protocols.run(Short(), STS)


def test_one_document_and_one_sentence_are_enough():
    """With nothing to choose from, a model is not called constant."""
    one = RetrievalSet(
        "r", "test", {"d": "w1"}, {"q": "w2", "p": "w3"}, {"q": {"d": 1}, "p": {"d": 1}}
    )
    assert protocols.run(Bag(), one).main_score == 1
    assert (
        protocols.run(Bag(), BitextMiningSet("b", "test", ("w1",), ("w2",), ((0, 0),))).main_score
        == 1
    )
    two = StsSet("s", "test", ("w1", "w2"), ("w1", "w3"), (5.0, 1.0))
    assert protocols.run(Bag(), two).main_score == pytest.approx(1)
