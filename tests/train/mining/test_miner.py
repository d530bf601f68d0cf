"""Mining as a whole: beside sentence-transformers, and what must never be a negative."""

import json

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from polyvec import Embedder
from polyvec.data.training.sources import rows_of, training_rows, training_sets
from polyvec.errors import DataError, SettingsError
from polyvec.interfaces import RunOptions
from polyvec.storage.vector_cache import EmbeddingCache
from polyvec.train.mining.candidates import Tools
from polyvec.train.mining.documents import corpus_texts
from polyvec.train.mining.miner import mine
from polyvec.train.mining.report import facts, false_negatives, relevant_of
from polyvec.train.mining.settings import mining_settings
from polyvec.train.mining.writing import OUTPUT_FORMATS, write

WORDS = [
    "sea",
    "river",
    "stone",
    "bird",
    "tree",
    "cloud",
    "fire",
    "bread",
    "house",
    "child",
    "road",
    "night",
]


@pytest.fixture(scope="module")
def embedder(tiny_bert):
    return Embedder.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def peer(tiny_bert):
    return SentenceTransformer(str(tiny_bert), device="cpu")


def pairs(num: int, positives: int = 1) -> list[dict[str, str]]:
    draw = np.random.default_rng(0)

    def text(length):
        return " ".join(draw.choice(WORDS, length))

    return [
        {"anchor": query, "positive": f"{query} {text(2)} {number}"}
        for query in (f"{text(4)} {place}" for place in range(num))
        for number in range(positives)
    ]


def mined(records, embedder=None, corpus=None, **settings):
    tools = Tools(embedder, options=RunOptions(show_progress_bar=False))
    return mine(rows_of(records), mining_settings(settings), tools=tools, corpus=corpus)


def close(ours, theirs):
    """Equal texts and labels, in order; scores to 1e-5."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            if name in ("scores", "score"):
                np.testing.assert_allclose(value, other[name], atol=1e-5)
            else:
                assert value == other[name]


# The scores of a random model are all near 0.9.
CASES = [
    ("labeled-list", {}),
    ("n-tuple", {"num_negatives": 2, "relative_margin": 0.002}),
    ("triplet", {"num_negatives": 4, "range_min": 3, "range_max": 20, "absolute_margin": 0.003}),
    ("labeled-pair", {"max_score": 0.95, "min_score": 0.85, "range_max": 30}),
]


@pytest.mark.parametrize(("form", "settings"), CASES)
@pytest.mark.parametrize("num_positives", [1, 2])
def test_equal_to_sentence_transformers(embedder, peer, form, settings, num_positives, tmp_path):
    """The same lists in the same order, with a corpus beside the data."""
    records = pairs(24, num_positives)
    corpus = [each["positive"] for each in pairs(60, 2)[80:]]
    for output_scores in (False, True):
        theirs = mine_hard_negatives(
            Dataset.from_list(records),
            peer,
            corpus=corpus,
            output_format=form,
            output_scores=output_scores,
            verbose=False,
            cache_folder=str(tmp_path),
            **settings,
        )
        found = mined(records, embedder, corpus, output_scores=output_scores, **settings)
        ours = list(OUTPUT_FORMATS[form](found))
        assert len(ours) > 4
        close(ours, list(theirs))


def test_a_cross_encoders_scores_replace_those_of_the_search(embedder, peer):
    """As in sentence-transformers, whose cross-encoder is any object with `predict`."""
    records = pairs(20)

    def score(some):
        return np.array([np.cos(len(a) * 7 + sum(map(ord, b))) for a, b in some], np.float32)

    class Peer:
        def predict(self, some, **options):
            import torch

            return torch.from_numpy(score(some))

    settings = {"num_negatives": 3, "range_max": 15, "absolute_margin": 0.1}
    theirs = mine_hard_negatives(
        Dataset.from_list(records),
        peer,
        cross_encoder=Peer(),
        output_format="labeled-list",
        verbose=False,
        **settings,
    )
    found = mine(
        rows_of(records),
        mining_settings(settings),
        tools=Tools(embedder),
        cross_encoder=score,
    )
    close(list(OUTPUT_FORMATS["labeled-list"](found)), list(theirs))


def test_equal_texts_are_no_negatives(embedder):
    """The query itself, a positive in other letters, and a text that was taken already."""
    records = [
        {"anchor": "the sea", "positive": "The ocean."},
        {"anchor": "The sea!", "positive": "salt water"},
        {"anchor": "a bird", "positive": "the sea"},
        {"anchor": "a road", "positive": "the OCEAN"},
        {"anchor": "a tree", "positive": "a stone"},
        {"anchor": "a house", "positive": "A stone!"},
    ]
    found = mined(records, embedder, num_negatives=6)
    assert set(found.texts_of(0)) in ({"a stone"}, {"A stone!"})
    theirs = {"the sea", "the OCEAN", "a stone", "A stone!"}
    assert theirs.isdisjoint(found.texts_of(0)[1:])


def test_a_class_holds_no_negatives_of_its_own(embedder):
    records = [{"text": f"{word} {i}", "label": i % 3} for i in range(4) for word in WORDS]
    rows = rows_of(records, format="classes")
    found = mine(rows, mining_settings({"num_negatives": 40}), tools=Tools(embedder))
    label = {each["text"]: each["label"] for each in records}
    for query, text in enumerate(found.texts.queries):
        assert found.texts_of(query)
        assert all(label[each] != label[text.text] for each in found.texts_of(query))


def test_other_queries_and_processes_change_nothing(embedder):
    records = pairs(30)
    corpus = [each["positive"] for each in records]
    settings = {"sampling_strategy": "random", "num_negatives": 3, "range_max": 12}
    whole = mined(records, embedder, corpus, **settings)
    half = mined(records[10:20], embedder, corpus, **settings)
    for query in range(10):
        assert half.texts_of(query) == whole.texts_of(query + 10)
    other = mined(records, embedder, corpus, seed=7, **settings)
    assert [other.texts_of(i) for i in range(30)] != [whole.texts_of(i) for i in range(30)]


def test_bm25_finds_what_shares_words():
    records = [
        {"anchor": "red fish", "positive": "a red fish swims"},
        {"anchor": "blue bird", "positive": "a blue bird sings"},
        {"anchor": "blue fish", "positive": "blue fish fish"},
    ]
    found = mined(records, candidates="bm25", num_negatives=2)
    assert found.texts_of(0) == ["blue fish fish"]
    assert set(found.texts_of(2)) == {"a red fish swims", "a blue bird sings"}
    assert [len(each) for each in found.negatives] == [1, 1, 2]
    assert found.num_short == 2


def test_bm25_reads_words_without_case_marks_endings_and_stop_words():
    records = [
        {"anchor": "Are rivers flooding?", "positive": "It is the river, which floods."},
        {"anchor": "the of", "positive": "the of"},
        {"anchor": "川", "positive": "川の水"},
    ]
    corpus = ["A flooded (RIVER)!", "The who are it.", "大川水"]
    found = mined(records, corpus=corpus, candidates="bm25", num_negatives=2)
    assert found.texts_of(0) == ["A flooded (RIVER)!"]
    assert found.texts_of(1) == [], "stop words alone find nothing"
    assert found.texts_of(2) == ["大川水"], "letters of scripts without spaces are words"


def test_bm25_scores_are_those_of_the_formula():
    """Lucene's: idf tf / (tf + k1 (1 - b + b |d| / avgdl)), idf ln(1 + (N - n + .5) / (n + .5))."""
    records = [
        {"anchor": "x", "positive": "one two"},
        {"anchor": "two", "positive": "two two three four"},
    ]
    found = mined(records, candidates="bm25", num_negatives=1)
    idf = np.log(1 + 0.5 / 2.5)
    expected = idf * 1 / (1 + 1.5 * (1 - 0.75 + 0.75 * 2 / 3))
    np.testing.assert_allclose(found.scores[1], [expected], rtol=1e-5)
    expected = idf * 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * 4 / 3))
    np.testing.assert_allclose(found.positive_scores[1], [expected], rtol=1e-5)


def test_instructions_are_read_and_tell_queries_apart(tmp_path):
    """The same query under two instructions has two sets of positives."""
    from polyvec import load_recipe

    embedder = load_recipe("e5-mistral").build("nano")
    lines = [
        {"query": "sea", "prompt": "Instruct: " + how, "pos": [f"{how} of the sea"], "neg": []}
        for how in ("depth", "colour", "sound")
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    (found,) = training_sets({"path": str(path)})
    result = mine(found, mining_settings({"num_negatives": 2}), tools=Tools(embedder))
    assert len(result.texts.queries) == 3
    assert "depth of the sea" not in result.texts_of(0)
    assert "depth of the sea" in result.texts_of(1)
    by_hand = embedder.similarity(
        embedder.encode(["sea"], prompt="Instruct: depth", role="query"),
        embedder.encode_document([text.text for text in result.texts.documents]),
    )[0]
    np.testing.assert_allclose(
        result.scores[0], by_hand[result.negatives[0]].numpy(), rtol=1e-4, atol=1e-5
    )


def test_rows_keep_their_own_negatives_and_get_scores(embedder, tmp_path):
    records = [
        {"query": "q one", "pos": ["sea", "river"], "neg": ["stone"]},
        {"query": "q two", "pos": ["bird"], "neg": ["tree"]},
        {"query": "q three", "pos": ["fire"], "neg": ["bread"]},
    ]
    found = mined(records, embedder, num_negatives=2, output_scores=True)
    first = next(found.mined_rows())
    assert first.negatives[0] == "stone" and len(first.negatives) == 3
    assert {"sea", "river", "stone"}.isdisjoint(first.negatives[1:])
    expected = embedder.similarity(
        embedder.encode_query(["q one"]),
        embedder.encode_document([*first.positives, *first.negatives]),
    )
    np.testing.assert_allclose(first.teacher_scores, expected[0].numpy(), atol=1e-6)
    path = tmp_path / "mined.jsonl"
    assert write({"a": found}, path, "rows") == 3
    again = training_rows({"path": str(path)})
    assert [row.texts for row in again] == [row.texts for row in found.mined_rows()]
    np.testing.assert_allclose(again[0].teacher_scores, first.teacher_scores, atol=1e-6)


def test_false_negatives_are_counted(embedder):
    records = pairs(20)
    found = mined(records, embedder, num_negatives=4)
    of_query = {each["anchor"]: found.texts_of(i) for i, each in enumerate(records)}
    full = [
        {"anchor": query, "positive": text} for query, some in of_query.items() for text in some[:1]
    ]
    judged = false_negatives(found, relevant_of(rows_of(full).rows))
    assert (judged.num_relevant, judged.num_negatives, judged.rate) == (20, 80, 0.25)
    assert facts(found, relevant_of(rows_of(full).rows))["false negatives by all judgements"] == (
        "20 (25.00 %)"
    )
    with pytest.raises(DataError, match="none of the 20 queries"):
        false_negatives(found, relevant_of(rows_of([{"a": "x", "b": "y"}]).rows))


def test_half_of_the_positives_hidden():
    """Documents that equal a positive in all but a word come back once the positive is hidden."""
    records = [
        {"anchor": f"{word} only", "positive": f"{word} {i}"} for word in WORDS for i in range(4)
    ]
    corpus = [f"only {word} {word} something else" for word in "xyz"]
    found = mined(records, corpus=corpus, candidates="bm25", num_negatives=2)
    assert found.hidden_taken == found.hidden_negatives == 2 * len(WORDS)


def test_vectors_are_read_from_the_cache(embedder, tmp_path):
    found = rows_of(pairs(10))
    cache = EmbeddingCache(tmp_path)
    first = mine(found, tools=Tools(embedder, cache))

    class Fails(Embedder):
        def encode_iter(self, inputs, **options):
            assert not list(inputs), "encoded again"
            return iter(())

    silent = Embedder.__new__(Fails)
    silent.__dict__.update(embedder.__dict__)
    again = mine(found, tools=Tools(silent, EmbeddingCache(tmp_path)))
    assert [each.tolist() for each in again.negatives] == [
        each.tolist() for each in first.negatives
    ]


@pytest.mark.parametrize(
    ("records", "settings", "words"),
    [
        ([{"text": "alone"}], {}, "no positive"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1.0}], {}, "set min_score"),
        ([{"premise": "a", "hypothesis": "b", "label": 2}], {}, "with label 2"),
        ([{"anchor": "a", "positive": "b"}], {}, "name a corpus"),
        (pairs(5), {"max_score": -2.0}, "max_score = -2.0 refuses"),
        (
            [{"query": "a", "pos": ["b"], "neg": ["c"], "pos_scores": [1], "neg_scores": [0]}],
            {},
            "output_scores",
        ),
    ],
)
def test_data_that_cannot_be_mined(embedder, records, settings, words):
    with pytest.raises(DataError, match=words):
        mined(records, embedder, **settings)


def test_a_search_needs_a_model():
    with pytest.raises(SettingsError, match="needs a model"):
        mined(pairs(3))


def test_a_corpus_without_a_column_of_texts(tmp_path):
    """There is no argument that names one."""
    (tmp_path / "corpus.jsonl").write_text('{"passage": "a"}\n')
    with pytest.raises(DataError, match=r"corpus.jsonl:1: no text column .*; rename the one that"):
        corpus_texts(tmp_path / "corpus.jsonl")
