"""What a stage is trained on, data set by data set: for its report and its model card."""

from dataclasses import dataclass

from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.sources import TrainingSet


@dataclass(frozen=True, slots=True)
class SetSummary:
    """A data set in figures.

    num_positives, num_negatives: of all rows together. query_length, document_length: mean number
    of characters. num_repeated: rows whose texts an earlier row has, too. num_contradictory: rows
    with a negative that is the query or a positive.
    """

    name: str
    num_rows: int
    num_positives: int
    num_negatives: int
    num_scored: int
    num_labelled: int
    query_length: float
    document_length: float
    num_repeated: int
    num_contradictory: int
    num_skipped: int
    instruction: str | None

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.num_rows:,} rows"]
        for count, what in (
            (self.num_negatives, "negatives"),
            (self.num_scored, "with a score"),
            (self.num_labelled, "with a label"),
            (self.num_repeated, "repeated"),
            (self.num_contradictory, "with a negative that is their query or a positive"),
            (self.num_skipped, "left out for an empty text"),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        lengths = f"{self.query_length:.0f}"
        if self.document_length:
            lengths += f" and {self.document_length:.0f}"
        return f"{', '.join(parts)}; {lengths} characters a text"


def summaries(data: TrainingData) -> tuple[SetSummary, ...]:
    """The figures of each data set; reads every row once."""
    return tuple(_summary(each) for each in data.sets)


def _summary(found: TrainingSet) -> SetSummary:
    seen: set[int] = set()
    positives = negatives = scored = labelled = contradictory = query = document = 0
    for row in found.rows:
        positives += len(row.positives)
        negatives += len(row.negatives)
        scored += row.score is not None
        labelled += row.label is not None
        contradictory += not {row.query, *row.positives}.isdisjoint(row.negatives)
        query += len(row.query)
        document += sum(map(len, row.texts)) - len(row.query)
        seen.add(hash((row.texts, row.turns, row.instruction)))
    num = len(found.rows)
    return SetSummary(
        name=found.name,
        num_rows=num,
        num_positives=positives,
        num_negatives=negatives,
        num_scored=scored,
        num_labelled=labelled,
        query_length=query / num,
        document_length=document / (positives + negatives) if positives + negatives else 0.0,
        num_repeated=num - len(seen),
        num_contradictory=contradictory,
        num_skipped=found.num_skipped,
        instruction=found.rows[0].instruction,
    )
