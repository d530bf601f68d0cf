"""Judges find positives that do not match and negatives that do."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from polyvec.errors import SettingsError
from polyvec.synthesize.judges import JUDGES, Judge, Pair
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Asked, Step, Tools


@STEPS.register("judge")
@dataclass(frozen=True)
class JudgeStep(Step):
    """What a judge, or a cascade of judges from cheap to dear, says of positives and negatives.

    judges: tables with a kind ("guide", "cross_encoder", "llm") and its settings. agree "all": a
    text is flagged if all of them flag it, so each looks only at what those before it have flagged
    (RLHN's cascade, arXiv:2505.16967); "any": if one of them does, for the fewest false negatives.
    of: "positive" (flagged if not relevant: the row is rejected), "negatives" (flagged if relevant)
    or "both". then: what happens to a flagged negative: "drop"; "mask" (it goes to meta.masked);
    "relabel" (it becomes a positive of the anchor, in a row of its own); "drop_row".
    keep: of the negatives that are left, so many of the first.
    """

    judges: tuple[Mapping[str, Any], ...]
    of: Literal["positive", "negatives", "both"] = "positive"
    then: Literal["drop", "mask", "relabel", "drop_row"] = "drop"
    keep: int | None = None
    agree: Literal["all", "any"] = "all"

    def __post_init__(self) -> None:
        if not self.judges:
            raise SettingsError("step 'judge': judges is empty")
        if self.keep is not None and self.keep < 1:
            raise SettingsError(f"step 'judge': keep {self.keep} must be 1 or more")
        _ = self.parts

    @cached_property
    def parts(self) -> list[Judge]:
        found = []
        for number, each in enumerate(self.judges):
            where = f"step 'judge': judges[{number}]"
            if "kind" not in each:
                raise SettingsError(f"{where} key 'kind' is missing")
            settings = {key: value for key, value in each.items() if key != "kind"}
            found.append(JUDGES.build(each["kind"], settings, where=where))
        return found

    @property
    def compares(self) -> bool:
        """Whether a judge compares texts with the row's positive."""
        return any(
            getattr(part, name, None) is not None
            for part in self.parts
            for name in ("absolute_margin", "relative_margin")
        )

    def depends(self, tools: Tools) -> list[str]:
        return [each for judge in self.parts for each in judge.depends(tools)]

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        pairs = [pair for row in rows for pair in self._pairs(row)]
        asked = [found for judge in self.parts if (found := judge.asks(pairs, tools)) is not None]
        if not asked:
            return None
        first = asked[0]  # of a cascade each model is asked about all, at most
        return dataclasses.replace(first, prompts=[p for each in asked for p in each.prompts])

    def _pairs(self, row: Row) -> list[Pair]:
        """The positive, the negatives, or both of a row with an anchor and a positive."""
        if row.anchor is None or row.positive is None:
            return []
        texts = [row.positive] if self.of != "negatives" else []
        texts += row.negatives if self.of != "positive" else ()
        return [Pair(row.anchor, text, row.positive, row.instruction) for text in texts]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        pairs = [(number, pair) for number, row in enumerate(rows) for pair in self._pairs(row)]
        flagged, scores = self.flags([pair for _, pair in pairs], tools)
        of_row: dict[int, list[tuple[Pair, bool, float]]] = {}
        for (number, pair), flag, score in zip(pairs, flagged, scores, strict=True):
            of_row.setdefault(number, []).append((pair, bool(flag), float(score)))
        found = Changed()
        for number, row in enumerate(rows):
            if row.anchor is None or row.positive is None:
                found.reject(row, "no anchor or no positive")
            else:
                self._treat(found, row, of_row.get(number, []))
        for name, is_positive in (("positives", True), ("negatives", False)):
            own = [
                flag
                for (_, p), flag in zip(pairs, flagged, strict=True)
                if p.is_positive is is_positive
            ]
            if own:
                found.notes[f"{name} flagged"] = f"{sum(own)} of {len(own)}"
        return found

    def flags(self, pairs: Sequence[Pair], tools: Tools) -> tuple[np.ndarray, np.ndarray]:
        """bool [P] and the score of the last judge that saw each, float [P]."""
        every = self.agree == "all"
        flagged, scores = np.full(len(pairs), every), np.zeros(len(pairs))
        for judge in self.parts:
            rows = np.flatnonzero(flagged == every)  # the others are decided
            if not len(rows):
                break
            some = [pairs[row] for row in rows.tolist()]
            said = judge.verdicts(some, tools)
            wanted = np.array([pair.is_positive for pair in some], bool)
            flagged[rows] = said.relevant_P != wanted
            scores[rows] = said.scores_P
        return flagged, scores

    def _treat(self, found: Changed, row: Row, said: Sequence[tuple[Pair, bool, float]]) -> None:
        names = ", ".join(str(each["kind"]) for each in self.judges)
        verdicts = {"positive": [], "negative": []}  # type: dict[str, list[Any]]
        for pair, flag, score in said:
            side = "positive" if pair.is_positive else "negative"
            verdicts[side].append([round(score, 4), "flagged" if flag else "kept"])
        row = row.with_meta(verdicts=verdicts)
        for pair, flag, score in said:
            if pair.is_positive and flag:
                found.reject(row, f"positive not relevant by {names}: {score:.3f}")
                return
        wrong = {pair.text: score for pair, flag, score in said if flag and not pair.is_positive}
        if wrong and self.then == "drop_row":
            found.reject(row, f"a negative is relevant by {names}: {max(wrong.values()):.3f}")
            return
        left = tuple(text for text in row.negatives if text not in wrong)[: self.keep]
        if self.then == "mask" and wrong:
            row = row.with_meta(masked=[*row.meta.get("masked", []), *wrong])
        found.keep(dataclasses.replace(row, negatives=left))
        for text, score in wrong.items():
            reason = f"negative relevant by {names}: {score:.3f}"
            if self.then == "relabel":
                other = dataclasses.replace(row, positive=text, negatives=left, score=None)
                found.keep(other.with_meta(relabelled=True))
            elif self.then == "drop":
                found.reject(dataclasses.replace(row, negatives=(text,)), reason)
