"""How diverse texts are: distinct n-grams, self-BLEU, lengths, languages."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.data.words import normalized, words
from polyvec.errors import MissingExtraError

SAMPLE = 60  # texts that self-BLEU compares with each other: it grows with the square
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Diversity:
    """Of one field of all rows.

    distinct: by n, the share of n-grams that differ (Li et al. 2016, arXiv:1510.03055).
    self_bleu: mean BLEU of each text against the others, from 0 (all differ) to 100 (Zhu et al.
        2018, arXiv:1802.01886), of a sample; None without sacrebleu, or for fewer than 2 texts.
    lengths: words at QUANTILES. languages: the most frequent; None without py3langid.
    """

    field: str
    num_texts: int
    num_distinct: int
    distinct: dict[int, float]
    self_bleu: float | None
    lengths: tuple[float, ...]
    languages: dict[str, int] | None


def diversity(field: str, texts: Sequence[str], seed: int = 0) -> Diversity:
    """The figures of at least one text; equal texts count as often as they are there."""
    split = [words(normalized(text)) for text in texts]
    counts = [len(words(text)) for text in texts]
    return Diversity(
        field,
        len(texts),
        len(set(texts)),
        {n: distinct(split, n) for n in (1, 2, 3)},
        _self_bleu(texts, seed),
        tuple(float(each) for each in np.quantile(counts, QUANTILES)),
        _languages(texts),
    )


def distinct(split: Sequence[Sequence[str]], n: int) -> float:
    """The share of the n-grams of all texts that differ from each other; 0 without any.

    >>> distinct([["a", "cat"], ["a", "dog"]], 1)
    0.75
    """
    grams = [tuple(each[i : i + n]) for each in split for i in range(len(each) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _self_bleu(texts: Sequence[str], seed: int) -> float | None:
    try:
        import sacrebleu
    except ImportError:
        return None
    if len(texts) < 2:
        return None
    chosen = np.random.default_rng(seed).permutation(len(texts))[:SAMPLE]
    some = [texts[place] for place in sorted(chosen.tolist())]
    scores = [
        sacrebleu.sentence_bleu(text, [other for j, other in enumerate(some) if j != i]).score
        for i, text in enumerate(some)
    ]
    return float(np.mean(scores))


def _languages(texts: Sequence[str]) -> dict[str, int] | None:
    from polyvec.data.stats.languages import language

    try:
        return dict(Counter(map(language, texts)).most_common(8))
    except MissingExtraError:
        return None
