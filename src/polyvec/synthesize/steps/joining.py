"""A field of a row out of its others."""

from collections.abc import Sequence
from dataclasses import dataclass

from polyvec.errors import InputError
from polyvec.llm.slots import SlotTemplate
from polyvec.synthesize.reading import check_target, with_values
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Step, Tools


@STEPS.register("join")
@dataclass(frozen=True)
class Join(Step):
    """Each row with `template` filled by its fields and meta values as its field `to`.

    "{anchor} {knowledge}" to "positive" is SKICSE's pair. Rows that lack a value are rejected.
    """

    template: str
    to: str = "positive"

    free = True

    def __post_init__(self) -> None:
        check_target(self.to, "step 'join'")
        _ = self._parsed

    @property
    def _parsed(self) -> SlotTemplate:
        return SlotTemplate.parse(self.template, "step 'join'")

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        return [with_values(row, {self.to: self.template}) for row in rows]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        found, parsed = Changed(), self._parsed
        for row in rows:
            values = {name: row.values().get(name) for name in parsed.slots}
            lacking = sorted(name for name, value in values.items() if value is None)
            if lacking:
                found.reject(row, f"no {lacking[0]}")
                continue
            try:
                found.keep(with_values(row, {self.to: parsed.render(values)}))
            except InputError as error:
                found.reject(row, f"cannot be joined: {error}")
        return found
