"""False negatives and false positives in training data that are there already.

Rates are of texts in their role: of the negatives, how many match their query; of the positives,
how many do not. P pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError, SettingsError
from polyvec.synthesize.judges import Pair
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import Tools
from polyvec.synthesize.steps.judging import JudgeStep

SAMPLE = 500  # pairs by which a judge is calibrated


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a judge is right of texts that match, and of texts that do not."""

    of_relevant: float
    of_irrelevant: float

    def rate(self, flagged: float, *, of_negatives: bool = True) -> float:
        """The true share of wrong texts, from the share that was flagged (Rogan and Gladen 1978).

        A judge that flags all alike says nothing: then it is the share itself.
        """
        hit, miss = self._rates(of_negatives)
        power = hit - miss
        return flagged if power <= 0 else float(np.clip((flagged - miss) / power, 0.0, 1.0))

    def left(self, rate: float, *, of_negatives: bool = True) -> float:
        """The share of wrong texts among those that are not flagged, if `rate` of all are wrong.

        With 0.7 of all wrong, a judge that is right 9 times in 10 leaves 0.21; with 0.8, 0.31.
        """
        hit, miss = self._rates(of_negatives)
        wrong, right = rate * (1 - hit), (1 - rate) * (1 - miss)
        return wrong / (wrong + right) if wrong + right else 0.0

    def _rates(self, of_negatives: bool) -> tuple[float, float]:
        """How often a wrong text is flagged, and how often a right one is."""
        if of_negatives:
            return self.of_relevant, 1 - self.of_irrelevant
        return self.of_irrelevant, 1 - self.of_relevant


@dataclass(frozen=True, slots=True)
class SideReport:
    """What was found of negatives, or of positives.

    before: the estimated share of wrong ones; after: of those that stay in their role. None if
    nothing is known of the judges' accuracy.
    """

    num_texts: int
    num_flagged: int
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Relabelled:
    """The rows after it, what was left out and why, and estimates.

    negatives, positives: None for a side that was not judged. num_short: rows with fewer negatives
    than wanted.
    """

    changed: Changed
    accuracy: Accuracy | None
    calibrated: bool
    negatives: SideReport | None
    positives: SideReport | None
    num_short: int = 0


def rows_of(found: Sequence[TrainingRow]) -> list[Row]:
    """A row for each positive of the training rows, with all their negatives.

    Raises DataError for a row without a positive, and for pairs with scores or labels, whose texts
    need not match.
    """
    rows = []
    for number, row in enumerate(found):
        where = row.place or f"row {number}"
        if not row.positives or not row.matches:
            raise DataError(
                f"{where}: no positive, or a pair with a score or a label, which need not match; "
                "relabel takes queries with positives and negatives"
            )
        for place, positive in enumerate(row.positives):
            others = [text for text in row.positives if text != positive]
            meta = {"id": f"{number}.{place}", **({"positives": others} if others else {})}
            rows.append(Row(row.query, positive, row.negatives, row.instruction, meta=meta))
    return rows


def relabel(
    rows: Sequence[Row],
    step: JudgeStep,
    tools: Tools,
    *,
    accuracy: Accuracy | None = None,
    wanted: int | None = None,
    seed: int = 0,
) -> Relabelled:
    """Judge positives, negatives or both, and treat what is wrong as the step says.

    accuracy: the judges'; None calibrates them on pairs of the rows themselves: positives, and
    texts of other rows. Those are easier to tell apart than hard negatives, so the rates are then
    lower than the true ones. wanted: negatives of a row, to count rows that have fewer.
    """
    if step.of != "positive" and not any(row.negatives for row in rows):
        raise DataError("no row has a negative; judge positives (--of positive), or mine negatives")
    changed = step.run(rows, tools)
    found = accuracy or calibrated(rows, step, tools, seed)
    sides = {name: _side(changed.notes, name, found) for name in ("negatives", "positives")}
    short = sum(len(row.negatives) < (wanted or 0) for row in changed.kept)
    return Relabelled(
        changed, found, accuracy is None, sides["negatives"], sides["positives"], short
    )


def _side(notes: Mapping[str, str], name: str, accuracy: Accuracy | None) -> SideReport | None:
    note = notes.get(f"{name} flagged")
    if note is None:
        return None
    num, _, total = note.partition(" of ")
    flagged, texts, of_negatives = int(num), int(total), name == "negatives"
    if accuracy is None:
        return SideReport(texts, flagged, None, None)
    before = accuracy.rate(flagged / texts, of_negatives=of_negatives)
    return SideReport(texts, flagged, before, accuracy.left(before, of_negatives=of_negatives))


def calibrated(
    rows: Sequence[Row], step: JudgeStep, tools: Tools, seed: int = 0
) -> Accuracy | None:
    """The judges' accuracy on texts that are known to match, and on those of other rows.

    Known are the other positives of a query, or its only one where the judges do not compare with
    it: by margins alone, a file with one positive a query says nothing, and this gives None. Half
    an error is added to each count, so that none of a few pairs is thought to be never wrong.
    """
    draw = np.random.default_rng([seed, len(rows)])
    chosen = draw.permutation(len(rows))[:SAMPLE].tolist()
    others = [rows[place] for place in draw.permutation(len(rows)).tolist()]
    own: list[Pair] = []
    strange: list[Pair] = []
    for number, other in zip(chosen, others, strict=False):
        row = rows[number]
        if row.anchor is None or row.positive is None or other.positive is None:
            continue
        more = row.meta.get("positives", ())
        if more:
            own += [Pair(row.anchor, text, row.positive, row.instruction) for text in more[:3]]
        elif not step.compares:
            own.append(Pair(row.anchor, row.positive, other.positive, row.instruction))
        known = {row.anchor, row.positive, *more}
        if other.anchor != row.anchor and other.positive not in known:
            strange.append(Pair(row.anchor, other.positive, row.positive, row.instruction))
    own = [pair for pair in own if not pair.is_positive]
    if not own or not strange:
        return None
    hits, false_alarms = (step.flags(pairs, tools)[0] for pairs in (own, strange))
    return Accuracy(
        of_relevant=(int(hits.sum()) + 0.5) / (len(own) + 1),
        of_irrelevant=1 - (int(false_alarms.sum()) + 0.5) / (len(strange) + 1),
    )


def check_accuracy(value: float) -> Accuracy:
    """A judge that is right so often of both; SettingsError unless it beats a coin."""
    if not 0.5 < value <= 1:
        raise SettingsError(f"accuracy {value:g} is not above 0.5 and at most 1")
    return Accuracy(value, value)


def training_lines(rows: Sequence[Row]) -> list[dict[str, object]]:
    """A line for each row of the file: query, pos, neg and prompt.

    A negative that is flagged beside one of several positives is one of none of them.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.id.partition(".")[0], []).append(row)
    lines = []
    for group in groups.values():
        first = group[0]
        positives = list(dict.fromkeys(row.positive for row in group))
        left = [text for text in first.negatives if all(text in row.negatives for row in group)]
        negatives = [text for text in left if text not in positives]
        line: dict[str, object] = {"query": first.anchor, "pos": positives, "neg": negatives}
        lines.append(line if first.instruction is None else {**line, "prompt": first.instruction})
    return lines
