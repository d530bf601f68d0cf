"""Contamination: what is planted is found, what is clean is not, and a slow count agrees."""

import json
import random

import numpy as np
import pytest

from polyvec.data.overlap import overlap as module
from polyvec.data.overlap.overlap import equal_rows, overlap
from polyvec.data.overlap.splits import THRESHOLDS, WHOLE_ROWS, split_overlaps
from polyvec.data.stats.statistics import folder_stats
from polyvec.data.words import normalized
from polyvec.errors import InputError
from polyvec.index.exact import top_k

VOCABULARY = [f"word{i}" for i in range(2000)]


def sentences(count: int, seed: int, low: int = 14, high: int = 40) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(VOCABULARY, k=draw.randint(low, high))) for _ in range(count)]


TRAIN, CLEAN = sentences(200, 1), sentences(50, 2)


def write(folder, **files):
    """Rows as <name>.jsonl; "__" is a slash."""
    for name, rows in files.items():
        path = folder / f"{name.replace('__', '/')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row if isinstance(row, dict) else {"text": row}) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    return folder


def overlaps(folder, against=None, **options):
    stats = folder_stats(folder, guess="script")
    other = None if against is None else folder_stats(against, guess="script")
    return split_overlaps(stats, other, **options)


# ---- texts against texts ------------------------------------------------------------------------


def test_clean_data_is_not_flagged():
    found = overlap(TRAIN, CLEAN)
    assert (found.num_exact, found.num_same, found.num_ngram) == (0, 0, 0)
    assert found.mean_ngram_share == 0
    assert set(found.ngram_rows) == set(found.same_rows) == {-1}


def test_each_way_finds_what_it_looks_for():
    copied = TRAIN[7]
    retyped = TRAIN[8].upper().replace(" ", ",  ") + "!"
    spaced = TRAIN[9].replace(" ", "\n  ")
    words = TRAIN[10].split()
    part = " ".join(["something", "else", *words[:14], "and", "more"])
    found = overlap(TRAIN, [*CLEAN, copied, retyped, spaced, part])
    assert found.exact_rows[50:].tolist() == [7, -1, 9, -1]
    assert found.same_rows[50:].tolist() == [7, 8, 9, -1]
    assert found.ngram_rows[50:].tolist() == [7, 8, 9, 10]
    # 18 words are 6 runs of 13, of which the 14 copied ones are 2
    assert found.ngram_shares[50:].tolist() == [1, 1, 1, pytest.approx(2 / 6)]
    assert found.num_ngram == 4
    assert found.mean_ngram_share == pytest.approx((3 + 1 / 3) / 54)


def slow_shares(train, test, n):
    """The definition, with sets of tuples; all texts have n words or more."""

    def grams(text):
        words = normalized(text).split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    known = {gram for text in train for gram in grams(text)}
    return [np.mean([gram in known for gram in grams(text)]) for text in test]


@pytest.mark.parametrize("n", [1, 2, 3, 13])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 18])
def test_shares_agree_with_a_slow_count(monkeypatch, n, chunk):
    """However many training words are held at a time."""
    monkeypatch.setattr(module, "CHUNK_WORDS", chunk)
    draw = random.Random(n)
    few = VOCABULARY[:40]
    train = [" ".join(draw.choices(few, k=draw.randint(13, 30))) for _ in range(60)]
    test = [" ".join(draw.choices(few, k=draw.randint(13, 30))) for _ in range(20)]
    test += [f"x {train[3]}", train[59][:-1]]
    found = overlap(iter(train), test, n)
    assert found.ngram_shares.tolist() == pytest.approx(slow_shares(train, test, n))
    assert found.num_train == 60
    for text, row in zip(test, found.ngram_rows, strict=True):
        assert row == -1 or slow_shares([train[row]], [text], n)[0] > 0
    assert n < 13 or found.ngram_rows[-2:].tolist() == [3, 59]


def test_the_first_of_equal_training_texts_is_named():
    a, b = TRAIN[0], TRAIN[1]
    found = overlap([b, a, a.upper(), a], [a])
    assert (found.exact_rows[0], found.same_rows[0], found.ngram_rows[0]) == (1, 1, 1)
    found = overlap([a.upper(), a], [a])
    assert (found.exact_rows[0], found.same_rows[0]) == (1, 0)


def test_the_training_text_with_most_of_it_is_named():
    words = VOCABULARY[:60]
    train = [" ".join(words[:16]), " ".join(words[16:60])]
    assert overlap(train, [" ".join(words)]).ngram_rows.tolist() == [1]


def test_short_texts_are_one_ngram():
    """From 8 words on they may stand inside a text, below only alone: "see you" is everywhere."""
    ten = "one two three four five six seven eight nine ten"
    train = [f"before {ten} after", "see you", "yes and see you soon then my friend of old"]
    test = [ten, "See you!", "soon then", "one two three four five six seven ate nine ten"]
    found = overlap(train, test)
    assert found.ngram_shares.tolist() == [1, 1, 0, 0]
    assert found.ngram_rows.tolist() == [0, 1, -1, -1]
    assert found.num_same == 1
    # A smaller n looks into shorter texts.
    assert overlap(train, test, n=2).ngram_shares[2] == 1


def test_letters_of_scripts_without_spaces_are_less_than_words():
    """26 letters of Han make 13 words; 13 alone are too few to say that a text was copied."""
    draw = random.Random(0)
    letters = "".join(chr(0x4E00 + i) for i in draw.sample(range(2000), 120))
    train = [letters[:60]]
    half, whole = letters[100:] + letters[10:23], letters[100:] + letters[10:36]
    assert overlap(train, [half, whole]).ngram_shares.tolist() == [0, pytest.approx(1 / 21)]
    # 20 of its own letters and 26 copied ones: 46 - 26 + 1 = 21 runs, one of them copied.


def test_order_and_borders_of_texts_count():
    words = VOCABULARY[:13]
    assert overlap([" ".join(words[::-1])], [" ".join(words)]).num_ngram == 0
    assert overlap([" ".join(words[:6]), " ".join(words[6:])], [" ".join(words)]).num_ngram == 0


def test_empty_texts_are_nobodys():
    found = overlap(["", "  ", "a"], ["", " \n"])
    assert (found.num_exact, found.num_same, found.num_ngram) == (0, 0, 0)
    assert len(overlap(["a"], [])) == 0
    assert overlap([], ["a b"]).num_same == 0
    # Signs alone are compared as they are.
    assert overlap(["!!!"], ["???", "!!!"]).same_rows.tolist() == [-1, 0]


def test_an_ngram_has_a_word():
    with pytest.raises(InputError, match="at least 1 word, got 0"):
        overlap(["a"], ["a"], n=0)


def test_equal_rows():
    assert equal_rows(["a", "b", "b"], ["b", "A", "a"]).tolist() == [1, -1, 0]


# ---- splits of folders --------------------------------------------------------------------------


def test_planted_texts_are_found_with_their_places(tmp_path):
    test = [*CLEAN, TRAIN[3], TRAIN[4].title()]
    write(tmp_path, train=TRAIN, test=test)
    (found,) = overlaps(tmp_path)
    assert (found.train, found.test, found.field) == ("train.jsonl", "test.jsonl", "text")
    assert (found.num_train, found.num_texts) == (200, 52)
    assert (found.num_exact, found.num_same, found.num_ngram) == (1, 2, 2)
    assert found.num_near is None
    pairs = {pair.how: pair for pair in found.worst}
    assert set(pairs) == {"equal", "same words"}
    assert pairs["equal"].test_place == f"{tmp_path / 'test.jsonl'}:51"
    assert pairs["equal"].train_place == f"{tmp_path / 'train.jsonl'}:4"
    assert pairs["same words"].test_text == TRAIN[4].title()
    assert pairs["same words"].train_text == TRAIN[4]


def test_clean_splits_have_no_pairs(tmp_path):
    (found,) = overlaps(write(tmp_path, train=TRAIN, test=CLEAN))
    assert (found.num_same, found.num_ngram, found.worst) == (0, 0, ())


def test_every_later_split_is_compared_with_every_earlier(tmp_path):
    write(tmp_path, train=TRAIN, valid=CLEAN[:9], test=CLEAN[5:])
    found = {(o.train, o.test): o.num_exact for o in overlaps(tmp_path)}
    assert found == {
        ("train.jsonl", "valid.jsonl"): 0,
        ("train.jsonl", "test.jsonl"): 0,
        ("valid.jsonl", "test.jsonl"): 4,
    }


def test_series_keep_to_themselves(tmp_path):
    """en_test is not looked for in de_train, nor queries in the corpus."""
    write(tmp_path, en_train=TRAIN, de_train=CLEAN, en_test=CLEAN, de_test=TRAIN)
    found = {(o.train, o.test): o.num_exact for o in overlaps(tmp_path)}
    assert found == {
        ("de_train.jsonl", "de_test.jsonl"): 0,
        ("en_train.jsonl", "en_test.jsonl"): 0,
    }


def test_the_longest_copies_come_first_and_each_text_once(tmp_path):
    test = [TRAIN[0][:40], *sorted(TRAIN[:20], key=len), TRAIN[5], TRAIN[5]]
    (found,) = overlaps(write(tmp_path, train=TRAIN, test=test), num_pairs=4)
    longest = sorted(TRAIN[:20], key=lambda text: -len(text.split()))[:4]
    assert len(found.worst) == 4
    assert [len(pair.test_text.split()) for pair in found.worst] == [
        len(text.split()) for text in longest
    ]


def test_pairs_are_the_same_pair_in_any_order(tmp_path):
    """Sentences come again by themselves; that a whole pair does is told apart."""

    def pair(a, b):
        return {"sentence1": a, "sentence2": b, "score": 1.0}

    a, b, c, d, e = TRAIN[:5]
    write(tmp_path, train=[pair(a, b), pair(c, d)], test=[pair(b.upper(), a), pair(c, e)])
    found = {o.field: o for o in overlaps(tmp_path)}
    assert found["sentence1"].num_same == 2
    assert found["sentence2"].num_same == 1
    whole = found[WHOLE_ROWS]
    assert (whole.num_texts, whole.num_same, whole.num_ngram) == (2, 1, None)


def test_splits_by_a_field_of_the_rows(tmp_path):
    rows = [{"text": text, "split": "train"} for text in TRAIN]
    rows += [{"text": text, "split": "test"} for text in (*CLEAN, TRAIN[0])]
    (found,) = overlaps(write(tmp_path, all=rows))
    assert (found.train, found.test) == ("all.jsonl (train)", "all.jsonl (test)")
    assert (found.num_train, found.num_texts, found.num_exact) == (200, 51, 1)


def test_splits_of_queries_by_their_judgements(tmp_path):
    texts = [*TRAIN[:5], TRAIN[0]]
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(texts)]
    write(tmp_path, corpus=[{"_id": "d", "text": "some document"}], queries=queries)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("".join(f"q{i}\td\t1\n" for i in range(5)))
    (tmp_path / "qrels" / "test.tsv").write_text("q5\td\t1\nq4\td\t1\n")
    (found,) = overlaps(tmp_path)
    assert (found.train, found.test) == ("queries.jsonl (train)", "queries.jsonl (test)")
    assert (found.num_train, found.num_texts) == (5, 2)
    assert found.num_exact == 2  # the same text, and the same query judged in both


def test_against_another_folder(tmp_path):
    """Train and test stand in two folders: what is named otherwise is left out."""
    ours = write(tmp_path / "ours", train=TRAIN[:100], test=CLEAN)
    theirs = write(tmp_path / "theirs", train=TRAIN, test=[*CLEAN, TRAIN[0]], dev=CLEAN[:3])
    found = {o.test: o for o in overlaps(ours, theirs)}
    assert set(found) == {"theirs/dev.jsonl", "theirs/test.jsonl"}
    test = found["theirs/test.jsonl"]
    assert (test.train, test.num_train, test.num_exact) == ("ours/train.jsonl", 100, 1)
    assert test.worst[0].test_place == f"{theirs / 'test.jsonl'}:51"


def test_against_one_file_of_any_name(tmp_path):
    ours, theirs = write(tmp_path, mine=TRAIN), write(tmp_path, questions=TRAIN[:2])
    (found,) = overlaps(ours / "mine.jsonl", theirs / "questions.jsonl")
    assert (found.num_exact, found.num_texts) == (2, 2)
    with pytest.raises(InputError, match="compared with itself"):
        overlaps(ours, ours)


def test_neighbours_are_found_by_vectors(tmp_path):
    """Vectors of letters: an anagram is near, and words in common are none."""
    calls = []

    def embed(texts):
        calls.append(len(texts))
        return np.array([[text.count(c) for c in "abcdefgh"] for text in texts], np.float32)

    train, test = ["abba cde fff", "hhh ggg h a"], ["def cab abff", "aaaa gggg bb", "abba cde fff"]
    write(tmp_path, train=train, test=test)
    (found,) = overlaps(tmp_path, neighbours=(embed, top_k))
    assert found.num_near == {f"{t:g}": 2 for t in THRESHOLDS}
    assert (found.num_exact, found.num_ngram) == (1, 1)
    equal, near = found.worst
    assert (equal.how, near.how) == ("equal", "neighbour")
    assert (near.test_text, near.train_text) == (test[0], train[0])
    assert near.score == pytest.approx(1)
    assert sum(calls) == 4  # the text that stands in both is embedded once


# ---- real data ----------------------------------------------------------------------------------


@pytest.mark.medium
def test_what_is_known_of_stsb_and_sick(shared_data):
    """Pairs as sets of two texts, counted in another way."""
    for name in ("stsb", "sick"):
        sides = {}
        for split in ("train", "test"):
            (path,) = (shared_data / name).glob(f"{split}.jsonl*")
            rows = [row for _, row in read(path)]
            keys = ("sentence1", "sentence2")
            sides[split] = [tuple(sorted(normalized(row[k]) for k in keys)) for row in rows]
        known = set(sides["train"])
        again = sum(pair in known for pair in sides["test"])
        found = [o for o in overlaps(shared_data / name) if o.field == WHOLE_ROWS]
        (whole,) = (o for o in found if o.train.startswith("train") and o.test.startswith("test"))
        assert whole.num_same == again > 0
        assert whole.num_texts == len(sides["test"])


def read(path):
    from polyvec.data.texts import read_jsonl

    return read_jsonl(path)


@pytest.mark.medium
def test_xquad_is_part_of_squad(shared_data):
    squad, xquad = shared_data / "squad11_dev", shared_data / "xquad"
    (found,) = overlaps(squad / "corpus.jsonl.gz", xquad / "corpus.en.jsonl")
    assert (found.num_exact, found.num_texts) == (240, 240)
    (found,) = overlaps(squad / "corpus.jsonl.gz", xquad / "corpus.el.jsonl.gz")
    assert (found.num_exact, found.num_ngram) == (0, 0)


def test_negated_claims_of_scifact_share_words(shared_data):
    found = {o.test: o for o in overlaps(shared_data / "scifact")}
    queries = found["queries.jsonl (test)"]
    assert (queries.num_train, queries.num_texts) == (809, 300)
    assert 0 < queries.num_same < queries.num_ngram < 60
