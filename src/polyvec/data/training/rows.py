"""The one record that every reader of training data makes."""

from dataclasses import dataclass, fields

PLACES = ("dataset", "place")  # fields that say where a row comes from


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One example to learn from: a query, texts that match it, and texts that do not.

    query: the anchor; sentence1 of a pair, the text itself where a stage needs texts alone.
    positives, negatives: documents; sentence2 of a scored pair is the only positive.
    matches: whether the positives are known to match; of a pair with a score or a class, the
        positive is only its other text.
    score: gold similarity of a pair, in the data set's own unit.
    label: class of a pair or of a text.
    teacher_scores: of positives, then negatives, by another model (distillation).
    instruction, document_instruction: what to do with the texts, where the data say so; None
        takes the stage's prompt.
    symmetric: documents are the same kind of text as queries and take their instruction or prompt.
    in_batch: whether documents of other rows count as its negatives.
    leading: how many of the negatives a table's negatives_first may take; None: all.
    turns: a chat, user and assistant in turn; the query is the first of them.
    dataset: where it comes from, for mixing and batches of one data set.
    place: FILE:LINE, for errors.
    """

    query: str
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    matches: bool = True
    score: float | None = None
    label: int | None = None
    teacher_scores: tuple[float, ...] = ()
    instruction: str | None = None
    document_instruction: str | None = None
    symmetric: bool = False
    in_batch: bool = True
    leading: int | None = None
    turns: tuple[str, ...] = ()
    dataset: str = ""
    place: str = ""

    @property
    def content(self) -> str:
        """All of the row but where it comes from, as one string: equal for equal rows."""
        return repr([getattr(self, each.name) for each in fields(self) if each.name not in PLACES])

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.query, *self.positives, *self.negatives)
