"""How rows of synthesis_effects.py are made: steps over texts, and a writer that is tuned."""

import argparse
import contextlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from synthesis_arms import BASES, COMMON, built, stage_settings
from synthesis_domains import (
    Tasks,
    records_of,
)

from polyvec import Embedder
from polyvec.data.texts import Record
from polyvec.errors import DataError
from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL
from polyvec.recipe import load_recipe, plain
from polyvec.synthesize.folder import training_lines as trainable_lines
from polyvec.synthesize.models import Models
from polyvec.synthesize.overlap import without_copies
from polyvec.synthesize.run import STEP_FOLDER, build_steps, run_steps
from polyvec.synthesize.sections import STEPS
from polyvec.train.run import Run, run

Table = Mapping[str, Any]
WRITERS = {"small": DEFAULT_LANGUAGE_MODEL, "nano": "polyvec/nano-lm"}
# Steps that drop or relabel rows; without them all that was written is there.
FILTERS = (
    *("refusals", "length", "language", "copies", "deduplicate", "round_trip", "best", "judge"),
    *("log_probability", "retrieve", "rerank"),
)


@dataclass
class Making:
    """What a source is made with: data sets, the measured tasks, its folder, the options."""

    options: argparse.Namespace
    tasks: Tasks
    folder: Path
    name: str

    @property
    def data(self) -> Path:
        return self.tasks.folder

    def models(self, writer: str, embedder: Callable[[], Any] | None = None) -> Models:
        """Language models and embedders; answers are kept, so that a killed run goes on."""
        how: dict[str, Any] = {}
        if torch.cuda.is_available():
            # Many rows at a time; keys and values of all of them stay below 3 GB.
            how = {"batch_size": 256, "batch_tokens": 65_536, "dtype": "bfloat16"}
        if self.options.dtype:
            how["dtype"] = self.options.dtype

        def embed(name: str | None) -> Any:
            if name is None and embedder is not None:
                return embedder()
            return Embedder.from_pretrained(*([name] if name else []))

        return Models(self.folder, writer, embed, options=how)

    def write(self, name: str, lines: Iterable[Table]) -> int:
        found = [json.dumps(line, ensure_ascii=False) for line in lines]
        (self.folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in found), "utf-8")
        return len(found)


def written(
    making: Making,
    steps: Sequence[Table],
    texts: str | None,
    models: Models,
    *,
    max_words: int | None = None,
) -> dict[str, Any]:
    """The files "filtered", of all steps, and "unfiltered", without those that drop rows."""
    records = []
    if texts is not None:
        records = records_of(texts, making.tasks, making.options.limit)
    if max_words is not None:
        cut = (" ".join(each.text.split()[:max_words]) for each in records)
        records = [Record(each.id, text) for each, text in zip(records, cut, strict=True)]
    found: dict[str, Any] = {"rows": {}, "steps": {}, "texts": len(records)}
    began = time.perf_counter()
    for name in ("filtered", "unfiltered"):
        own = steps if name == "filtered" else [each for each in steps if not is_filter(each)]
        if name == "unfiltered" and len(own) == len(steps):
            break
        if name == "unfiltered" and (making.folder / "filtered" / STEP_FOLDER).exists():
            # What comes before the first filter is the same, tuned models among it.
            copied = making.folder / name / STEP_FOLDER
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(making.folder / "filtered" / STEP_FOLDER, copied)
        lines, reports = [], []
        built = build_steps([_settings(each) for each in own], making.name)
        try:
            made = run_steps(
                built,
                models.tools(records),
                making.folder / name,
                usage=lambda: models.usage,
                say=reports.append,
            )
            clean = without_copies(made.rows, making.tasks.asked(texts))
            found["copies of test texts"] = len(clean.rejected)
            lines = trainable_lines(clean.kept)
        except DataError as error:
            found["note"] = str(error)
        found["rows"][name] = making.write(name, lines)
        found["steps"][name] = [
            [each.kind, each.num_in, each.num_out, round(each.seconds, 1)] for each in reports
        ]
    found |= {"calls": models.spent.prompts, "new_tokens": models.spent.new_tokens}
    return {**found, "s": round(time.perf_counter() - began, 1)}


def _settings(table: Table) -> Any:
    (found,) = STEPS.value({"step": [dict(table)]}, "full", Path("synthesis_effects"))
    return found


def is_filter(table: Table) -> bool:
    return table["kind"] in FILTERS or (table["kind"] == "rate" and table.get("to") == "check")


def step_tables(key: str, scale: str) -> list[dict[str, Any]]:
    """The steps of a recipe at a scale, as tables."""
    tables = [plain(step) for step in load_recipe(key).at(STEPS, scale)]
    return [{"kind": each["kind"], **each.get("settings", {})} for each in tables]


@contextlib.contextmanager
def removed(folder: Path) -> Any:
    """Weights need not stay."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tuned_writer(making: Making, rows: Sequence[Table]) -> tuple[str, dict[str, Any]]:
    """SmolLM2 with LoRA, tuned by the stage "ntp" to write the rows' answers: a folder's name."""
    folder = making.folder / "tuned"
    shutil.rmtree(folder, ignore_errors=True)
    chosen = random.Random(0).sample(list(rows), min(3000, len(rows)))
    num = making.write("tuning", chosen)
    base = "nano-lm" if making.options.writer == WRITERS["nano"] else "smollm2"
    merged = {} if base == "nano-lm" else {"merge": True}
    stage = stage_settings(
        {
            "kind": "ntp",
            "data": [{"path": str(making.folder / "tuning.jsonl")}],
            # Merged, so that the folder holds a whole language model.
            "adapter": {**COMMON[BASES[base].common]["adapter"], **merged},
            "batch_size": 16,
            "max_length": 224,
            "learning_rate": 1e-3,
            "warmup_steps": 0.1,
            "max_steps": 100,
        },
        base,
        0,
        making.options,
    )
    began = time.perf_counter()
    # The whole model, also where --layers says how much of it embeds.
    model = built(BASES[base], argparse.Namespace(layers=None, padded=making.options.padded))
    run(Run((stage,), folder), model)
    seconds = round(time.perf_counter() - began, 1)
    return str(folder / "model"), {
        "tuned_on": num,
        "tuned_s": seconds,
        "tuned_steps": stage.max_steps,
    }
