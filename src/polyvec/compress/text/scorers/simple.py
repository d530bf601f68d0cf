"""Scorers without a model: controls, oracles, shared words, a graph of words. U units, W words."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from polyvec.compress.text.document import Asked, Document
from polyvec.compress.text.scorer import SCORERS, Scorer
from polyvec.data.words import normalized
from polyvec.embed.inputs.content_words import content_words

DAMPING = 0.85  # of PageRank


@SCORERS.register("random")
@dataclass(frozen=True)
class Random(Scorer):
    """A control: numbers drawn by the seed."""

    seed: int = 0

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(document.units))


@SCORERS.register("position")
@dataclass(frozen=True)
class Position(Scorer):
    """A control: plain truncation, which keeps the first or the last units."""

    keep: Literal["first", "last"] = "first"

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        place_U = np.arange(len(document.units), dtype=np.float64)
        return place_U if self.keep == "last" else -place_U


@SCORERS.register("string_inclusion")
@dataclass(frozen=True)
class StringInclusion(Scorer):
    """An oracle: units with the answer, then those nearest to it; 1 for a unit that has it.

    FilCo's StrInc (Wang et al. 2023, arXiv:2311.08377). All 0 where the answer is not in the text.
    """

    needs_answer = True

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        lower, answer = document.text.lower(), (asked.answer or "").strip().lower()
        found_U = np.zeros(len(document.units), bool)
        place = lower.find(answer) if answer else -1
        while place >= 0:
            end = place + len(answer)
            found_U |= np.array([a < end and b > place for a, b in document.units])
            place = lower.find(answer, end)
        if not found_U.any():
            return np.zeros(len(document.units))
        places, all_U = np.flatnonzero(found_U), np.arange(len(document.units))
        distance_U = np.abs(all_U[:, None] - places[None]).min(axis=1)
        return np.asarray(1.0 / (1.0 + distance_U))


@SCORERS.register("lexical")
@dataclass(frozen=True)
class Lexical(Scorer):
    """F1 of the content words of a unit and of the question, or of the answer.

    FilCo's Lexical (Wang et al. 2023, arXiv:2311.08377).
    """

    of: Literal["question", "answer"] = "question"

    @property
    def needs_question(self) -> bool:  # type: ignore[override]
        return self.of == "question"

    @property
    def needs_answer(self) -> bool:  # type: ignore[override]
        return self.of == "answer"

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        text = (asked.question if self.of == "question" else asked.answer) or ""
        wanted = set(content_words(normalized(text)))
        found = []
        for piece in document.pieces():
            own = set(content_words(normalized(piece)))
            common = len(own & wanted)
            found.append(2 * common / (len(own) + len(wanted)) if common else 0.0)
        return np.array(found)


@SCORERS.register("graph")
@dataclass(frozen=True)
class Graph(Scorer):
    """Mean PageRank of a unit's content words, in a graph of words that share a sentence's clause.

    The walk starts at the question's words where there are some, as in Prompt-SAW's choice of a
    graph's elements by the question (Ali et al. 2024, arXiv:2404.00489); its triples need an
    extractor, in whose place neighbouring content words are joined here.
    """

    window: int = 4  # content words to each side that are joined
    rounds: int = 30

    def scores(self, document: Document, asked: Asked) -> np.ndarray:
        texts = [content_words(normalized(piece)) for piece in document.pieces()]
        numbers: dict[str, int] = {}
        for word in (word for text in texts for word in text):
            numbers.setdefault(word, len(numbers))
        if not numbers:
            return np.zeros(len(texts))
        rank_W = self._ranks(texts, numbers, document, asked)
        return np.array(
            [np.mean([rank_W[numbers[w]] for w in text]) if text else 0.0 for text in texts]
        )

    def _ranks(
        self, texts: list[list[str]], numbers: dict[str, int], document: Document, asked: Asked
    ) -> np.ndarray:
        from scipy.sparse import coo_array

        chain = np.array([numbers[word] for text in texts for word in text])
        passage = np.repeat(document.passage_of_units(), [len(text) for text in texts])
        pairs = []
        for step in range(1, self.window + 1):
            same = passage[step:] == passage[:-step]
            pairs.append(np.stack([chain[:-step][same], chain[step:][same]]))
        ends = np.concatenate(pairs, axis=1)
        size = len(numbers)
        weights = np.ones(2 * ends.shape[1])
        edges = (np.concatenate([ends[0], ends[1]]), np.concatenate([ends[1], ends[0]]))
        graph_WW = coo_array((weights, edges), shape=(size, size)).tocsr()
        degree_W = np.maximum(np.asarray(graph_WW.sum(axis=1)).ravel(), 1.0)
        start_W = np.full(size, 1.0 / size)
        asked_for = content_words(normalized(asked.question or ""))
        seeds = [numbers[word] for word in asked_for if word in numbers]
        if seeds:
            start_W = np.bincount(seeds, minlength=size) / len(seeds)
        rank_W = start_W
        for _ in range(self.rounds):
            rank_W = (1 - DAMPING) * start_W + DAMPING * (graph_WW @ (rank_W / degree_W))
        return rank_W
