"""What is shown of a task as lists of plain strings, for both the page and Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass

from polyvec.evaluate.outcome import Item
from polyvec.evaluate.report import slices, wording
from polyvec.evaluate.report.facts import Member, groups

NUM_SCORES = 8  # shown at once; the others are collapsed
FIRST = ("ndcg@10", "map", "mrr@10", "recall@10", "recall@100", "accuracy", "f1", "ap")
NUM_FOUND = 3  # documents shown of a query's ranking


@dataclass(frozen=True, slots=True)
class Matrix:
    """Scores in a table of two dimensions; None where there is no such measure."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def scores(member: Member) -> list[tuple[str, float]]:
    """Names and scores to show at once, the main one first; all if there are few."""
    found, main = member.result.scores, member.result.main_measure
    family = main.partition("_")[0] + "_"
    chosen = [name for name in found if name in FIRST or name.startswith(family)]
    if len(found) <= NUM_SCORES or not set(chosen) - {main}:
        chosen = list(found)
    chosen = [main, *(name for name in chosen if name != main)][:NUM_SCORES]
    return [(name, found[name]) for name in chosen]


def matrices(member: Member) -> tuple[list[Matrix], list[tuple[str, float]]]:
    """All scores: a table by cutoff, a table by similarity, and the rest as a list."""
    at: dict[tuple[str, str], float] = {}
    by: dict[tuple[str, str], float] = {}
    others = {}
    for name, value in member.result.scores.items():
        base, cut = name.partition("@")[::2]
        before, _, last = name.rpartition("_")
        if cut:
            at[wording.measure_name(base), cut] = value
        elif before and last in wording.MEASURES and name not in wording.MEASURES:
            by[wording.clean(before), wording.measure_name(last)] = value
        else:
            others[name] = value
    found = [_matrix(corner, cells) for corner, cells in (("At", at), ("By", by)) if cells]
    return found, list(others.items())


def _matrix(corner: str, cells: Mapping[tuple[str, str], float]) -> Matrix:
    rows = dict.fromkeys(row for row, _ in cells)
    columns = list(dict.fromkeys(column for _, column in cells))
    if all(column.isdecimal() for column in columns):
        columns.sort(key=int)
    values = ((row, tuple(cells.get((row, column)) for column in columns)) for row in rows)
    return Matrix(corner, tuple(columns), tuple(values))


def flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as flat pairs: ("tokens.max_length", "256")."""
    lines: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{wording.clean(key)}"
        if isinstance(value, Mapping) and value:
            lines += flat(value, f"{name}.")
        else:
            lines.append((name, wording.cut(str(value))))
    return lines


def geometry(member: Member) -> list[tuple[str, str, str, str]]:
    """Name, value, meaning and better direction of each measure."""
    rows = []
    for key, value in member.report.geometry.items():
        name, meaning, good = wording.GEOMETRY.get(key, (wording.clean(key), "", ""))
        rows.append((name, wording.plain(value), meaning, good))
    return rows


def documents(item: Item) -> list[tuple[int, str, str, float, int]]:
    """Rank, id, text, score and grade of the top documents and of the first relevant one."""
    ranked = [(rank, *one) for rank, one in enumerate(item.found, start=1)]
    shown = ranked[:NUM_FOUND]
    if not any(grade > 0 for *_, grade in shown):
        shown += [one for one in ranked[NUM_FOUND:] if one[-1] > 0][:1]
    return shown


def missing(item: Item) -> tuple[str, ...]:
    """Relevant texts that were not retrieved; the gold answer of an item without texts."""
    relevant = {text for _, text, _, grade in item.found if grade > 0}
    texts = tuple(text for text in item.texts[1:] if text not in relevant)
    return texts if item.texts[1:] or item.gold is None else (str(item.gold),)


def separation(member: Member) -> str:
    """A sentence on how well two groups of similarities are separated."""
    found = groups(member.report.outcome)
    if len(found) != 2:
        return ""
    (a, first), (b, second) = ((wording.clean(name), values) for name, values in found)
    share = 100 * slices.separation(first, second)
    return f"A pair of “{a}” is more similar than a pair of “{b}” in {share:.1f} % of comparisons."
