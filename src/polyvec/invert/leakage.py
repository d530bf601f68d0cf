"""How much of the texts came back: found texts beside true ones, and baselines beside attacks.

N texts, M known texts, E numbers a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from polyvec.data.words import words
from polyvec.errors import DataError, InputError
from polyvec.evaluate.measures.inputs import matrix, unit
from polyvec.evaluate.measures.text import (
    Text,
    bleu,
    embedding_cosine,
    exact_match,
    rouge_l,
    token_overlap,
)
from polyvec.index.exact import top_k
from polyvec.settings import check_seed

# Texts to vectors [N, E]: an embedder's `encode`, or any function.
Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Leakage:
    """Means over texts: 0 to 1, cosine -1 to 1 (None without an encoder).

    bleu: of each text (sacrebleu, "13a"), as Vec2Text reports it but for texts of fewer than four
    words, which have the orders that they are long enough for and not 0. token_f1: of normalised
    words in any order. A letter of a script without spaces is a word. exact_match: every character.
    cosine: of the found texts' vectors with the target; 0 where nothing is written, or nothing that
    the model knows a word of.
    """

    bleu: float
    rouge_l: float
    token_f1: float
    exact_match: float
    cosine: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        return {
            name: None if value is None else round(value, 4) for name, value in asdict(self).items()
        }


def leakage(
    found: Sequence[str],
    texts: Sequence[str],
    encode: Encode | None = None,
    vectors: np.ndarray | None = None,
) -> Leakage:
    """What attacks found beside the true texts.

    encode: the victim. The cosine is that of its vectors of the found texts with `vectors`, the
    attacked ones; by default with its vectors of the true texts.

    >>> leakage(["a cat sat"], ["a cat sat down"]).token_f1
    0.8
    """
    shown = [_spaced(text) for text in found]
    gold = [_spaced(text) for text in texts]
    cosine = None
    if encode is not None:
        target_NE = encode(list(texts)) if vectors is None else vectors
        cosine = _cosine(encode, shown, target_NE)
    split, wanted = ([" ".join(words(text)) for text in side] for side in (shown, gold))
    pairs = [_comparable(a, b) for a, b in zip(shown, gold, strict=True)] if gold else []
    return Leakage(
        bleu=bleu(split, wanted, level="sentence"),
        rouge_l=rouge_l([a for a, _ in pairs], [b for _, b in pairs]).f,
        token_f1=token_overlap(split, wanted).f,
        exact_match=exact_match(shown, gold, normalize=False),
        cosine=cosine,
    )


def _cosine(encode: Encode, found: Sequence[str], target_NE: np.ndarray) -> float:
    rows = [row for row, text in enumerate(found) if text]
    found_NE = np.zeros(np.shape(target_NE), np.float32)
    if rows:
        found_NE[rows] = encode([found[row] for row in rows])
    there_N = found_NE.any(1)
    if not there_N.any():
        return 0.0
    share = float(there_N.mean())
    return share * embedding_cosine(found_NE[there_N], np.asarray(target_NE)[there_N])


def unit_or_zero(vectors_NE: np.ndarray) -> np.ndarray:
    """The vectors scaled to length 1; that of a text without a word of the model's stays zero."""
    found_NE = np.array(vectors_NE, np.float32)
    there_N = found_NE.any(1)
    if there_N.any():
        found_NE[there_N] = unit("vectors", found_NE[there_N])
    return found_NE


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _comparable(found: str, text: str) -> tuple[Text, Text]:
    """ROUGE's own words, a-z and 0-9 only, where these are most of the text; else any words: of a
    Russian text with a year in it, the year alone would be compared."""
    letters = [each.isascii() for each in text if each.isalnum()]
    if letters and 2 * sum(letters) >= len(letters):
        return found, text
    return words(found.lower()), words(text.lower())


# ---- what is found without reading the vector, or without an attack -----------------------------


def nearest_texts(
    vectors_NE: np.ndarray, known_ME: np.ndarray, known_texts: Sequence[str]
) -> list[str]:
    """The known text with the nearest vector, for each vector: what an index gives away.

    An attack that finds no more than this has learned its training texts by heart.
    """
    if len(known_ME) != len(known_texts):
        raise InputError(f"{len(known_ME)} known vectors, {len(known_texts)} known texts")
    if not len(known_texts):
        raise InputError("no known text to look among")
    known_ME = matrix("known vectors", known_ME, at_least=1)
    _, rows_N1 = top_k(matrix("vectors", vectors_NE, at_least=1), known_ME, 1)
    return [known_texts[row] for row in rows_N1[:, 0]]


def shuffled(vectors_NE: np.ndarray, seed: int = 0) -> np.ndarray:
    """The vectors in an order in which none is in its own place: vectors of other texts.

    What an attack finds with these it would have found without the vector of the text.
    """
    check_seed(seed)
    count = len(vectors_NE)
    if count < 2:
        raise DataError(f"{count} vectors cannot be shuffled; give at least 2")
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)  # one cycle through all of them
    return vectors_NE[other]
