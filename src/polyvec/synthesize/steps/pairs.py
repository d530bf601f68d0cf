"""Rows from examples that are there already, and pairs of texts that have nothing in common."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.errors import DataError, SettingsError
from polyvec.settings import check_seed
from polyvec.synthesize.folder import file_hash
from polyvec.synthesize.rows import Changed, Row
from polyvec.synthesize.step import STEPS, Step, Tools
from polyvec.synthesize.steps.sources import check_limit, limited


@STEPS.register("pairs")
@dataclass(frozen=True)
class Pairs(Step):
    """A row for each example of a stage's `data` table (docs/training_data.md): query, first
    positive, instruction. Named sets are below POLYVEC_DATA.

    Without `data`, the texts of the run in couples, the first with the second. negatives: whether
    the examples' own stay. limit: the most, drawn by seed. Gold scores and classes are left out.
    """

    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    negatives: bool = False
    limit: int | None = None
    seed: int = 0

    free = True

    def __post_init__(self) -> None:
        check_limit("pairs", self.limit, self.seed)
        if self.data:
            from polyvec.data.training.table import data_table

            data_table(self.data, "step 'pairs' data")

    def depends(self, tools: Tools) -> list[str]:
        from polyvec.data.training.sources import source_table

        if not self.data:
            return []
        path = source_table(self.data, _folder(), "step 'pairs' data").path
        return [file_hash(path)] if path and Path(path).exists() else []

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        if rows:
            raise SettingsError("step 'pairs' must be the first: rows of earlier steps would go")
        made = self._examples() if self.data else self._couples(tools)
        return Changed(limited(made, self.limit, self.seed))

    def _examples(self) -> list[Row]:
        from polyvec.data.training.sources import training_rows

        found = []
        for number, each in enumerate(training_rows(self.data, _folder(), seed=self.seed)):
            if each.positives:
                own = each.negatives if self.negatives else ()
                meta = {"id": f"{each.dataset or 'row'}-{number}"}
                found.append(Row(each.query, each.positives[0], own, each.instruction, meta=meta))
        if not found:
            raise DataError("step 'pairs': no example has two texts")
        return found

    def _couples(self, tools: Tools) -> list[Row]:
        texts = list(tools.texts)
        if len(texts) < 2:
            raise DataError("step 'pairs': give data, or two texts and more with --texts")
        couples = zip(texts[::2], texts[1::2], strict=False)
        return [Row(a.text, b.text, meta={"id": a.id}) for a, b in couples]


def _folder() -> str | None:
    """The folder of named sets, as for training."""
    return os.environ.get("POLYVEC_DATA")


@STEPS.register("unrelated")
@dataclass(frozen=True)
class Unrelated(Step):
    """The rows, and `n` more for each anchor: positives drawn from other anchors' rows, scored 0.

    CLAIF's sampled pairs (arXiv:2305.01918) with n = 2.
    """

    n: int = 2
    score: float = 0.0
    seed: int = 0

    free = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.n < 1:
            raise SettingsError(f"step 'unrelated': n {self.n} must be 1 or more")

    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        found = Changed(list(rows))
        draw = np.random.default_rng(self.seed)
        firsts = {row.anchor: row for row in reversed(rows) if row.anchor is not None}
        for anchor, first in reversed(firsts.items()):
            others = [r.positive for r in rows if r.anchor != anchor and r.positive is not None]
            if not others:
                raise DataError("step 'unrelated': all rows have the same anchor")
            for number in range(self.n):
                text = others[int(draw.integers(len(others)))]
                meta = {"id": f"{first.id}.unrelated-{number}", "made": {"positive": "unrelated"}}
                found.keep(Row(anchor, text, score=self.score, meta=meta))
        return found
