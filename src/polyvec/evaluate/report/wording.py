"""Names of measures and task kinds, and how the report formats numbers and texts."""

import re

from polyvec.data.tasks.kinds import find_kind

MEASURES = {
    "accuracy": "Accuracy",
    "ap": "AP",
    "f1": "F1",
    "hit_rate": "Hit rate",
    "map": "MAP",
    "mrr": "MRR",
    "ndcg": "nDCG",
    "p_mrr": "p-MRR",
    "pearson": "Pearson",
    "precision": "Precision",
    "recall": "Recall",
    "robustness": "Robustness",
    "spearman": "Spearman",
    "v_measure": "V-measure",
}

# For each geometry measure: its name, what it tells, and which direction is better.
GEOMETRY = {
    "isotropy": (
        "Isotropy",
        "how evenly the vectors point in all directions, from 0 (one direction) to 1 (all alike); "
        "always near 1 for vectors of small norm (Mu and Viswanath 2018)",
        "↑ higher",
    ),
    "isoscore": (
        "IsoScore",
        "how evenly variance is spread over the dimensions, from 0 (one) to 1 (all) "
        "(Rudman et al. 2022)",
        "↑ higher",
    ),
    "effective_rank": (
        "Effective rank",
        "how many dimensions the vectors effectively use (Roy and Vetterli 2007); "
        "compare it with their dimension",
        "↑ higher",
    ),
    "mean_cosine": (
        "Mean cosine",
        "similarity of two random texts; a value far above 0 leaves little room to "
        "distinguish texts (Ethayarajh 2019)",
        "→ near 0",
    ),
    "hubness": (
        "Hubness",
        "skewness of how often a vector is among the nearest neighbours of others; above 1, a few "
        "texts are neighbours of almost everything (Radovanović et al. 2010)",
        "↓ lower",
    ),
    "uniformity": (
        "Uniformity",
        "log of the mean of exp(-2 d²) over all pairs; 0 if all vectors point in one direction, "
        "-4 if all are orthogonal (Wang and Isola 2020)",
        "↓ lower",
    ),
}

# Control characters, which may hide or reorder the text around them, and lone surrogates, which
# UTF-8 cannot encode.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """One line of visible characters."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(text).split()))


def cut(text: str, limit: int = 300) -> str:
    """At most `limit` characters with an ellipsis, cut between words where that costs little."""
    # A multiple of the limit suffices, since clean() shortens only white space.
    line = clean(text[: 8 * limit])
    if len(line) <= limit and len(text) <= 8 * limit:
        return line
    head = line[: limit - 1]
    space = head.rfind(" ")
    return (head[:space] if space > 0.8 * limit else head).rstrip(" .,;:") + "…"


def measure_name(name: str) -> str:
    """The usual spelling: nDCG@10 for ndcg@10, cosine Spearman for cosine_spearman."""
    base, at, depth = name.partition("@")
    if base in MEASURES:
        return f"{MEASURES[base]}{at}{clean(depth)}"
    before, _, last = base.rpartition("_")
    if before and last in MEASURES:
        return f"{clean(before)} {MEASURES[last]}{at}{clean(depth)}"
    first, _, after = base.partition("_")
    if after and first in MEASURES:
        return f"{MEASURES[first]}, {clean(after)}{at}{clean(depth)}"
    return clean(name)


def kind_names(kind: str) -> tuple[str, str, str]:
    """A kind's heading and the name of its items, singular and plural."""
    found = find_kind(kind)
    if found is None:
        return clean(kind)[:1].upper() + clean(kind)[1:], "item", "items"
    return found.heading, *found.items


def number_of(num: int, names: tuple[str, str]) -> str:
    """'1 query', '2,000 queries'."""
    return f"{num:,} {names[num != 1]}"


def points(fraction: float | None) -> str:
    """A score times 100 with two decimals; a dash for NaN."""
    # Adding 0 turns -0.0 into 0.0.
    if fraction is None or fraction != fraction:
        return "–"
    return f"{round(100 * fraction, 2) + 0:.2f}"


def signed(fraction: float | None) -> str:
    """A difference times 100, with its sign."""
    if fraction is None or fraction != fraction:
        return "–"
    return f"{round(100 * fraction, 2) + 0:+.2f}"


def between(interval: tuple[float, float] | None) -> str:
    """An interval, times 100: '61.20 to 67.93'."""
    return "" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def plain(value: float) -> str:
    """A number that is not a score, with at most three decimals."""
    if value != value:
        return "–"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{round(value, 3) + 0:.3f}"


def percent(share: float) -> str:
    """A share; a positive one is never shown as 0."""
    return "under 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """'4.2 s', '3 min 05 s', '2 h 07 min'."""
    if seconds != seconds:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
