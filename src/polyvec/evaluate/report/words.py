"""How the report names things and writes numbers, and how it cuts texts."""

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

# Each figure of geometry: its name, what it says, and which way is good.
GEOMETRY = {
    "isotropy": (
        "Isotropy",
        "how alike all directions are filled, 0 in one direction to 1 in all; short vectors are "
        "always near 1 (Mu and Viswanath 2018)",
        "↑ higher",
    ),
    "isoscore": (
        "IsoScore",
        "how evenly variance fills the dimensions, 0 in one to 1 in all (Rudman et al. 2022)",
        "↑ higher",
    ),
    "effective_rank": (
        "Effective rank",
        "how many dimensions the vectors spread over (Roy and Vetterli 2007); "
        "compare with the vectors' size",
        "↑ higher",
    ),
    "mean_cosine": (
        "Mean cosine",
        "similarity of two texts drawn by chance; far above 0 leaves little room to tell "
        "texts apart (Ethayarajh 2019)",
        "→ near 0",
    ),
    "hubness": (
        "Hubness",
        "skewness of how often a vector is among its neighbours' nearest; above 1 a few texts "
        "are near to everything (Radovanović et al. 2010)",
        "↓ lower",
    ),
    "uniformity": (
        "Uniformity",
        "log of the mean of exp(-2 d²) over pairs; 0 if all point one way, -4 if any two are "
        "orthogonal (Wang and Isola 2020)",
        "↓ lower",
    ),
}

# Characters that hide, reorder or break what stands around them; lone surrogates are no UTF-8.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """One line of visible characters."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(text).split()))


def cut(text: str, limit: int = 300) -> str:
    """At most `limit` characters, ended at a word where one ends near, with an ellipsis."""
    line = clean(text[: 8 * limit])
    if len(line) <= limit and len(text) <= 8 * limit:
        return line
    head = line[: limit - 1]
    space = head.rfind(" ")
    return (head[:space] if space > 0.8 * limit else head).rstrip(" .,;:") + "…"


def measure_name(name: str) -> str:
    """As the field writes it: nDCG@10 for ndcg@10, cosine Spearman for cosine_spearman."""
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


def kind_words(kind: str) -> tuple[str, str, str]:
    """A kind's heading, and what its items are called, one and many."""
    found = find_kind(kind)
    if found is None:
        return clean(kind)[:1].upper() + clean(kind)[1:], "item", "items"
    return found.heading, *found.items


def number_of(num: int, words: tuple[str, str]) -> str:
    """'1 query', '2,000 queries'."""
    return f"{num:,} {words[num != 1]}"


def points(fraction: float | None) -> str:
    """Times 100, two decimals; a dash for what is no number."""
    if fraction is None or fraction != fraction:
        return "–"
    return f"{round(100 * fraction, 2) + 0:.2f}"


def signed(fraction: float | None) -> str:
    """The same with its sign."""
    if fraction is None or fraction != fraction:
        return "–"
    return f"{round(100 * fraction, 2) + 0:+.2f}"


def between(interval: tuple[float, float] | None) -> str:
    """An interval, times 100: '61.20 to 67.93'."""
    return "" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def plain(value: float) -> str:
    """A number that is no score, three digits after the point at most."""
    if value != value:
        return "–"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{round(value, 3) + 0:.3f}"


def percent(share: float) -> str:
    """A share; what is not nothing is never shown as 0."""
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
