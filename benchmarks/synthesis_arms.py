"""Arms of synthesis_effects.py: embedders, and the stages that train them on sources."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from effects import LORA
from synthesis_domains import Tasks, table_of

from polyvec import Embedder
from polyvec.embed.compose import compose
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import DataError
from polyvec.recipe import load_recipe
from polyvec.train.sections import STAGES

Table = Mapping[str, Any]
INFO_NCE = [{"kind": "info_nce", "temperature": 0.05}]
STEPS = {"small": 40, "nano": 60, "minilm": 40, "minilm-reset": 100}
# Learning rates are those of training_effects.py, found on STS-B dev; MiniLM's are usual ones.
COMMON: Mapping[str, Table] = {
    "small": {"adapter": LORA, "learning_rate": 2e-3, "bf16": True, "warmup_steps": 0.1},
    "nano": {"adapter": {"kind": "full"}, "learning_rate": 5e-4, "warmup_steps": 0.1},
    "minilm": {"adapter": {"kind": "full"}, "learning_rate": 5e-5, "warmup_steps": 0.1},
    "minilm-reset": {"adapter": {"kind": "full"}, "learning_rate": 2e-4, "warmup_steps": 0.1},
}


@dataclass(frozen=True)
class Base:
    """An embedder to begin with: a recipe's, or all-MiniLM-L6-v2 if there is no recipe.

    reset: layers from this one on begin at random weights. common: a key of COMMON.
    """

    common: str
    recipe: str | None = None
    changes: Table = field(default_factory=dict)
    reset: int | None = None


PLAIN = {"template": None, "prompts": {}, "default_prompt": None, "pooling": "mean"}
BASES: Mapping[str, Base] = {
    "nano-lm": Base("nano", "causal-mean", PLAIN),
    "smollm2": Base("small", "causal-mean", PLAIN),
    "minilm": Base("minilm"),
    "minilm-reset": Base("minilm-reset", reset=3),
}
SHOWN = {
    "nano-lm": "nano-lm",
    "smollm2": "SmolLM2-135M",
    "minilm": "all-MiniLM-L6-v2",
    "minilm-reset": "MiniLM, layers 4 to 6 at random",
}


@dataclass(frozen=True)
class Context:
    """What arms are measured with. sources: the folder of all sources. seed: of the run."""

    options: argparse.Namespace
    tasks: Tasks
    sources: Path
    columns: Sequence[str] = ()
    seed: int = 0


Measure = Callable[[Any, Context], dict[str, float]]


@dataclass(frozen=True)
class Arm:
    """An embedder and the stages that train it; without a base only `measure` is asked.

    In the stages' `data`, source = "NAME/FILE" is a source's file, and rows_of = [...] limits the
    rows to those of the smallest of these.
    """

    base: Base | None
    stages: Sequence[Table] = ()
    measure: Measure | None = None

    @property
    def sources(self) -> list[str]:
        """The sources that must be there."""
        tables = [table for stage in self.stages for table in stage.get("data", ())]
        named = [
            each.partition("/")[0]
            for table in tables
            for each in (table.get("source"), *table.get("rows_of", ()))
            if each
        ]
        return list(dict.fromkeys([*named, *getattr(self.measure, "sources", ())]))


def built(base: Base, options: argparse.Namespace) -> Embedder:
    if base.recipe is None:
        model = Embedder.from_pretrained()
        if base.reset is not None:
            draw = torch.Generator().manual_seed(0)  # on the CPU: the same on every device
            for layer in model.backbone.model.encoder.layer[base.reset :]:
                for module in layer.modules():
                    _initialise(module, draw)
    else:
        settings = load_recipe(base.recipe).at(EMBEDDER, scale_of(base))
        layers = options.layers if scale_of(base) == "small" else None
        settings = dataclasses.replace(settings, num_layers=layers or settings.num_layers)
        model = compose(dataclasses.replace(settings, **base.changes))
    if options.padded and model.backbone.mechanism == "plan":
        model.backbone.runner.packed = False
    return model


@torch.no_grad()
def _initialise(module: torch.nn.Module, draw: torch.Generator) -> None:
    """As BERT begins: normal weights of deviation 0.02, no biases."""
    if isinstance(module, torch.nn.Linear):
        module.weight.copy_(torch.empty(module.weight.shape).normal_(0, 0.02, generator=draw))
        module.bias.zero_()
    elif isinstance(module, torch.nn.LayerNorm):
        module.weight.fill_(1.0)
        module.bias.zero_()


def scale_of(base: Base) -> str:
    return "small" if base.common == "small" else "nano"


def stage_settings(table: Table, base: str, seed: int, options: argparse.Namespace) -> Any:
    """A stage's settings; `base` is a key of COMMON, or of BASES."""
    key = BASES[base].common if base in BASES else base
    common, steps = COMMON[key], table.get("max_steps", STEPS[key])
    steps = max(1, math.ceil(steps * options.steps))
    fixed = {"seed": seed, "trainer": {"save_strategy": "no"}, "max_steps": steps}
    (found,) = STAGES.value({"stage": [{**common, **table, **fixed}]}, "full", Path("stage"))
    return found


def ready(stage: Table, common: str, context: Context) -> Any:
    """The settings of an arm's stage, with the files of its sources."""
    if not stage.get("data"):
        (found,) = STAGES.value({"stage": [dict(stage)]}, "full", Path("stage"))
        return found
    data, num = [], math.inf
    for table in stage["data"]:
        given = {k: v for k, v in table.items() if k not in ("source", "rows_of")}
        given = dict(table_of(given, context.tasks.folder))
        if "path" in given:
            given["path"] = str(given["path"])
        counts = [_count(each, context) for each in table.get("rows_of", ())]
        if "source" in table:
            name, _, file = table["source"].partition("/")
            given["path"] = str(context.sources / name / f"{file}.jsonl")
            counts.append(_count(table["source"], context))
        if counts:
            # A limit in the table may only lower it.
            given["limit"] = min([*counts, *([given["limit"]] if "limit" in given else [])])
            if given["limit"] < 2:
                raise DataError(f"{table.get('source')}: {given['limit']} rows to train on")
            num = min(num, given["limit"])
        data.append(given)
    size = int(min(stage.get("batch_size", 32), num))
    return stage_settings(
        {**stage, "data": data, "batch_size": size}, common, context.seed, context.options
    )


def _count(file: str, context: Context) -> int:
    name, _, part = file.partition("/")
    path = context.sources / name / f"{part}.jsonl"
    return len(path.read_text("utf-8").splitlines()) if path.exists() else 0


def scl(source: str | None = None, **more: Any) -> Table:
    """A contrastive stage on a source's file, or on the `data` given."""
    data = () if source is None else ({"source": source},)
    return {
        "kind": "scl",
        "data": data,
        "losses": INFO_NCE,
        "batch_size": 32,
        "max_length": 128,
        "query_max_length": 64,
        **more,
    }
