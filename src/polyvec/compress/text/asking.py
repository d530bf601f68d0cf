"""What a call is given, checked: texts, a question, a budget, words to keep."""

import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from polyvec.compress.inputs import check_text
from polyvec.compress.text.tokens import TokenCounter
from polyvec.errors import InputError, SettingsError


@dataclass(frozen=True, slots=True)
class Budget:
    """What one call may keep: at most so many tokens, and units with at least this score."""

    tokens: int
    threshold: float | None


def budget_of(
    num_in: int,
    tokens: int | None,
    rate: float | None,
    threshold: float | None,
    default_rate: float | None = None,
) -> Budget:
    """What a call may keep of `num_in` tokens; InputError for what is no budget."""
    if tokens is not None and rate is not None:
        raise InputError("give tokens or rate, not both")
    check_threshold(threshold)
    if tokens is not None:
        if isinstance(tokens, bool) or not isinstance(tokens, Integral) or tokens < 1:
            raise InputError(f"tokens is {tokens!r}, expected a whole number from 1")
        return Budget(int(tokens), threshold)
    rate = default_rate if rate is None and threshold is None else rate
    if rate is not None:
        if not isinstance(rate, Real) or not 0 < rate <= 1:
            raise InputError(f"rate is {rate!r}, expected a share above 0, at most 1")
        return Budget(max(1, round(float(rate) * num_in)), threshold)
    if threshold is None:
        raise InputError("give a budget: tokens, rate or threshold")
    return Budget(num_in, threshold)


def check_threshold(threshold: Any) -> None:
    """Raises InputError for what no score can be compared with."""
    if threshold is not None and (not isinstance(threshold, Real) or math.isnan(threshold)):
        raise InputError(f"threshold is {threshold!r}, expected a number")


def check_question(question: str | None, budget: Budget, counter: TokenCounter) -> None:
    """Raises InputError for a question that is longer than what is left of the context."""
    length = counter.count(question or "")
    if length > budget.tokens:
        raise InputError(
            f"the question has {length} tokens, more than the budget of {budget.tokens} for the "
            "context; raise the budget, or shorten the question"
        )


def given(texts: Any) -> list[str]:
    """The texts that are not blank; InputError if none is left, or for what is no text."""
    if not isinstance(texts, str):
        if isinstance(texts, Mapping | Set) or not hasattr(texts, "__iter__"):
            raise InputError(f"texts is {type(texts).__name__}, expected a text or a list of texts")
        texts = list(texts)
    several = [texts] if isinstance(texts, str) else texts
    for number, each in enumerate(several):
        check_text(each, f"texts[{number}]")
    found = [each for each in several if each.strip()]
    if not found:
        raise InputError("the context is empty; there is nothing to compress")
    return found


def forced_patterns(keep_words: Sequence[str], keep_digits: bool) -> "dict[str, re.Pattern[str]]":
    """What stays wherever it occurs, by its name."""
    if isinstance(keep_words, str) or not isinstance(keep_words, Sequence):
        raise SettingsError(f"keep_words is {keep_words!r}, expected a list of words")
    patterns = {"digits": r"\d+(?:[.,:]\d+)*"} if keep_digits else {}
    for word in keep_words:
        if not isinstance(word, str) or not word.strip():
            raise SettingsError(f"keep_words: {word!r} is no word; white space is kept anyway")
        left = r"(?<!\w)" if word[0].isalnum() else ""
        right = r"(?!\w)" if word[-1].isalnum() else ""
        patterns[repr(word)] = left + re.escape(word) + right
    return {name: re.compile(each, re.IGNORECASE) for name, each in patterns.items()}
