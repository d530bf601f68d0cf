"""Personal data in texts, by kind, and how much of it came back.

The patterns find what has a form of its own (addresses of mail, numbers); names and places need
spans that a data set or another tool marked.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polyvec.errors import DataError, ShapeError


@dataclass(frozen=True, slots=True)
class Entity:
    """A piece of personal data in a text."""

    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Of a kind: how many there are, the share found whole, and the mean share of their words."""

    count: int
    whole: float
    words: float


def _luhn(value: str) -> bool:
    digits = [int(each) for each in re.sub(r"\D", "", value)]
    doubled = [sum(divmod(2 * each, 10)) for each in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _mod_97(value: str) -> bool:
    bare = value.replace(" ", "")
    return int("".join(str(int(each, 36)) for each in bare[4:] + bare[:4])) % 97 == 1


# Kind, pattern, and a check of what it finds; the first kind that takes a stretch keeps it.
PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), lambda value: True),
    ("url", re.compile(r"https?://[^\s,]+|www\.[^\s,]+"), lambda value: True),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b"), _mod_97),
    ("card", re.compile(r"\b\d(?:[ -]?\d){12,18}\b"), _luhn),
    ("ip", re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b"), lambda value: True),
    ("ssn", re.compile(r"\b\d{3}-\d{2}-\d{4}\b"), lambda value: True),
    (
        "date",
        re.compile(r"\b(?:\d{4}-\d{2}-\d{2}|\d{1,2}[/.]\d{1,2}[/.]\d{2,4})\b"),
        lambda value: True,
    ),
    (
        "phone",
        re.compile(
            r"(?<!\w)(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){1,4}\b"
        ),
        lambda value: 7 <= len(re.sub(r"\D", "", value)) <= 15,
    ),
)


def personal_data(text: str) -> list[Entity]:
    """What the patterns find, in the order of the text.

    >>> personal_data("Write to ann@example.org or call 555-010-9999.")
    [Entity(kind='email', value='ann@example.org'), Entity(kind='phone', value='555-010-9999')]
    """
    taken: list[tuple[int, int, Entity]] = []
    for kind, pattern, fits in PATTERNS:
        for match in pattern.finditer(text):
            start, end = match.span()
            free = all(end <= a or b <= start for a, b, _ in taken)
            if free and fits(match[0]):
                taken.append((start, end, Entity(kind, match[0])))
    return [entity for _, _, entity in sorted(taken, key=lambda each: each[:2])]


def redacted(text: str, entities: Sequence[Entity] | None = None) -> str:
    """The text with its personal data replaced by their kinds.

    >>> redacted("Write to ann@example.org.")
    'Write to [email].'
    """
    for each in sorted(
        personal_data(text) if entities is None else entities, key=lambda e: -len(e.value)
    ):
        text = text.replace(each.value, f"[{each.kind}]")
    return text


def personal_recall(
    found: Sequence[str], entities: Sequence[Sequence[Entity]]
) -> dict[str, Recall]:
    """Of each kind, how much of the texts' personal data stands in what an attack found.

    entities: those of each true text. Case, white space and punctuation at the ends are ignored.
    Raises DataError if no text has any.
    """
    if len(found) != len(entities):
        raise ShapeError(
            f"{len(found)} found texts, entities of {len(entities)}; give one for each"
        )
    hits: dict[str, list[tuple[bool, float]]] = {}
    for text, own in zip(found, entities, strict=True):
        there = _words(text)
        for entity in own:
            wanted = _words(entity.value)
            if not wanted:
                continue
            whole = f" {' '.join(wanted)} " in f" {' '.join(there)} "
            share = sum(word in there for word in wanted) / len(wanted)
            hits.setdefault(entity.kind, []).append((whole, share))
    if not hits:
        raise DataError(
            "no text has personal data, so there is none to find; mark spans, or give other texts"
        )
    return {
        kind: Recall(
            len(each),
            sum(whole for whole, _ in each) / len(each),
            sum(share for _, share in each) / len(each),
        )
        for kind, each in sorted(hits.items())
    }


def _words(text: str) -> list[str]:
    bare = (word.strip(".,;:!?()[]{}'\"") for word in text.lower().split())
    return [word for word in bare if word]
