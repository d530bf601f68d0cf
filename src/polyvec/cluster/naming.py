"""Keywords and names of groups. N texts, K groups, V words."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyvec.cluster.asking import Asker, Question
from polyvec.cluster.uncertainty import prototypes
from polyvec.data.words import words
from polyvec.evaluate.measures.inputs import extra

NUM_KEYWORDS = 8
NUM_NAMING = 3  # keywords that stand for a name where no model gives one
CENTRAL = 3  # texts that a name is written from, as in LOOP
MOST_CHARACTERS = 80  # of a name
MOST_WORDS = 50_000  # in the vocabulary


def keywords(
    texts: Sequence[str], labels_N: np.ndarray, num: int = NUM_KEYWORDS
) -> list[list[str]]:
    """The words that mark each group, the most telling first, by c-TF-IDF.

    A word's share of the group's words times log(1 + mean words of a group / its count in all
    groups) (Grootendorst 2022, arXiv:2203.05794). English stop words are left out.
    """
    counts_KV, names = _counts(texts, labels_N)
    if not len(names):
        return [[] for _ in range(counts_KV.shape[0])]
    sums_K = np.asarray(counts_KV.sum(1)).ravel()
    sums_V = np.asarray(counts_KV.sum(0)).ravel()
    weights_V = np.log(1 + sums_K.mean() / np.maximum(sums_V, 1))
    found = []
    for group in range(counts_KV.shape[0]):
        row = np.asarray(counts_KV[group].todense()).ravel() * weights_V
        order = np.argsort(-row, kind="stable")[:num]
        found.append([str(names[each]) for each in order if row[each] > 0])
    return found


def keyword_names(found: Sequence[Sequence[str]]) -> list[str]:
    """A name of each group from its first keywords, different from each other."""
    return different(
        [", ".join(each[:NUM_NAMING]) or f"group {group}" for group, each in enumerate(found)]
    )


def different(names: Sequence[str]) -> list[str]:
    """The names, with the group's number behind those that an earlier group has."""
    found: list[str] = []
    for group, name in enumerate(names):
        found.append(name if name not in found else f"{name} ({group})")
    return found


def ask_names(
    texts: Sequence[str], vectors_NE: np.ndarray, labels_N: np.ndarray, asker: Asker
) -> dict[int, str]:
    """Names that the language model gives groups after three central texts; none where it fails."""
    central = prototypes(vectors_NE, labels_N, CENTRAL)
    short = asker.noun.split()[-1].capitalize()
    questions = []
    for members in central:
        lines = [f"{short} {i}: {asker.shown(texts[m])}" for i, m in enumerate(members, 1)]
        questions.append(Question({"listed": "\n ".join(lines)}, tuple(members.tolist())))
    calls = asker.write("name", "name", questions)
    for group, call in enumerate(calls):
        call.effect = "" if call.value is None else f"name of group {group}"
    return {group: _name(call.value) for group, call in enumerate(calls) if call.value is not None}


def _name(text: str) -> str:
    """What a model wrote, short, and without characters that a terminal obeys."""
    plain = "".join(" " if unicodedata.category(each) == "Cc" else each for each in text)
    name = " ".join(plain.split())
    return name if len(name) <= MOST_CHARACTERS else name[:MOST_CHARACTERS] + " …"


def _counts(texts: Sequence[str], labels_N: np.ndarray) -> tuple[Any, np.ndarray]:
    """How often each group has each word, a sparse matrix [K, V], and the words."""
    text = extra("sklearn.feature_extraction.text", "keywords")
    num = int(labels_N.max(initial=-1)) + 1
    joined: list[list[str]] = [[] for _ in range(num)]
    for each, label in zip(texts, labels_N.tolist(), strict=True):
        if label >= 0:
            joined[label] += plain_words(each)
    counter = text.CountVectorizer(analyzer=lambda found: found, max_features=MOST_WORDS)
    if not any(joined):
        return np.zeros((num, 0)), np.empty(0, str)
    return counter.fit_transform(joined), counter.get_feature_names_out()


def plain_words(text: str) -> list[str]:
    """The words of a text in lower case, without marks around them, stop words and numbers."""
    stop = extra("sklearn.feature_extraction.text", "keywords").ENGLISH_STOP_WORDS
    found = (_stripped(word.casefold()).replace("’", "'") for word in words(text))
    return [
        word
        for word in found
        if any(map(str.isalpha, word))
        and (len(word) > 1 or word > "\u02ff")  # letters of scripts without spaces are words
        and word.partition("'")[0] not in stop
        and not word.endswith("n't")
    ]


def _stripped(word: str) -> str:
    start, end = 0, len(word)
    while start < end and not word[start].isalnum():
        start += 1
    while end > start and not word[end - 1].isalnum():
        end -= 1
    return word[start:end]
