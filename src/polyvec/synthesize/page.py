"""A run as one HTML page: its steps, its diversity, samples of kept and of rejected rows.

The page has no scripts and loads nothing; every text is escaped.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.storage.files import atomic_file
from polyvec.synthesize.diversity import Diversity, diversity
from polyvec.synthesize.folder import StepReport
from polyvec.synthesize.rows import Rejected, Row
from polyvec.synthesize.run import Made

PAGE = "report.html"
NUM_KEPT, NUM_REJECTED = 30, 10  # rows that are shown; rejected ones of each reason
MAX_CHARACTERS = 600  # of a text that is shown
STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;margin:1rem 0}
th,td{border-bottom:1px solid #8886;padding:.35rem .6rem;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.why{color:#b35a00}.meta{color:#777;font-size:.85em}h2{margin-top:2rem}
"""


def write_page(
    path: Path, title: str, made: Made, facts: Mapping[str, str], *, seed: int = 0
) -> None:
    """The page; the same run always gives the same bytes."""
    with atomic_file(path, "w") as file:
        file.write("".join(page(title, made, facts, seed=seed)))


def page(title: str, made: Made, facts: Mapping[str, str], *, seed: int = 0) -> Iterable[str]:
    """The parts of the page."""
    yield beginning(title)
    yield html_table(("", ""), facts.items())
    yield "<h2>Steps</h2>"
    yield html_table(
        ("step", "rows in", "rows out", "rejected", "asked", "from the cache", "why"),
        map(_step, made.reports),
        numbers=range(1, 6),
    )
    found = diversities(made.rows, seed)
    if found:
        yield "<h2>Diversity</h2>"
        yield html_table(DIVERSITY, map(diversity_row, found), numbers=range(1, 7))
    yield f"<h2>Rows that were kept ({len(made.rows):,})</h2>"
    yield from map(_row, _sample(made.rows, NUM_KEPT, seed))
    yield f"<h2>Rows that were rejected ({len(made.rejected):,})</h2>"
    for name, each in sample_rejected(made.rejected, seed):
        yield f'<p class="why">{escaped(name)}: {escaped(each.reason)}</p>{_row(each.row)}'
    yield "</body></html>\n"


def beginning(title: str) -> str:
    """The head of a page that has no scripts and loads nothing, and its heading."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escaped(title)}</h1>"
    )


DIVERSITY = (
    *("field", "texts", "distinct texts", "distinct-1", "distinct-2", "distinct-3"),
    *("self-BLEU", "words (lowest, median, highest)", "languages"),
)


def diversities(rows: Sequence[Row], seed: int = 0) -> list[Diversity]:
    """Of each field that rows have."""
    fields: dict[str, list[str | None]] = {
        "anchor": [row.anchor for row in rows],
        "positive": [row.positive for row in rows],
        "negatives": [each for row in rows for each in row.negatives],
        "instruction": [row.instruction for row in rows],
    }
    found = ((name, [text for text in texts if text]) for name, texts in fields.items())
    return [diversity(name, texts, seed) for name, texts in found if texts]


def diversity_row(found: Diversity) -> tuple[str, ...]:
    """The cells of DIVERSITY."""
    languages = "not identified: pip install 'polyvec[data]'"
    if found.languages is not None:
        languages = ", ".join(f"{name} {count}" for name, count in found.languages.items())
    low, _, median, _, high = found.lengths
    return (
        found.field,
        f"{found.num_texts:,}",
        f"{found.num_distinct:,}",
        *(f"{found.distinct[n]:.3f}" for n in (1, 2, 3)),
        "" if found.self_bleu is None else f"{found.self_bleu:.1f}",
        f"{low:g}, {median:g}, {high:g}",
        languages,
    )


def sample_rejected(
    rejected: Sequence[tuple[str, Rejected]], seed: int
) -> list[tuple[str, Rejected]]:
    """Some of each reason, in the order of the steps."""
    groups: dict[tuple[str, str], list[tuple[str, Rejected]]] = {}
    for name, each in rejected:
        groups.setdefault((name, each.reason.partition(":")[0]), []).append((name, each))
    return [each for group in groups.values() for each in _sample(group, NUM_REJECTED, seed)]


def _sample(items: Sequence[Any], num: int, seed: int) -> list[Any]:
    if len(items) <= num:
        return list(items)
    chosen = np.random.default_rng(seed).permutation(len(items))[:num]
    return [items[place] for place in sorted(chosen.tolist())]


def _step(report: StepReport) -> tuple[str, ...]:
    reasons = [f"{count:,} {reason}" for reason, count in report.reasons.items()]
    notes = [f"{name}: {value}" for name, value in report.notes.items()]
    numbers = (report.num_in, report.num_out, report.num_rejected, report.asked, report.cached)
    why = [*([report.unfinished] if report.unfinished else []), *reasons, *notes]
    return (report.name, *(f"{each:,}" for each in numbers), "; ".join(why))


def _row(row: Row) -> str:
    cells = [
        (name, value)
        for name, value in row.as_json().items()
        if name not in ("meta", "negatives") and value is not None
    ]
    cells += [("negative", text) for text in row.negatives]
    meta = ", ".join(f"{name}: {value}" for name, value in row.meta.items())
    return html_table(("", ""), cells) + f'<p class="meta">{escaped(meta)}</p>'


def html_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()
) -> str:
    classes = dict.fromkeys(numbers, ' class="n"')
    head = "".join(f"<th{classes.get(i, '')}>{escaped(each)}</th>" for i, each in enumerate(header))
    body = "".join(
        "<tr>"
        + "".join(f"<td{classes.get(i, '')}>{escaped(each)}</td>" for i, each in enumerate(row))
        + "</tr>"
        for row in rows
    )
    shown = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f"<table>{shown}<tbody>{body}</tbody></table>"


def escaped(value: object) -> str:
    text = str(value)
    cut = text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"
    return html.escape(cut)
