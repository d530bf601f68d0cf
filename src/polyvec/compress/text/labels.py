"""Labels for token classifiers: which pieces of a text are to be kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from polyvec.compress.text.units import Span, words
from polyvec.data.words import normalized
from polyvec.embed.inputs.content_words import content_words


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text with the pieces of it that are to be kept, for a question or for any."""

    text: str
    keep: tuple[Span, ...]
    question: str | None = None


@dataclass(frozen=True, slots=True)
class Aligned:
    """A labelled text, and how far the shorter text that it came from can be trusted.

    variation: the share of the shorter text's words that the text does not have. gap: the share of
    its words that are in the text but could not be placed in order. Lower is better.
    """

    labelled: Labelled
    variation: float
    gap: float


def by_questions(text: str, questions: Sequence[str], answers: Sequence[str]) -> Labelled:
    """Keeps the words that questions on the text, or their answers, have in common with it.

    In place of a large model's choice, where there are only questions at hand.
    """
    wanted = {word for each in (*questions, *answers) for word in content_words(normalized(each))}
    lower, spans = text.lower(), []
    for start, end in words(text):
        if lower[start:end] in wanted:
            spans.append((start, end))
    for answer in answers:
        place = lower.find(answer.lower()) if answer.strip() else -1
        if place >= 0:
            spans.append((place, place + len(answer)))
    return Labelled(text, tuple(sorted(spans)))


def by_deletion(text: str, shorter: str, window: int = 150) -> Aligned:
    """Keeps the words of which a model that may only delete has left a shorter text.

    Each word of the shorter text is looked for within `window` words behind the place of the one
    before it, then before it: LLMLingua-2's alignment (Pan et al. 2024, arXiv:2403.12968,
    section 3.3).

    >>> by_deletion("the old cat sat down", "cat sat").labelled.keep
    ((8, 11), (12, 15))
    """
    spans = words(text)
    own = [text[a:b].lower() for a, b in spans]
    said = [shorter[a:b].lower() for a, b in words(shorter)]
    kept, place = set[int](), -1
    for word in said:
        ahead = range(place + 1, min(len(own), place + 1 + window))
        behind = range(min(place, len(own) - 1), max(-1, place - window), -1)
        found = next((i for i in (*ahead, *behind) if own[i] == word and i not in kept), None)
        if found is not None:
            kept.add(found)
            place = found
    there = sum(word in set(own) for word in said)
    num = max(1, len(said))
    labelled = Labelled(text, tuple(spans[i] for i in sorted(kept)))
    return Aligned(labelled, 1 - there / num if said else 0.0, (there - len(kept)) / num)


def trusted(aligned: Sequence[Aligned], share: float = 0.1) -> list[Labelled]:
    """Without the worst share by variation, then without the worst share by gap, as LLMLingua-2."""
    by_variation = sorted(aligned, key=lambda each: each.variation)
    left = by_variation[: len(aligned) - int(share * len(aligned))]
    by_gap = sorted(left, key=lambda each: each.gap)
    return [each.labelled for each in by_gap[: len(left) - int(share * len(left))]]
