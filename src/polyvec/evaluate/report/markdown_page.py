"""The report as Markdown for a code host: the content of the page without its charts.

Texts of data sets are escaped, so that none of them can become a heading, a table cell, a link,
an HTML tag or a mention of a user.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from polyvec.evaluate.report import listing, slices, wording
from polyvec.evaluate.report.facts import Details, Facts, Member, Task, facts, groups
from polyvec.evaluate.report.notices import Notice, notices

if TYPE_CHECKING:
    from polyvec.evaluate.report.contents import Report

_MARKS = re.compile(r"([\\`*_{}\[\]|#~$!])")
_MENTIONS = re.compile(r"(?<!\w)@(?=\w)|@(?=[^\W\d])")  # not nDCG@10
_TAGS = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def render(report: "Report") -> str:
    """The whole text; the same report always gives the same text."""
    found = facts(report)
    parts = [
        *_head(found),
        *_notices(notices(found)),
        *_overview(found),
        *_comparison(report),
        *_tasks(found),
        *_how(report),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: object) -> str:
    """One line without Markdown, HTML, links or mentions."""
    line = "".join(_TAGS.get(c, c) for c in wording.clean(text))
    line = _MARKS.sub(r"\\\1", line)
    # An empty comment after "@" and entities in URLs stop GitHub's own linking.
    line = _MENTIONS.sub("@<!-- -->", line.replace("://", "&#58;//"))
    return re.sub("(?i)(www)[.]", r"\1&#46;", line)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns whose name ends with a colon hold numbers and are aligned right."""
    marks = ["---:" if name.endswith(":") else "---" for name in header]
    lines = [[name.rstrip(":") for name in header], marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _head(found: Facts) -> Iterator[str]:
    report = found.report
    yield f"# {escaped(report.model)}"
    speed = ""
    if seconds := found.total("encode_seconds"):
        speed = f", of which {wording.duration(seconds)} for embedding"
    yield (
        f"Evaluation of {escaped(report.created)}, weights `{_hash(report.model_sha256)}`. "
        f"{wording.number_of(len(found.tasks), ('task', 'tasks'))}, "
        f"{found.total('num_texts'):,} texts, {found.total('num_truncated'):,} truncated, "
        f"{wording.duration(found.total('seconds'))}{speed}."
    )


def _notices(found: Sequence[Notice]) -> Iterator[str]:
    lines = []
    for one in found:
        places = "; ".join(f"{escaped(name)}: {escaped(what)}" for name, what in one.places)
        lines.append(f"- **{one.level.capitalize()}.** {escaped(one.text)} {places}".rstrip())
    if lines:
        yield "## Before you read the scores"
        yield "\n".join(lines)


def _overview(found: Facts) -> Iterator[str]:
    yield "## Scores"
    yield "Scores times 100, with 95 % bootstrap intervals over the items of a task."
    header = ("Task", "Measure", "Score:", "95 % interval:", "Published:", "Difference:", "Items:")
    for kind in found.kinds:
        mean = ""
        if kind.mean is not None and len(kind.tasks) > 1:
            mean = (
                f", mean {escaped(wording.measure_name(kind.measure))} {wording.points(kind.mean)}"
            )
        yield f"**{escaped(wording.kind_names(kind.name)[0])}**{mean}"
        yield table((*header, "Texts:", "Time:"), map(_row, kind.tasks))


def _row(task: Task) -> tuple[str, ...]:
    name = f"**{escaped(task.name)}** {escaped(task.split)}"
    if task.subsets:
        name += f", {len(task.members)} subsets"
    if task.official_task:
        name += f"; corresponds to {escaped(task.official_task)}"
    return (
        name,
        escaped(wording.measure_name(task.measure)),
        f"**{wording.points(task.score)}**",
        wording.between(task.interval) or "–",
        wording.points(task.published),
        wording.signed(task.difference),
        f"{task.num_items:,}" if task.num_items else "–",
        f"{task.num_texts:,}",
        wording.duration(task.seconds),
    )


def _comparison(report: "Report") -> Iterator[str]:
    if not report.comparison:
        return
    first, second = map(escaped, report.compared)
    yield "## Comparison with another model"
    yield f"Difference: **{second}** minus **{first}**, paired over the items."
    rows = [
        (
            escaped(row.task),
            wording.points(row.a),
            wording.points(row.b),
            f"**{wording.signed(row.difference)}**",
            f"{wording.signed(row.low)} to {wording.signed(row.high)}",
            f"{row.p_value:.3f}",
            "yes" if row.significant else "no",
        )
        for row in sorted(report.comparison, key=lambda row: -row.difference)
    ]
    header = (
        "Task",
        f"{first}:",
        f"{second}:",
        "Difference:",
        "95 % interval:",
        "p:",
        "Significant",
    )
    yield table(header, rows)


def _tasks(found: Facts) -> Iterator[str]:
    yield "## Tasks"
    for task in found.tasks:
        yield f"### {escaped(task.name)}, {escaped(task.split)}"
        yield _about(task)
        if task.subsets:
            yield from _subsets(task)
        else:
            yield from _member(task.shown[0], task.item_names)


def _about(task: Task) -> str:
    text = (
        f"{wording.number_of(task.num_texts, ('text', 'texts'))}, {task.num_truncated:,} truncated."
    )
    if task.official_task:
        text = f"A local copy; corresponds to {escaped(task.official_task)}. {text}"
    if not task.subsets:
        text += f" Data `{_hash(task.members[0].result.data_sha256)}`."
    return f"{text} Note: {escaped(task.note)}." if task.note else text


def _subsets(task: Task) -> Iterator[str]:
    rows = [
        (
            escaped(member.result.subset),
            wording.points(member.score),
            wording.between(member.interval) or "–",
            f"{member.result.num_texts:,}",
            f"{member.result.num_truncated:,}",
        )
        for member in task.members
    ]
    measure = escaped(wording.measure_name(task.measure))
    yield _folded(
        f"{len(rows)} subsets, best first",
        [table(("Subset", f"{measure}:", "95 % interval:", "Texts:", "Truncated:"), rows)],
    )
    for member in task.shown:
        yield f"#### {escaped(member.result.subset)}"
        yield from _member(member, task.item_names)


def _member(member: Member, item_names: tuple[str, str]) -> Iterator[str]:
    (main, value), *rest = listing.scores(member)
    line = f"{escaped(wording.measure_name(main))} **{wording.points(value)}**"
    yield ", ".join([line, *map(_score, rest)])
    if 1 + len(rest) < len(member.result.scores):
        yield _all_scores(member)
    details = member.details
    if details and details.slices:
        yield _slices(details, item_names)
    if found := groups(member.report.outcome):
        rows = [
            (escaped(name), f"{len(values):,}", f"{values.mean():.3f}", f"{values.std():.3f}")
            for name, values in found
        ]
        yield table(("Similarities", "Number:", "Mean:", "Standard deviation:"), rows)
        if apart := listing.separation(member):
            yield escaped(apart)
    if shape := [
        f"{escaped(name)} {value}" + (f" ({good} is better)" if good else "")
        for name, value, _, good in listing.geometry(member)
    ]:
        yield "Geometry: " + ", ".join(shape)
    if details:
        yield from _worst(member, details, item_names)


def _score(one: tuple[str, float]) -> str:
    return f"{escaped(wording.measure_name(one[0]))} {wording.points(one[1])}"


def _all_scores(member: Member) -> str:
    """All measures in tables; those that fit into none follow on one line."""
    found, rest = listing.matrices(member)
    parts = []
    for one in found:
        lines = [(escaped(name), *map(wording.points, values)) for name, values in one.rows]
        parts.append(table((one.corner, *(f"{escaped(c)}:" for c in one.columns)), lines))
    if rest:
        parts.append(", ".join(map(_score, rest)))
    return _folded(f"All {len(member.result.scores)} measures", parts)


def _slices(details: Details, item_names: tuple[str, str]) -> str:
    rows = [
        (
            str(one.low) if one.low == one.high else f"{one.low} to {one.high}",
            f"{one.num_items:,}",
            wording.points(one.score),
            wording.between(one.interval) or "–",
        )
        for one in details.slices
    ]
    score = "Score:" if details.sliced else "Mean item score:"
    header = (f"Length ({details.unit})", f"{item_names[1].capitalize()}:", score)
    return table((*header, "95 % interval:"), rows)


def _worst(member: Member, details: Details, item_names: tuple[str, str]) -> Iterator[str]:
    if details.labels:
        yield _folded("Labels with the lowest scores", [_labels(details, item_names)])
    if details.worst and details.agreement:
        header = ("Texts", "Similarity:", "Rank:", "Gold:", "Rank:", "Id")
        pairs = table(header, map(_pair, details.worst))
        yield _folded("Pairs on which similarity and gold score disagree most", [pairs])
    elif details.worst:
        measure = escaped(wording.measure_name(details.measure or "value"))
        counts = f"Of {wording.number_of(member.num_items, item_names)}, {details.num_zero:,} "
        counts += f"score 0 and {details.num_full:,} score 100."
        items = "\n".join(line for one in details.worst for line in _item(one, measure))
        yield _folded(f"{item_names[1].capitalize()} with the lowest scores", [counts, items])


def _labels(details: Details, item_names: tuple[str, str]) -> str:
    rows = [
        (
            escaped(wording.cut(one.label, 60)),
            f"{one.num_items:,}",
            wording.points(one.score),
            escaped(wording.cut(one.taken_for, 60)),
        )
        for one in details.labels
    ]
    header = ("Label", f"{item_names[1].capitalize()}:", "Score:", "Most often predicted as")
    return table(header, rows)


def _pair(worst: slices.Worst) -> tuple[str, ...]:
    item = worst.item
    places = [
        "–" if place is None or place != place else f"{place:.0f} %"
        for place in (worst.similarity_place, worst.gold_place)
    ]
    texts = "<br>".join(escaped(wording.cut(text)) for text in item.texts)
    gold = f"{item.gold:g}" if isinstance(item.gold, int | float) else "–"
    return texts, wording.plain(item.value), places[0], gold, places[1], escaped(item.id)


def _item(worst: slices.Worst, measure: str) -> Iterator[str]:
    item = worst.item
    text = escaped(wording.cut(item.texts[0])) if item.texts else "(no text)"
    line = f"- {measure} {wording.points(item.value)}, {escaped(wording.cut(item.id, 60))}: {text}"
    if isinstance(item.gold, str) and len(item.texts) < 2:
        wrong = slices.wrong_label(item)
        predicted = f", predicted as {escaped(wording.cut(wrong, 60))}" if wrong else ""
        yield f"{line} (label {escaped(wording.cut(item.gold, 60))}{predicted})"
        return
    yield line
    for rank, id, text, score, grade in listing.documents(item):
        relevance = f"relevant, grade {grade}" if grade > 0 else "not relevant"
        name, shown = escaped(wording.cut(id, 60)), escaped(wording.cut(text, 200))
        yield f"  - {rank}\\. {relevance}, {name}, {wording.plain(score)}: {shown}"
    for text in listing.missing(item)[:2]:
        yield f"  - relevant, not retrieved: {escaped(wording.cut(text, 280))}"


def _how(report: "Report") -> Iterator[str]:
    yield "## Settings and versions"
    settings = [(escaped(name), escaped(value)) for name, value in listing.flat(report.settings)]
    versions = [(escaped(name), escaped(value)) for name, value in report.versions.items()]
    yield table(("Setting", "Value"), settings or [("none given", "")])
    yield table(("Package", "Version"), versions or [("none given", "")])
    used = {key for task in report.tasks for key in task.geometry}
    meanings = [(n, good, m) for key, (n, m, good) in wording.GEOMETRY.items() if key in used]
    if meanings:
        yield table(("Geometry", "Better", "Meaning"), meanings)


def _folded(title: str, parts: Sequence[str]) -> str:
    inside = "\n\n".join(parts)
    return f"<details><summary>{escaped(title)}</summary>\n\n{inside}\n\n</details>"


def _hash(sha256: str) -> str:
    """The first digits, safe inside a code span."""
    return re.sub("[^0-9a-zA-Z]", "", sha256)[:12] or "none"
