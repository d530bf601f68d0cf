"""Agreement of predicted with gold texts: the survey's Eq. 12 to 18, averaged over texts.

A text is a string, or a list of tokens (such as a tokenizer's ids), which is compared unchanged.
Predicted texts come first, then one gold text for each.
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polyvec.errors import DataError, SettingsError, known
from polyvec.evaluate.measures.inputs import (
    extra,
    paired,
    positive,
    unit,
    vector_pairs,
    whole,
)

Text = str | Sequence[Hashable]
LEVELS = ("corpus", "sentence")


class Overlap(NamedTuple):
    """Precision, recall and their weighted harmonic mean, all 0 to 1."""

    precision: float
    recall: float
    f: float


def token_accuracy(predicted: Sequence[Text], gold: Sequence[Text]) -> float:
    """Share of a gold text's tokens that the prediction has in the same position (Eq. 12), 0 to 1.

    The survey calls this exact match, but a correct beginning scores, and one extra token at the
    front scores 0. Strings are split at white space. Raises DataError for an empty gold text.

    >>> token_accuracy(["the cat sat", "cat"], ["the cat ran off", "cat"])
    0.75
    """
    paired("token_accuracy", predicted, gold, of="texts")
    shares = []
    for i, (text, wanted) in enumerate(
        zip(map(_tokens, predicted), map(_tokens, gold), strict=True)
    ):
        if not wanted:
            raise DataError(f"token_accuracy: gold text {i} has no tokens")
        # Not strict: tokens beyond the shorter text cannot be in the same position.
        same = sum(a == b for a, b in zip(text, wanted, strict=False))
        shares.append(same / len(wanted))
    return float(np.mean(shares))


def exact_match(
    predicted: Sequence[Text], gold: Sequence[Text], *, normalize: bool = True
) -> float:
    """Share of texts equal to their gold text, 0 to 1.

    normalize=True compares `normalized` texts, as SQuAD's script does (Rajpurkar et al. 2016,
    arXiv:1606.05250). False compares every character, as papers on embedding inversion do.

    >>> exact_match(["The cat!", "dog"], ["cat", "dogs"])
    0.5
    """
    paired("exact_match", predicted, gold, of="texts")
    pairs = zip(_prepared(predicted, normalize), _prepared(gold, normalize), strict=True)
    return float(np.mean([a == b for a, b in pairs]))


def normalized(text: str) -> str:
    """The text as SQuAD compares it: lower case, without punctuation, articles and extra spaces.

    >>> normalized("The  U.S. a-team")
    'us ateam'
    """
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_overlap(
    predicted: Sequence[Text], gold: Sequence[Text], *, normalize: bool = True
) -> Overlap:
    """Mean precision, recall and F1 of the words in any order (Eq. 18): token F1.

    A word counts as often as it occurs in both. Strings are `normalized` (SQuAD's F1) or, with
    normalize=False, only split at white space. Two empty texts agree; an empty and another do not.

    >>> token_overlap(["sat cat cat"], ["a cat sat down"])
    Overlap(precision=0.6666666666666666, recall=0.6666666666666666, f=0.6666666666666666)
    """
    paired("token_overlap", predicted, gold, of="texts")
    pairs = zip(_prepared(predicted, normalize), _prepared(gold, normalize), strict=True)
    return _mean([_overlap(_tokens(text), _tokens(wanted)) for text, wanted in pairs])


def rouge_l(predicted: Sequence[Text], gold: Sequence[Text], *, beta: float = 1.0) -> Overlap:
    """Mean precision, recall (Eq. 13, 14), F_beta (Eq. 15) of the longest common subsequence.

    A larger beta gives recall more weight. Strings are split into rouge-score's words: lower case,
    a-z and 0-9 only, no stemming. A gold text without such words is a DataError, not a score of 0:
    give texts of other scripts as lists of tokens. Lin 2004, aclanthology.org/W04-1013.

    >>> rouge_l(["the cat"], ["the big cat sat"], beta=2.0)
    Overlap(precision=1.0, recall=0.5, f=0.5555555555555556)
    """
    positive("beta", beta)
    scores = _rouge("rougeL", predicted, gold)
    return _mean([Overlap(p, r, _f_beta(p, r, beta)) for p, r in scores])


def rouge_n(predicted: Sequence[Text], gold: Sequence[Text], n: int = 1) -> Overlap:
    """Mean precision, recall and F1 of n-grams, n from 1 to 9; strings as for `rouge_l`.

    A gold text of fewer than n words scores 0. Lin 2004.

    >>> rouge_n(["the cat sat"], ["the cat ran"], 2)
    Overlap(precision=0.5, recall=0.5, f=0.5)
    """
    if whole("n", n) > 9:
        raise SettingsError(f"n must be at most 9, got {n}")
    scores = _rouge(f"rouge{n}", predicted, gold)
    return _mean([Overlap(p, r, _f_beta(p, r, 1.0)) for p, r in scores])


def bleu(
    predicted: Sequence[str],
    gold: Sequence[str],
    *,
    level: str = "corpus",
    max_order: int = 4,
    tokenize: str = "13a",
) -> float:
    """BLEU (Eq. 16), 0 to 1: brevity penalty times the geometric mean of n-gram precisions.

    level="corpus" counts n-grams over all texts (Papineni et al. 2002, P02-1040); "sentence" is
    the mean over texts, each with the orders that it is long enough for. sacrebleu computes it:
    orders without a match are smoothed ("exp"), `tokenize` is one of its tokenizers ("zh", "char").

    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on the mat"]), 6)
    1.0
    """
    paired("bleu", predicted, gold, of="texts")
    for i, text in enumerate([*predicted, *gold]):
        if not isinstance(text, str):
            # i % N is the index on the text's own side.
            raise DataError(
                f"bleu: text {i % len(gold)} is {type(text).__name__}, expected a string"
            )
    if level not in LEVELS:
        raise SettingsError(f"bleu: level {level!r} is not known." + known(level, LEVELS))
    metric = extra("sacrebleu.metrics", "BLEU").BLEU
    if tokenize not in metric.TOKENIZERS:
        raise SettingsError(
            f"bleu: tokenize {tokenize!r} is not known." + known(tokenize, metric.TOKENIZERS)
        )
    scorer = metric(
        max_ngram_order=whole("max_order", max_order),
        tokenize=tokenize,
        effective_order=level == "sentence",
        force=True,  # suppresses the warning that texts look tokenized
    )
    if level == "corpus":
        return float(scorer.corpus_score(list(predicted), [list(gold)]).score) / 100
    pairs = zip(predicted, gold, strict=True)
    return float(np.mean([scorer.sentence_score(a, [b]).score for a, b in pairs])) / 100


def embedding_cosine(predicted: Any, gold: Any) -> float:
    """Mean cosine of the vectors of predicted texts with those of gold texts (Eq. 17), -1 to 1.

    Both [N, E]. Raises ShapeError for different shapes, DataError for a zero vector.

    >>> embedding_cosine([[2.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [1.0, 0.0]])
    0.5
    """
    a_NE, b_NE = vector_pairs("embedding_cosine", predicted, gold)
    a_NE, b_NE = unit("embedding_cosine", a_NE), unit("embedding_cosine", b_NE)
    return float((a_NE * b_NE).sum(axis=1, dtype=np.float64).mean())


def attribute_hit_rate(
    guesses: Sequence[Sequence[Hashable]], gold: Sequence[Sequence[Hashable]], k: int
) -> float:
    """Mean share of a text's secret words that are among the first k guesses, 0 to 1.

    Guesses are words in descending confidence. Measures what an attribute inference attack leaks
    (Song and Raghunathan 2020, arXiv:2004.00053). Raises DataError for a text without secret words.

    >>> attribute_hit_rate([["paris", "anna", "rome"]], [["anna", "rome"]], 2)
    0.5
    """
    paired("attribute_hit_rate", guesses, gold, of="lists of words")
    cut, shares = whole("k", k), []
    for i, (words, wanted) in enumerate(zip(guesses, gold, strict=True)):
        if isinstance(words, str) or isinstance(wanted, str) or not len(wanted):
            raise DataError(f"attribute_hit_rate: expected a list of words at index {i}")
        shares.append(len(set(wanted) & set(words[:cut])) / len(set(wanted)))
    return float(np.mean(shares))


def _tokens(text: Text) -> list[Hashable]:
    return list(text.split()) if isinstance(text, str) else list(text)


def _prepared(texts: Sequence[Text], normalize: bool) -> list[Text]:
    """Strings, normalised or not, and lists of tokens, in a form that == compares."""
    return [
        (normalized(text) if normalize else text) if isinstance(text, str) else list(text)
        for text in texts
    ]


def _overlap(text: list[Hashable], wanted: list[Hashable]) -> Overlap:
    if not text or not wanted:
        same = float(text == wanted)
        return Overlap(same, same, same)
    shared = (Counter(text) & Counter(wanted)).total()
    precision, recall = shared / len(text), shared / len(wanted)
    return Overlap(precision, recall, _f_beta(precision, recall, 1.0))


def _f_beta(precision: float, recall: float, beta: float) -> float:
    """(1 + beta^2) P R / (beta^2 P + R); 0 if both are 0."""
    weighted = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / weighted if weighted else 0.0


def _mean(overlaps: Sequence[Overlap]) -> Overlap:
    return Overlap(*map(float, np.mean(overlaps, axis=0)))


class _Words:
    """A tokenizer for rouge-score that leaves lists of tokens unchanged."""

    def __init__(self) -> None:
        self.default = extra("rouge_score.tokenizers", "ROUGE").DefaultTokenizer(use_stemmer=False)

    def tokenize(self, text: Text) -> list[Hashable]:
        return self.default.tokenize(text) if isinstance(text, str) else list(text)


def _rouge(kind: str, predicted: Sequence[Text], gold: Sequence[Text]) -> list[tuple[float, float]]:
    """Precision and recall of each text."""
    paired(kind, predicted, gold, of="texts")
    words = _Words()
    scorer = extra("rouge_score.rouge_scorer", "ROUGE").RougeScorer([kind], tokenizer=words)
    found = []
    for i, (text, wanted) in enumerate(zip(predicted, gold, strict=True)):
        if not words.tokenize(wanted):
            raise DataError(
                f"{kind}: gold text {i} has no word of a-z or 0-9; give it as a list of tokens"
            )
        score = scorer.score(wanted, text)[kind]
        found.append((score.precision, score.recall))
    return found
