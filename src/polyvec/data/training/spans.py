"""Pairs from texts alone: parts of one text match each other. Drawn once, by the seed."""

import random
import re
from dataclasses import replace

from polyvec.data.training.rows import TrainingRow
from polyvec.data.words import words

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
KEPT = 0.1  # share of passages that keep the query's sentence (Lee et al. 2019, section 4.1)
CROP = (0.1, 0.5)  # shortest and longest crop, as shares of the text (Contriever)
REPEATED = 0.32  # largest share of words that come twice (ESimCSE)
DELETED = 0.1  # share of a crop's words that are left out (Contriever)


def inverse_cloze(rows: list[TrainingRow], seed: int) -> list[TrainingRow]:
    """A sentence of each text, and the text without it; texts of one sentence are left out.

    Lee et al. 2019, arXiv:1906.00300.
    """
    draw = random.Random(seed)
    found = []
    for row in rows:
        sentences = [part for part in SENTENCE_END.split(row.query) if part.strip()]
        if len(sentences) < 2:
            continue
        place = draw.randrange(len(sentences))
        rest = sentences if draw.random() < KEPT else sentences[:place] + sentences[place + 1 :]
        found.append(replace(row, query=sentences[place], positives=(" ".join(rest),), label=None))
    return found


def crops(rows: list[TrainingRow], seed: int) -> list[TrainingRow]:
    """Two random crops of the words of each text; texts of fewer than ten words are left out.

    Izacard et al. 2022, arXiv:2112.09118, section 3: independent crops, and words left out.
    """
    draw = random.Random(seed)
    found = []
    for row in rows:
        of_text = words(row.query)
        if len(of_text) < 10:
            continue
        query, positive = _crop(of_text, draw), _crop(of_text, draw)
        found.append(replace(row, query=query, positives=(positive,), label=None, symmetric=True))
    return found


def repeated(rows: list[TrainingRow], seed: int) -> list[TrainingRow]:
    """Each text, and the text with some words twice, so that lengths tell no pair.

    ESimCSE (Wu et al. 2022, arXiv:2109.04380): of N words 0 to max(2, 0.32 N), drawn at random; the
    authors repeat word pieces.
    """
    draw = random.Random(seed)
    found = []
    for row in rows:
        of_text = row.query.split()
        most = min(len(of_text), max(2, int(REPEATED * len(of_text))))
        twice = set(draw.sample(range(len(of_text)), draw.randint(0, most)))
        words_twice = [
            each for place, each in enumerate(of_text) for _ in range(1 + (place in twice))
        ]
        positive = " ".join(words_twice) or row.query
        found.append(replace(row, positives=(positive,), label=None, symmetric=True))
    return found


def _crop(of_text: list[str], draw: random.Random) -> str:
    size = max(1, round(len(of_text) * draw.uniform(*CROP)))
    start = draw.randrange(len(of_text) - size + 1)
    kept = [word for word in of_text[start : start + size] if draw.random() >= DELETED]
    return " ".join(kept or of_text[start : start + 1])
