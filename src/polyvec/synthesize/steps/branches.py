"""Several lists of steps over the same rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from polyvec.data.words import hash64
from polyvec.errors import SettingsError
from polyvec.llm.answers import GenerationSettings
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Asked, Step, Tools
from polyvec.synthesize.steps.generate import Generate


@STEPS.register("branches")
@dataclass(frozen=True)
class Branches(Step):
    """What several lists of steps make of the rows, one list after the other.

    branches: the lists; each entry is a step's table. share: "all" gives every row to every list
    (E5-Mistral's kinds of tasks), "split" each row to one of them, drawn by seed and id (a pool of
    prompts). generate: settings of every step "generate" in them, such as max_new_tokens.
    """

    branches: tuple[tuple[Mapping[str, Any], ...], ...]
    share: Literal["all", "split"] = "all"
    generate: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.branches) < 2 or not all(self.branches):
            raise SettingsError("step 'branches': give two lists of steps or more, none empty")
        _ = self.lists

    @cached_property
    def lists(self) -> list[list[Step]]:
        """The steps; SettingsError names the list and the step by their numbers from 1."""
        found = []
        for number, each in enumerate(self.branches, 1):
            steps = []
            for place, table in enumerate(each, 1):
                where = f"step 'branches' {number}: [step {place}]"
                if "kind" not in table:
                    raise SettingsError(f"{where} key 'kind' is missing")
                own = {key: value for key, value in table.items() if key != "kind"}
                if STEPS.find(table["kind"], where=where) is Generate:
                    own |= self.generate
                step = STEPS.build(table["kind"], own, where=where)
                if step.makes is not None:
                    raise SettingsError(f"{where}: makes a model; put it before the branches")
                steps.append(step)
            found.append(steps)
        return found

    @property
    def _steps(self) -> list[Step]:
        return [step for steps in self.lists for step in steps]

    def check(self) -> None:
        for step in self._steps:
            step.check()

    def depends(self, tools: Tools) -> list[str]:
        return [each for step in self._steps for each in step.depends(tools)]

    def uses(self, tools: Tools) -> str | None:
        kinds = {step.uses(tools) for step in self._steps}
        return next((kind for kind in ("language_model", "embedder") if kind in kinds), None)

    def _rows(self, number: int, rows: Sequence[Row]) -> list[Row]:
        """The rows of a list; none of several lists has an id that another has."""
        if self.share == "all":
            return [row.with_meta(id=f"{row.id}.branch-{number + 1}") for row in rows]
        many = len(self.lists)
        return [row for row in rows if hash64(f"{self.seed} {row.id}") % many == number]

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        found = Changed()
        for number, steps in enumerate(self.lists):
            own = Changed(self._rows(number, rows))
            for step in steps:
                if not own.kept:
                    break
                own = step.run(own.kept, tools)
                found.rejected += own.rejected
                found.notes |= {f"{number + 1}: {name}": told for name, told in own.notes.items()}
                if own.unfinished is not None:
                    # Rows of this list are not whole: those of the lists before it are.
                    found.unfinished = own.unfinished
                    return found
            found.kept += own.kept
        return found

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        found = []
        for number, steps in enumerate(self.lists):
            own = self._rows(number, rows)
            for step in steps:
                own = step.guess(own)
            found += own
        return found

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        """All prompts, as if each could have as long an answer as the longest of them."""
        every: list[Asked] = []
        for number, steps in enumerate(self.lists):
            own = self._rows(number, rows)
            for step in steps:
                if (asked := step.asks(own, tools)) is not None:
                    every.append(asked)
                own = step.run(own, tools).kept if step.free else step.guess(own)
        if not every:
            return None
        prompts = [prompt for each in every for prompt in each.prompts]
        longest = max(1 if a.choices else a.settings.n * a.settings.max_new_tokens for a in every)
        return dataclasses.replace(
            every[0],
            prompts=prompts,
            settings=GenerationSettings(max_new_tokens=longest),
            choices=(),
        )
