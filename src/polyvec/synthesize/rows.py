"""The row that every step takes and gives, and what a step says about its rows."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyvec.errors import DataError
from polyvec.settings import checked, known_keys

TEXTS = ("anchor", "positive", "instruction")


@dataclass(frozen=True, slots=True)
class Row:
    """An example that becomes one to train on.

    anchor, positive, negatives: a query and its documents, or a sentence and others.
    instruction: what to do with the anchor. score: gold similarity, in the unit of its prompt.
    meta: "id" of the text that it began with, the values of slots, and what steps found out.
    """

    anchor: str | None = None
    positive: str | None = None
    negatives: tuple[str, ...] = ()
    instruction: str | None = None
    score: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return str(self.meta.get("id", ""))

    def values(self) -> dict[str, Any]:
        """What slots of prompts can name: the fields that are there, and those of meta."""
        own = {"anchor": self.anchor, "positive": self.positive, "score": self.score}
        own["instruction"] = self.instruction
        own["negative"] = self.negatives[0] if self.negatives else None
        return {**self.meta, **{name: value for name, value in own.items() if value is not None}}

    def with_meta(self, **values: Any) -> "Row":
        return dataclasses.replace(self, meta={**self.meta, **values})

    def texts(self) -> list[str]:
        """Anchor, positive and negatives that are there."""
        return [text for text in (self.anchor, self.positive, *self.negatives) if text is not None]

    def as_json(self) -> dict[str, Any]:
        """All fields that are there."""
        found = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if value not in (None, (), {})}

    @classmethod
    def of(cls, raw: Mapping[str, Any], where: str) -> "Row":
        """A row from a line's JSON; DataError for an unknown field or a value of another type."""
        hints = {each.name: each.type for each in dataclasses.fields(cls)}
        try:
            known_keys(raw, hints, where)
            found = {k: checked(v, hints[k], f"{where} key {k!r}") for k, v in raw.items()}
        except ValueError as error:
            raise DataError(str(error)) from None
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that a step left out, and why."""

    row: Row
    reason: str


@dataclass(slots=True)
class Changed:
    """What a step made of its rows.

    unfinished: why it could not treat all of them (a budget that is spent); then the run ends here.
    notes: what it found out about the rows as a whole, for people.
    """

    kept: list[Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    unfinished: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def keep(self, row: Row) -> None:
        self.kept.append(row)

    def reject(self, row: Row, reason: str) -> None:
        self.rejected.append(Rejected(row, reason))

    def reasons(self) -> Iterator[tuple[str, int]]:
        """Reasons without what is after their colon, with counts, the most frequent first."""
        counts = Counter(each.reason.partition(":")[0] for each in self.rejected)
        yield from counts.most_common()
