"""The audit as one HTML page that loads nothing, laid out after OWASP AISVS C8.4."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from polyvec.invert.audit.run import NO_DEFENCE, Attacked, Audit
from polyvec.invert.audit.verdict import TO_DO, defence_rows, verdict
from polyvec.invert.personal import PATTERNS, redacted
from polyvec.storage.files import atomic_file
from polyvec.synthesize.page import beginning, escaped, html_table

NUM_EXAMPLES = 10
KIND = re.compile(rf"(\[(?:{'|'.join(kind for kind, _, _ in PATTERNS)})\])")  # of `redacted`
THREATS = (
    ("inversion", "inverter", "a language model behind the vector; the nearest of some texts wins"),
    ("inversion", "nearest known text", "the text of the attacker's own with the nearest vector"),
    ("inversion of words", "keywords", "a linear classifier for each frequent content word"),
    (
        "attribute inference",
        "probe",
        "a linear classifier for an attribute, where labels are given",
    ),
)
KNOWS = (
    (
        "nothing",
        "the language model alone, the vector of another text, or the most frequent words: what "
        "needs no leak",
    ),
    ("fixed", "the undefended model, which it may ask; attacks defended vectors as they are"),
    ("adaptive", "the defence as well: maps defended vectors back, fitted on all its texts"),
    ("retrained", "the same, and trains on the defended vectors of all its texts"),
    ("leaked N", "defended vectors of N of its texts; nothing of the defence"),
)


def write_page(path: Path, model: str, audit: Audit, *, show_texts: bool = False) -> None:
    with atomic_file(path, "w") as file:
        file.write("".join(page(model, audit, show_texts=show_texts)))


def page(model: str, audit: Audit, *, show_texts: bool = False) -> Iterator[str]:
    """The parts of the page; the same audit gives the same bytes."""
    yield beginning(f"What the vectors of {model} give away")
    yield "".join(f"<p>{escaped(line)}</p>" for line in verdict(audit))
    yield html_table(("", ""), audit.facts.items())
    yield "<h2>What to do</h2><ul>" + "".join(f"<li>{escaped(e)}</li>" for e in TO_DO) + "</ul>"
    yield "<h2>8.4.1 Threat model</h2>"
    yield html_table(("threat", "attack", "how"), THREATS)
    yield html_table(("the attacker knows", ""), KNOWS)
    yield (
        "<p>Membership inference is not part of this audit: it concerns the training texts of the "
        "model, not those that are stored.</p>"
    )
    yield "<h3>Without a defence</h3>"
    yield _attacks([*audit.of(NO_DEFENCE, baselines=True), *audit.of(NO_DEFENCE)])
    yield from _personal(audit)
    yield from _attribute(audit)
    yield "<h2>8.4.2 Encryption</h2>"
    yield (
        "<p>Not measured. Every attack here needs the vectors; what is encrypted with a key that "
        "the attacker does not have gives nothing away.</p>"
    )
    yield "<h2>8.4.3 Defences: privacy beside utility</h2>"
    yield (
        "<p>The strongest attacker of each defence. Protected: of what vectors give away beyond "
        "the baseline, the share that is not found any more (empty where that is no more than "
        "chance). The draft standard asks for 99 % "
        "protected at a loss of at most 3 %.</p>"
    )
    yield _defences(audit)
    yield "<h3>All attackers</h3>"
    yield _attacks([row for name in audit.utility for row in audit.of(name)], defence=True)
    yield "<h2>8.4.4 Release gate</h2>"
    yield (
        "<p>audit.json beside this page has all figures. The same command on the same texts gives "
        "them again; compare F1 and utility before a new model is released.</p>"
    )
    yield from _examples(audit, show_texts)
    yield "</body></html>\n"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _attacks(rows: Sequence[Attacked], *, defence: bool = False) -> str:
    names = ("bleu", "rouge_l", "token_f1", "exact_match")
    header = ["attack", "knows", "BLEU", "ROUGE-L", "token F1", "exact", "cosine", "word F1"]
    cells = [
        [
            row.attack,
            row.knows,
            *(_percent(row.leakage.get(name)) for name in names),
            f"{row.leakage['cosine']:.3f}" if row.leakage.get("cosine") is not None else "",
            _percent(row.words),
        ]
        for row in rows
    ]
    if defence:
        header = ["defence", *header]
        cells = [[row.defence, *each] for row, each in zip(rows, cells, strict=True)]
    return html_table(header, cells, numbers=range(len(header) - 6, len(header)))


def _defences(audit: Audit) -> str:
    measures = list(audit.utility[NO_DEFENCE])
    header = ("defence", "strongest attacker", "its F1", "protected", "lost", *measures, "AISVS")
    rows = [
        (
            each.defence,
            f"{each.strongest.attack}, {each.strongest.knows}",
            _percent(each.strongest.f1),
            _percent(each.protected),
            _percent(each.lost),
            *(_percent(audit.utility[each.defence][name]) for name in measures),
            "met" if each.meets_aisvs else "",
        )
        for each in defence_rows(audit)
    ]
    return html_table(header, rows, numbers=range(2, 5 + len(measures)))


def _personal(audit: Audit) -> Iterator[str]:
    rows = [row for row in audit.of(NO_DEFENCE) if row.personal]
    if not rows:
        return
    kinds = list(rows[0].personal)
    header = ("attack", *(f"{kind} ({rows[0].personal[kind][0]})" for kind in kinds))
    yield "<h3>Personal data found whole, % by kind</h3>"
    yield html_table(
        header,
        [(row.attack, *(_percent(row.personal[kind][1]) for kind in kinds)) for row in rows],
        numbers=range(1, len(header)),
    )


def _attribute(audit: Audit) -> Iterator[str]:
    if not audit.attribute:
        return
    yield "<h3>The given attribute</h3>"
    yield html_table(
        ("defence", "AUC from vectors", "AUC from the texts", "accuracy", "most frequent class"),
        [
            (
                name,
                f"{e.auc:.3f}",
                f"{e.bag_of_words_auc:.3f}",
                *map(_percent, (e.accuracy, e.majority)),
            )
            for name, e in audit.attribute.items()
        ],
        numbers=range(1, 5),
    )


def _examples(audit: Audit, show_texts: bool) -> Iterable[str]:
    """The first texts and what was found, with personal data redacted, or with all words hidden."""
    (row,) = [e for e in audit.of(NO_DEFENCE) if e.attack == "inverter"]
    pairs = list(zip(audit.texts, row.texts, strict=True))[:NUM_EXAMPLES]
    yield f"<h2>Examples ({len(pairs)} of {len(audit.texts)})</h2>"
    if not show_texts:
        yield (
            "<p>Words that were found stand as they are, all others as dots; personal data by its "
            "kind. --show-texts shows all.</p>"
        )
        pairs = [
            (hidden(redacted(text), found), hidden(redacted(found), text)) for text, found in pairs
        ]
    yield html_table(("text", "found from its vector"), pairs)


def hidden(text: str, other: str) -> str:
    """The text with words that the other has not as dots.

    >>> hidden("Ann sold a boat", "a boat is sold")
    '··· sold a boat'
    """
    there = set(other.lower().split())
    return " ".join(
        word if word.lower() in there else "".join(map(_dotted, KIND.split(word)))
        for word in text.split()
    )


def _dotted(part: str) -> str:
    return part if KIND.fullmatch(part) else "·" * len(part)
