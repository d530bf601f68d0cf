"""Texts: values by hand, brute force, and agreement with rouge-score, sacrebleu and scipy."""

import itertools
import math
import random
import re
import string

import numpy as np
import pytest

from polyvec.errors import DataError, SettingsError, ShapeError
from polyvec.evaluate.measures import (
    attribute_hit_rate,
    bleu,
    embedding_cosine,
    exact_match,
    normalized,
    rouge_l,
    rouge_n,
    token_accuracy,
    token_overlap,
)

WORDS = ["the", "cat", "sat", "on", "a", "mat", "river", "U.S.", "dog!", "An"]


def drawn(seed, num=40, least=1):
    """Pairs of texts that share many words."""
    draw = random.Random(seed)
    gold = [[draw.choice(WORDS) for _ in range(draw.randint(least, 12))] for _ in range(num)]
    predicted = []
    for words in gold:
        kept = [word for word in words if draw.random() < 0.8]
        predicted.append(kept + draw.choices(WORDS, k=draw.randint(0, 3)))
    return [" ".join(words) for words in predicted], [" ".join(words) for words in gold]


def test_token_accuracy_is_the_surveys_equation_12():
    assert token_accuracy([[5, 6, 7, 8]], [[5, 6, 9, 8]]) == 3 / 4
    assert token_accuracy([[5, 6]], [[5, 6, 9, 8]]) == 2 / 4  # divided by the gold length
    assert token_accuracy([[5, 6, 9, 8, 1, 2]], [[5, 6, 9, 8]]) == 1
    assert token_accuracy([[]], [[1]]) == 0
    predicted, gold = drawn(0)
    each = []
    for a, b in zip(predicted, gold, strict=True):
        a, b = a.split(), b.split()
        each.append(sum(a[j] == b[j] for j in range(min(len(a), len(b)))) / len(b))
    assert token_accuracy(predicted, gold) == pytest.approx(np.mean(each))


def test_a_shift_by_one_token_or_a_right_beginning_tell_both_exact_matches_apart():
    gold = ["cat sat there now"]
    assert (
        token_accuracy(["so cat sat there"], gold) == exact_match(["so cat sat there"], gold) == 0
    )
    assert (token_accuracy(["cat sat there"], gold), exact_match(["cat sat there"], gold)) == (
        0.75,
        0,
    )
    more = ["cat sat there now and then"]
    assert (token_accuracy(more, gold), exact_match(more, gold)) == (1, 0)


def squad_words(text):
    """SQuAD's normalisation, another way round."""
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return [word for word in re.split(r"\s+", kept) if word not in ("", "a", "an", "the")]


def test_strict_exact_match_is_squads():
    assert exact_match(["The  cat, sat!"], ["cat sat"]) == 1
    assert exact_match(["The cat"], ["cat"], normalize=False) == 0
    assert exact_match(["cat "], ["cat"], normalize=False) == 0
    assert exact_match(["", "x"], ["", "y"]) == 0.5
    assert exact_match([[1, 2], [1, 2]], [(1, 2), [2, 1]]) == 0.5
    predicted, gold = drawn(1)
    expected = [squad_words(a) == squad_words(b) for a, b in zip(predicted, gold, strict=True)]
    assert exact_match(predicted, gold) == pytest.approx(np.mean(expected))
    assert all(normalized(text).split() == squad_words(text) for text in predicted + gold)


def test_token_overlap_by_hand_and_by_matching_words_off():
    assert token_overlap(["b b c"], ["b d"], normalize=False) == pytest.approx((1 / 3, 1 / 2, 0.4))
    predicted, gold = drawn(2)
    each = []
    for a, b in zip(map(squad_words, predicted), map(squad_words, gold), strict=True):
        left, shared = list(b), 0
        for word in a:
            if word in left:
                left.remove(word)
                shared += 1
        each.append(2 * shared / (len(a) + len(b)) if a or b else 1.0)
    assert token_overlap(predicted, gold).f == pytest.approx(np.mean(each))


def test_texts_without_words_agree_with_each_other_alone():
    assert token_overlap(["the!"], ["a"]) == (1, 1, 1)
    assert token_overlap(["cat"], ["a"]) == token_overlap([""], ["cat"]) == (0, 0, 0)
    assert token_overlap([[]], [[7]]) == (0, 0, 0)


def test_order_matters_to_bleu_and_rouge_but_not_to_token_f1():
    text, shuffled = "one two three four five six", "six four two one five three"
    assert token_overlap([shuffled], [text]).f == rouge_n([shuffled], [text]).f == 1
    assert rouge_l([shuffled], [text]).f == pytest.approx(1 / 3)
    assert bleu([shuffled], [text]) < 0.3


def longest_common(a, b):
    """By trying every subsequence of the shorter."""
    short, long = sorted((a, b), key=len)
    for size in range(len(short), 0, -1):
        for some in itertools.combinations(short, size):
            rest = iter(long)
            if all(word in rest for word in some):
                return size
    return 0


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_rouge_l_is_the_longest_common_subsequence(beta):
    draw = random.Random(3)
    predicted, gold = ([[draw.randint(0, 3) for _ in range(7)] for _ in range(15)] for _ in "12")
    predicted = [words[: draw.randint(0, 7)] for words in predicted]
    each = []
    for a, b in zip(predicted, gold, strict=True):
        shared = longest_common(a, b)
        precision, recall = shared / len(a) if a else 0, shared / len(b)
        # van Rijsbergen's form of F: 1 / (w / P + (1 - w) / R) with w = 1 / (1 + beta^2).
        weight = 1 / (1 + beta**2)
        f = 1 / (weight / precision + (1 - weight) / recall) if shared else 0
        each.append((precision, recall, f))
    assert rouge_l(predicted, gold, beta=beta) == pytest.approx(np.mean(each, axis=0))


def test_rouge_by_hand():
    gold, part = ["the big cat sat"], ["the cat"]
    assert rouge_l(part, gold) == pytest.approx((1, 1 / 2, 2 / 3))
    assert rouge_l(gold, part) == pytest.approx((1 / 2, 1, 2 / 3))
    assert rouge_l(part, gold, beta=1e6).f == pytest.approx(1 / 2)  # recall alone
    assert rouge_l(part, gold, beta=1e-6).f == pytest.approx(1)  # precision alone
    assert rouge_n(part, gold, 1) == pytest.approx((1, 1 / 2, 2 / 3))
    assert rouge_n(part, gold, 2) == (0, 0, 0)
    assert rouge_l(gold, gold) == rouge_n(gold, gold, 3) == (1, 1, 1)
    assert rouge_n(part, part, 3) == (0, 0, 0)  # shorter than 3 words
    assert rouge_l([""], gold) == (0, 0, 0)


def test_rouge_agrees_with_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    predicted, gold = drawn(4)
    kinds = {"rougeL": rouge_l, "rouge1": rouge_n, "rouge2": lambda a, b: rouge_n(a, b, 2)}
    scorer = RougeScorer(list(kinds))
    scores = [scorer.score(b, a) for a, b in zip(predicted, gold, strict=True)]
    for kind, measure in kinds.items():
        expected = np.mean([tuple(score[kind]) for score in scores], axis=0)
        assert measure(predicted, gold) == pytest.approx(expected)


def test_rouge_of_another_script_is_no_silent_0():
    texts = ["ein Text", "漢字 假名"]
    for measure in (rouge_l, rouge_n):
        with pytest.raises(DataError, match=r"gold text 1 has no word of a-z or 0-9; give it as a"):
            measure(texts, texts)
        assert measure([list(text) for text in texts], [list(text) for text in texts]).f == 1
    with pytest.raises(DataError, match="gold text 0 has no word"):
        rouge_l(["a"], [""])


def by_definition(predicted, gold):
    """BLEU of 4 orders over all texts, all of which have matches."""
    log_precisions = []
    for n in range(1, 5):
        matched = total = 0
        for a, b in zip(predicted, gold, strict=True):
            a, b = ([tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in (a, b))
            matched += sum(min(a.count(gram), b.count(gram)) for gram in set(a))
            total += len(a)
        log_precisions.append(math.log(matched / total) / 4)
    length, wanted = sum(map(len, predicted)), sum(map(len, gold))
    return math.exp(sum(log_precisions) + min(0, 1 - wanted / length))


def test_bleu_agrees_with_its_definition_and_sacrebleu():
    import sacrebleu

    predicted, gold = drawn(5, least=6)
    predicted = [text.replace("U.S.", "us").replace("!", "") for text in predicted]
    gold = [text.replace("U.S.", "us").replace("!", "") for text in gold]
    split = [[text.split() for text in texts] for texts in (predicted, gold)]
    assert bleu(predicted, gold) == pytest.approx(by_definition(*split))
    assert bleu(predicted, gold) == pytest.approx(
        sacrebleu.corpus_bleu(predicted, [gold]).score / 100
    )
    pairs = zip(predicted, gold, strict=True)
    each = [sacrebleu.sentence_bleu(a, [b]).score / 100 for a, b in pairs]
    assert bleu(predicted, gold, level="sentence") == pytest.approx(np.mean(each))


def test_bleu_by_hand():
    text = "one two three four five six"
    assert bleu([text], [text]) == pytest.approx(1)
    # All n-grams of the first four words match: what is left is the brevity penalty.
    assert bleu(["one two three four"], [text]) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu(["one two six"], [text], max_order=1) == pytest.approx(math.exp(1 - 6 / 3))
    assert bleu(["two"], ["two"], level="sentence") == pytest.approx(1)
    assert bleu(["seven"], [text]) == bleu([""], [text]) == 0
    assert bleu(["漢字假名"], ["漢字假名"], tokenize="zh") == pytest.approx(1)


def test_embedding_cosine_agrees_with_scipy():
    from scipy.spatial.distance import cosine

    a, b = np.random.default_rng(6).standard_normal((2, 30, 5))
    expected = np.mean([1 - cosine(x, y) for x, y in zip(a, b, strict=True)])
    assert embedding_cosine(a, b) == pytest.approx(expected)
    assert embedding_cosine(a.astype(np.float32), 7 * b) == pytest.approx(expected, abs=1e-6)
    assert embedding_cosine(a, a) == pytest.approx(1)
    assert embedding_cosine([[3.0, 4.0]], [[4.0, 3.0]]) == pytest.approx(24 / 25)


def test_attribute_hit_rate_by_hand():
    guesses = [["anna", "rome", "paris"], ["tom", "oslo"], []]
    gold = [["paris", "anna"], ["oslo"], ["bern"]]
    assert attribute_hit_rate(guesses, gold, 1) == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert attribute_hit_rate(guesses, gold, 2) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert attribute_hit_rate(guesses, gold, 99) == pytest.approx((1 + 1 + 0) / 3)
    assert attribute_hit_rate(gold, gold, 2) == 1  # a leaked list of words
    assert attribute_hit_rate([["a", "a"]], [["a", "a", "b"]], 2) == 1 / 2


PAIRED = [token_accuracy, exact_match, token_overlap, rouge_l, rouge_n, bleu]


@pytest.mark.parametrize("measure", PAIRED)
def test_texts_that_are_not_paired_are_errors(measure):
    with pytest.raises(ShapeError, match="1 predicted texts, 2 gold"):
        measure(["a"], ["a", "b"])
    with pytest.raises(DataError, match="no texts, expected"):
        measure([], [])
    with pytest.raises(DataError, match="predicted is a string, expected a list of texts"):
        measure("cat", ["cat"])
    with pytest.raises(DataError, match="gold is a string"):
        measure(["cat"], "cat")


def test_errors_name_what_came():
    with pytest.raises(DataError, match="gold text 1 has no tokens"):
        token_accuracy(["a", "b"], ["a", " "])
    with pytest.raises(DataError, match="bleu: text 0 is list, expected a string"):
        bleu(["a", "b"], [["a"], "b"])
    with pytest.raises(SettingsError, match=r"'sentences' is not known. Did you mean 'sentence'"):
        bleu(["a"], ["a"], level="sentences")
    with pytest.raises(SettingsError, match=r"tokenize '13b' is not known. Did you mean '13a'"):
        bleu(["a"], ["a"], tokenize="13b")
    with pytest.raises(SettingsError, match=r"beta must be above 0 and finite, got 0"):
        rouge_l(["a"], ["a"], beta=0)
    with pytest.raises(SettingsError, match="n must be at most 9, got 10"):
        rouge_n(["a"], ["a"], 10)
    with pytest.raises(DataError, match="expected a list of words at index 0"):
        attribute_hit_rate(["anna"], [["anna"]], 1)
    with pytest.raises(DataError, match="expected a list of words at index 1"):
        attribute_hit_rate([["a"], ["a"]], [["a"], []], 1)
    with pytest.raises(DataError, match="vector 1 is zero"):
        embedding_cosine([[1.0, 0], [1, 0]], [[1.0, 0], [0, 0]])
    with pytest.raises(ShapeError, match=r"\(1, 2\) and \(2, 2\), expected equal"):
        embedding_cosine([[1.0, 0]], [[1.0, 0], [1, 0]])
    with pytest.raises(DataError, match="vector 0 holds NaN or infinity"):
        embedding_cosine([[math.nan, 0]], [[1.0, 0]])
