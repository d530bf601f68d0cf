"""A budget is met exactly, at every length, with every small unit, as the output is counted."""

import random

import numpy as np
import pytest

from polyvec.compress.text.budget import select
from polyvec.compress.text.compressor import TextCompressor
from polyvec.compress.text.tokens import TokenCounter
from polyvec.data.docstrings import standard_library

TOKENIZERS = ("polyvec/nano-lm", "sentence-transformers/all-MiniLM-L6-v2", "polyvec/nano-t5")


@pytest.fixture(scope="module")
def corpus() -> str:
    """Real text of many kinds: prose, code, tables, numbers."""
    return "\n\n".join(each.text for each in standard_library())


def context(corpus: str, draw: random.Random) -> str:
    """A piece of the corpus of 30 to 3,000 characters."""
    length = int(30 * 100 ** draw.random())
    start = draw.randrange(len(corpus) - length)
    return corpus[start : start + length]


def exact_calls(corpus: str, draw: random.Random, calls: int, unit: str | None = None) -> list:
    """What was not met: (unit, tokens in, asked for, got)."""
    missed = []
    for number in range(calls):
        chosen = unit or draw.choice(("token", "word", "phrase"))
        compressor = TextCompressor(
            {"kind": "random", "seed": number},
            unit=chosen,
            tokenizer=draw.choice(TOKENIZERS),
            exact=True,
        )
        text = context(corpus, draw)
        num_in = compressor.counter.count(text)
        if not text.strip() or num_in < 2:
            continue
        budget = draw.randrange(1, num_in + 10)
        found = compressor.compress(text, tokens=budget)
        # The tokenizer's own count of the text that comes out, not the compressor's word.
        got = TokenCounter.load(compressor.counter.name).count(found.text)
        assert got == found.num_tokens <= budget
        if got != min(budget, num_in):
            missed.append((chosen, num_in, budget, got))
    return missed


@pytest.mark.medium
def test_the_budget_is_met_exactly_in_1000_of_1000_calls(corpus, minilm_folder):
    assert exact_calls(corpus, random.Random(0), 1000) == []


def test_sentences_and_passages_are_filled_with_words_if_that_is_asked(corpus, minilm_folder):
    assert exact_calls(corpus, random.Random(1), 15, "sentence") == []
    assert exact_calls(corpus, random.Random(2), 15, "passage") == []


def test_whole_sentences_stay_below_the_budget_and_no_left_one_fits(corpus):
    draw = random.Random(3)
    for number in range(15):
        compressor = TextCompressor(
            {"kind": "random", "seed": number}, unit="sentence", tokenizer="polyvec/nano-lm"
        )
        text = context(corpus, draw) + "\n\nShort one."
        found = compressor.compress(text, rate=0.6)
        budget = round(0.6 * found.num_tokens_in)
        assert found.num_tokens <= budget
        left = [t for t, kept in found.parts() if not kept and t.strip()]
        assert all("\n" in t or compressor.counter.count(t) > 0 for t in left)


@pytest.mark.medium
@pytest.mark.parametrize("length", [20, 1000, 100_000])
@pytest.mark.parametrize("unit", ["token", "word"])
def test_the_budget_is_met_from_20_to_100000_tokens(corpus, unit, length):
    compressor = TextCompressor("random", unit=unit, tokenizer="polyvec/nano-lm")
    text = corpus[: 6 * length]
    ends = compressor.counter.spans(text)
    text = text[: ends[length - 1][1]]
    for rate in (0.9, 0.5, 0.1) if length < 100_000 else (0.3,):
        found = compressor.compress(text, rate=rate)
        assert found.num_tokens == max(1, round(rate * found.num_tokens_in))


def additive(costs):
    return lambda kept_U: int(costs[kept_U].sum())


def test_the_best_units_are_kept_and_of_equal_ones_the_first():
    scores, costs = np.array([1.0, 3.0, 2.0, 2.0, 0.0]), np.ones(5, np.int64)
    kept = select(scores, costs, 2, additive(costs))
    assert kept.tolist() == [False, True, True, False, False]


def test_room_that_is_left_goes_to_the_next_unit_that_fits():
    scores, costs = np.array([4.0, 3.0, 2.0, 1.0]), np.array([3, 4, 2, 2])
    assert select(scores, costs, 5, additive(costs)).tolist() == [True, False, True, False]


def test_the_worst_unit_is_exchanged_only_where_that_is_asked():
    scores, costs = np.array([4.0, 3.0, 2.0]), np.array([3, 2, 3])
    assert select(scores, costs, 6, additive(costs)).tolist() == [True, True, False]
    kept = select(scores, costs, 6, additive(costs), exchange=True)
    assert kept.tolist() == [True, False, True]


def test_a_count_that_is_not_the_sum_of_the_units_is_what_counts():
    """Units that stand side by side cost one token less, as joined word pieces do."""
    draw = np.random.default_rng(0)
    for _ in range(100):
        scores, costs = draw.random(60), draw.integers(1, 4, 60)

        def count(kept_U, costs=costs):
            return int(costs[kept_U].sum()) - int((kept_U[1:] & kept_U[:-1]).sum()) // 2

        budget = int(draw.integers(1, count(np.ones(60, bool))))
        kept = select(scores, costs, budget, count, exchange=True)
        assert count(kept) == budget


def test_forced_units_stay_and_those_not_allowed_never_come():
    scores, costs = np.array([4.0, 3.0, 2.0, 1.0]), np.ones(4, np.int64)
    forced, allowed = np.array([0, 0, 0, 1], bool), np.array([0, 1, 1, 1], bool)
    kept = select(scores, costs, 2, additive(costs), forced, allowed)
    assert kept.tolist() == [False, True, False, True]
