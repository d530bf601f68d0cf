"""Steps that rank: the best rows by a judge, and documents by several signals (Gecko)."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from polyvec.errors import SettingsError
from polyvec.synthesize.judges import JUDGES, Judge, Pair
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Asked, Step, Tools


def scorer(table: Mapping[str, Any], where: str) -> Judge:
    """A judge of which only the scores count, so that it needs no limit."""
    settings = {key: value for key, value in table.items() if key != "kind"}
    if "kind" not in table:
        raise SettingsError(f"{where} key 'kind' is missing")
    if table["kind"] in ("guide", "cross_encoder") and "threshold" not in settings:
        settings["threshold"] = 0.0
    judge: Judge = JUDGES.build(table["kind"], settings, where=where)
    return judge


@STEPS.register("best")
@dataclass(frozen=True)
class Best(Step):
    """The `keep` rows (or this share) whose positive scores highest by the judge.

    InPars-v2's filter (arXiv:2301.01820) with a reranker, keep = 10000. Rows stay in their order,
    ties are kept first come.
    """

    judge: Mapping[str, Any]
    keep: int | float

    def __post_init__(self) -> None:
        share = isinstance(self.keep, float)
        if self.keep <= 0 or (share and self.keep > 1):
            raise SettingsError(f"step 'best': keep {self.keep} is neither a number nor a share")
        _ = self.part

    @cached_property
    def part(self) -> Judge:
        return scorer(self.judge, "step 'best': judge")

    def depends(self, tools: Tools) -> list[str]:
        return self.part.depends(tools)

    def _pairs(self, rows: Sequence[Row]) -> list[Pair]:
        return [
            Pair(row.anchor, row.positive, row.positive, row.instruction)
            for row in rows
            if row.anchor is not None and row.positive is not None
        ]

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        return self.part.asks(self._pairs(rows), tools)

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        found, pairs = Changed(), self._pairs(rows)
        if not pairs:
            for row in rows:
                found.reject(row, "no anchor or no positive")
            return found
        scores = self.part.verdicts(pairs, tools).scores_P
        share = isinstance(self.keep, float)
        num = max(1, round(self.keep * len(pairs))) if share else int(self.keep)
        best = set(np.argsort(-scores, kind="stable")[:num].tolist())
        place = -1
        for row in rows:
            if row.anchor is None or row.positive is None:
                found.reject(row, "no anchor or no positive")
                continue
            place += 1
            made = row.with_meta(best_score=round(float(scores[place]), 4))
            if place in best:
                found.keep(made)
            else:
                found.reject(made, f"not among the {num} best: {scores[place]:.3f}")
        return found


@STEPS.register("rerank")
@dataclass(frozen=True)
class Rerank(Step):
    """The best of the retrieved documents as the positive, a low-ranked one as the negative.

    Gecko's relabelling (arXiv:2403.20327): behind a step "retrieve", its candidates and the row's
    own positive are ranked by each of `signals` (tables of judges; "likelihood" and "llm" are the
    paper's), whose ranks are fused: the sum of 1 / (constant + rank). negative: the rank of the
    document that becomes the negative, -1 the last; None leaves the negatives as they are.
    """

    signals: tuple[Mapping[str, Any], ...]
    constant: float = 60.0
    negative: int | None = -1

    def __post_init__(self) -> None:
        if not self.signals:
            raise SettingsError("step 'rerank': signals is empty")
        if self.negative is not None and self.negative in (0, 1):
            raise SettingsError("step 'rerank': negative is a rank from 2, or -1 for the last")
        _ = self.parts

    @cached_property
    def parts(self) -> list[Judge]:
        numbered = enumerate(self.signals)
        return [scorer(each, f"step 'rerank': signals[{i}]") for i, each in numbered]

    def depends(self, tools: Tools) -> list[str]:
        return [each for judge in self.parts for each in judge.depends(tools)]

    def _candidates(self, row: Row) -> list[str]:
        own = [] if row.positive is None else [row.positive]
        return list(dict.fromkeys([*own, *row.meta.get("retrieved", ())]))

    def _pairs(self, row: Row) -> list[Pair]:
        if row.anchor is None:
            return []
        first = row.positive or ""
        return [Pair(row.anchor, t, first, row.instruction) for t in self._candidates(row)]

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        pairs = [pair for row in rows for pair in self._pairs(row)]
        asked = [found for judge in self.parts if (found := judge.asks(pairs, tools)) is not None]
        if not asked:
            return None
        return dataclasses.replace(asked[0], prompts=[p for each in asked for p in each.prompts])

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        found = Changed()
        pairs = [self._pairs(row) for row in rows]
        flat = [pair for each in pairs for pair in each]
        scores = [judge.verdicts(flat, tools).scores_P for judge in self.parts] if flat else []
        start, moved = 0, 0
        for row, own in zip(rows, pairs, strict=True):
            if len(own) < 2:
                found.reject(row, "fewer than 2 candidates; put a step 'retrieve' before")
                continue
            part = slice(start, start + len(own))
            start += len(own)
            order = fused([each[part] for each in scores], self.constant)
            texts = [own[place].text for place in order]
            moved += texts[0] != row.positive
            made = row.with_meta(reranked=texts, seed_positive=row.positive)
            made = dataclasses.replace(made, positive=texts[0])
            if self.negative is not None:
                last = len(texts) - 1
                place = len(texts) + self.negative if self.negative < 0 else self.negative - 1
                made = dataclasses.replace(made, negatives=(texts[min(max(place, 1), last)],))
            found.keep(made)
        found.notes["positives that are not the seed"] = f"{moved} of {len(found.kept)}"
        return found


def fused(scores: Sequence[np.ndarray], constant: float = 60.0) -> list[int]:
    """Places by reciprocal rank fusion, the best first (Cormack et al. 2009); ties first come."""
    total = np.zeros(len(scores[0]))
    for each in scores:
        rank = np.empty(len(each))
        rank[np.argsort(-each, kind="stable")] = np.arange(1, len(each) + 1)
        total += 1 / (constant + rank)
    order: list[int] = np.argsort(-total, kind="stable").tolist()
    return order


@STEPS.register("mask_words")
@dataclass(frozen=True)
class MaskWords(Step):
    """A row for each rate: that share of the anchor's words replaced by a mask, in meta.masked.

    CLAIF's corruption (arXiv:2305.01918): words at white space, their number rounded up; with the
    probability `merge` neighbouring masks become one. `rate` is kept in meta.
    """

    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    mask: str = "<mask>"
    merge: float = 0.5
    seed: int = 0

    free = True

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < rate <= 1 for rate in self.rates):
            raise SettingsError(f"step 'mask_words': rates {self.rates} are not above 0 to 1")

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        return self.run(rows, Tools()).kept

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        from polyvec.data.words import hash64

        found = Changed()
        for row in rows:
            if row.anchor is None:
                found.reject(row, "no anchor")
                continue
            draw = np.random.default_rng([self.seed, hash64(row.id), hash64(row.anchor)])
            for rate in self.rates:
                masked = self._masked(row.anchor, rate, draw)
                found.keep(row.with_meta(id=f"{row.id}.{rate:g}", masked=masked, rate=rate))
        return found

    def _masked(self, text: str, rate: float, draw: np.random.Generator) -> str:
        found = text.split()
        num = int(np.ceil(len(found) * rate))
        for place in draw.choice(len(found), num, replace=False).tolist():
            found[place] = self.mask
        if draw.random() < self.merge:
            pairs = zip([None, *found], found, strict=False)
            found = [word for last, word in pairs if word != self.mask or last != self.mask]
        return " ".join(found)
