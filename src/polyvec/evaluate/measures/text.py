"""Is a text the one that was wanted? The survey's Eq. 12 to 18, averaged over the texts.

A text is a string or a list of tokens (a tokenizer's ids, say), which is taken as it is. What was
predicted comes first, then the gold text, one each.
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
    """Share of the prediction that is right, of the gold that was found, their mean; 0 to 1."""

    precision: float
    recall: float
    f: float


def token_accuracy(predicted: Sequence[Text], gold: Sequence[Text]) -> float:
    """Share of a gold text's tokens that the prediction has at the same place (Eq. 12), 0 to 1.

    The survey calls it exact match; it is not one: a right beginning scores, and one token too many
    at the front scores 0. Strings are split at white space. DataError for an empty gold text.

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
        same = sum(a == b for a, b in zip(text, wanted, strict=False))
        shares.append(same / len(wanted))
    return float(np.mean(shares))


def exact_match(
    predicted: Sequence[Text], gold: Sequence[Text], *, normalize: bool = True
) -> float:
    """Share of the texts that are the gold text, 0 to 1.

    normalize=True ignores what SQuAD's script does (Rajpurkar et al. 2016, arXiv:1606.05250): see
    `normalized`. False compares every character, as papers on embedding inversion do.

    >>> exact_match(["The cat!", "dog"], ["cat", "dogs"])
    0.5
    """
    paired("exact_match", predicted, gold, of="texts")
    pairs = zip(_prepared(predicted, normalize), _prepared(gold, normalize), strict=True)
    return float(np.mean([a == b for a, b in pairs]))


def normalized(text: str) -> str:
    """The text as SQuAD compares it: small letters, no ASCII punctuation, no a, an, the, one space.

    >>> normalized("The  U.S. a-team")
    'us ateam'
    """
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_overlap(
    predicted: Sequence[Text], gold: Sequence[Text], *, normalize: bool = True
) -> Overlap:
    """Precision, recall and F1 of the words, whatever their order (Eq. 18): token F1, mean.

    A word counts as often as it stands in both. Strings are `normalized` (SQuAD's F1) or, with
    normalize=False, only split at white space. Two texts without words agree, one such text does
    not with any other.

    >>> token_overlap(["sat cat cat"], ["a cat sat down"])
    Overlap(precision=0.6666666666666666, recall=0.6666666666666666, f=0.6666666666666666)
    """
    paired("token_overlap", predicted, gold, of="texts")
    pairs = zip(_prepared(predicted, normalize), _prepared(gold, normalize), strict=True)
    return _mean([_overlap(_tokens(text), _tokens(wanted)) for text, wanted in pairs])


def rouge_l(predicted: Sequence[Text], gold: Sequence[Text], *, beta: float = 1.0) -> Overlap:
    """Precision, recall (Eq. 13, 14) and F_beta (Eq. 15) of the longest common subsequence, mean.

    A larger beta gives recall more weight. Strings become rouge-score's words: small letters,
    a-z and 0-9 only, no stemming; a gold text without any is a DataError, not a score of 0, so
    give texts of other scripts as lists of tokens. Lin 2004, aclanthology.org/W04-1013.

    >>> rouge_l(["the cat"], ["the big cat sat"], beta=2.0)
    Overlap(precision=1.0, recall=0.5, f=0.5555555555555556)
    """
    positive("beta", beta)
    scores = _rouge("rougeL", predicted, gold)
    return _mean([Overlap(p, r, _f_beta(p, r, beta)) for p, r in scores])


def rouge_n(predicted: Sequence[Text], gold: Sequence[Text], n: int = 1) -> Overlap:
    """Precision, recall and F1 of the runs of n words, 1 to 9, mean; strings as for `rouge_l`.

    A gold text shorter than n words has none, and scores 0. Lin 2004.

    >>> rouge_n(["the cat sat"], ["the cat ran"], 2)
    Overlap(precision=0.5, recall=0.5, f=0.5)
    """
    if whole("n", n) > 9:
        raise SettingsError(f"n must be at most 9, not {n}")
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
    the mean over texts, each with only the orders that it is long enough for. sacrebleu computes:
    orders without a match are smoothed ("exp"), `tokenize` is one of its tokenizers ("zh", "char").

    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on the mat"]), 6)
    1.0
    """
    paired("bleu", predicted, gold, of="texts")
    for i, text in enumerate([*predicted, *gold]):
        if not isinstance(text, str):
            raise DataError(f"bleu: text {i % len(gold)} is no string but {type(text).__name__}")
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
        force=True,  # no warning where texts look tokenized
    )
    if level == "corpus":
        return scorer.corpus_score(list(predicted), [list(gold)]).score / 100
    pairs = zip(predicted, gold, strict=True)
    return float(np.mean([scorer.sentence_score(a, [b]).score for a, b in pairs])) / 100


def embedding_cosine(predicted: Any, gold: Any) -> float:
    """Cosine of the predicted texts' vectors with those of the gold texts (Eq. 17), -1 to 1, mean.

    Both [N, E]. Raises ShapeError if they are not paired, DataError for a vector of length 0.

    >>> embedding_cosine([[2.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [1.0, 0.0]])
    0.5
    """
    a_NE, b_NE = vector_pairs("embedding_cosine", predicted, gold)
    a_NE, b_NE = unit("embedding_cosine", a_NE), unit("embedding_cosine", b_NE)
    return float((a_NE * b_NE).sum(axis=1, dtype=np.float64).mean())


def attribute_hit_rate(
    guesses: Sequence[Sequence[Hashable]], gold: Sequence[Sequence[Hashable]], k: int
) -> float:
    """Share of a text's secret words that are among the first k guesses, 0 to 1, mean.

    Guesses are words in order, the surest first. What an attribute inference attack leaks (Song and
    Raghunathan 2020, arXiv:2004.00053). Raises DataError for a text without secret words.

    >>> attribute_hit_rate([["paris", "anna", "rome"]], [["anna", "rome"]], 2)
    0.5
    """
    paired("attribute_hit_rate", guesses, gold, of="lists of words")
    cut, shares = whole("k", k), []
    for i, (words, wanted) in enumerate(zip(guesses, gold, strict=True)):
        if isinstance(words, str) or isinstance(wanted, str) or not len(wanted):
            raise DataError(f"attribute_hit_rate: a list of words is needed at {i}")
        shares.append(len(set(wanted) & set(words[:cut])) / len(set(wanted)))
    return float(np.mean(shares))


def _tokens(text: Text) -> list[Hashable]:
    return list(text.split()) if isinstance(text, str) else list(text)


def _prepared(texts: Sequence[Text], normalize: bool) -> list[Text]:
    """Texts that can be compared: strings as they count, tokens as lists."""
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
    """(1 + beta^2) P R / (beta^2 P + R); 0 where nothing is shared."""
    weighted = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / weighted if weighted else 0.0


def _mean(overlaps: Sequence[Overlap]) -> Overlap:
    return Overlap(*map(float, np.mean(overlaps, axis=0)))


class _Words:
    """rouge-score's words of a string; a list of tokens as it is."""

    def __init__(self) -> None:
        self.default = extra("rouge_score.tokenizers", "ROUGE").DefaultTokenizer(use_stemmer=False)

    def tokenize(self, text: Text) -> list[Hashable]:
        return self.default.tokenize(text) if isinstance(text, str) else list(text)


def _rouge(kind: str, predicted: Sequence[Text], gold: Sequence[Text]) -> list[tuple[float, float]]:
    """Each text's precision and recall."""
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
