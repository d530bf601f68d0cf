"""Answers about one subject, told apart by instructions: Promptriever's form of examples.

A query is the subject alone, an instruction asks for one aspect of it. The answer about that
aspect is the positive; those about other aspects are relevant to the query, but not under the
instruction (instruction negatives; Weller et al. 2024, arXiv:2409.11136).
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from polyvec.data.training.cells import Cells
from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError, known

# MedQuAD's types of questions, as an instruction says them.
ASPECTS = {
    "causes": "what causes it",
    "complications": "which complications it can have",
    "considerations": "what patients should do or consider in daily life",
    "exams and tests": "how it is diagnosed",
    "frequency": "how many people it affects",
    "genetic changes": "which genes or genetic changes are involved",
    "information": "what it is",
    "inheritance": "whether and how it is inherited",
    "outlook": "what outlook patients have",
    "prevention": "how to prevent it",
    "research": "what research or clinical trials are being done",
    "stages": "which stages it has",
    "support groups": "where patients find support",
    "susceptibility": "who is at risk of it",
    "symptoms": "which signs and symptoms it has",
    "treatment": "how it is treated",
}
NUMBERS = {name: number for number, name in enumerate(ASPECTS)}
WORDINGS = (
    "Find a passage that says {}.",
    "I want to know {}.",
    "A relevant document explains {}; documents about anything else are not relevant.",
    "Only texts that tell {} count, even if others are about the same subject.",
    "Retrieve what a doctor would answer if asked {}.",
    "The reader is interested in one thing only: {}.",
)
# Of instructions that no training row has, for measuring.
UNSEEN_WORDINGS = (
    "Which document answers the question {}?",
    "Please look for information on {}, and ignore all other aspects.",
)


def instruction(aspect: str | int, wording: str) -> str:
    """The wording for an aspect, by its name or number."""
    name = aspect if isinstance(aspect, str) else list(ASPECTS)[aspect]
    return wording.format(ASPECTS[name])


def aspect(cells: Cells) -> TrainingRow:
    """A subject, the number of an aspect as its label, and the answer about it.

    The subject is in lower case: MedQuAD spells some in two ways, and all rows of a subject must
    be held out, or none.
    """
    name = cells.text("aspect")
    if name not in ASPECTS:
        raise DataError(f"{cells.place}: aspect {name!r} is not known.{known(name, ASPECTS)}")
    subject = cells.text("subject").lower()
    return TrainingRow(subject, (cells.text("answer"),), label=NUMBERS[name], place=cells.place)


def contrasted(rows: list[TrainingRow], seed: int) -> list[TrainingRow]:
    """A row for each aspect of a subject, with the answers about its other aspects as negatives.

    The wording of its instruction is drawn by the seed. Subjects with one aspect are left out; an
    answer that is given for two aspects is no negative.
    """
    of_subject: dict[str, dict[int, list[TrainingRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        assert row.label is not None
        of_subject[row.query][row.label].append(row)
    draw = random.Random(seed)
    found = []
    for by_aspect in of_subject.values():
        if len(by_aspect) < 2:
            continue
        for number, own in by_aspect.items():
            positives = _answers(own)
            others = _answers(
                [row for each, same in by_aspect.items() if each != number for row in same]
            )
            found.append(
                replace(
                    own[0],
                    positives=positives,
                    negatives=tuple(text for text in others if text not in positives),
                    instruction=instruction(number, draw.choice(WORDINGS)),
                )
            )
    return found


def _answers(rows: Sequence[TrainingRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.positives[0] for row in rows))
