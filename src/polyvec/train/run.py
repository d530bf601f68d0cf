"""A run: the stages of a recipe in order, on one embedder, in a folder that tells what was done.

OUTPUT/
  recipe.json          the resolved recipe, the scale and the command
  stages/1-scl/        of each stage: checkpoint-STEP/, final/, curve.csv, curve.svg
  model/               the embedder, for polyvec and sentence-transformers

A killed run goes on with `resume`: finished stages are made again without training, by the same
changes to the embedder and the weights in final/, then the newest whole checkpoint is loaded.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from polyvec.data.training.batches import Batches
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.mixing import Mixing
from polyvec.embed.embedder import Embedder
from polyvec.errors import DataError, SettingsError
from polyvec.recipe import Recipe
from polyvec.settings import fill
from polyvec.storage.files import atomic_file
from polyvec.train.adapters import finish, prepare
from polyvec.train.dropout import dropout_set
from polyvec.train.exchange import Exchange
from polyvec.train.sections import STAGES
from polyvec.train.settings import StageSettings
from polyvec.train.tasks import TASKS
from polyvec.train.trainee import Trainee
from polyvec.train.trainer import (
    StageTrainer,
    last_checkpoint,
    load_weights,
    training_arguments,
)

FINAL, DONE = "final", "done.json"
# Scores of an embedder by name; the first decides which checkpoint is the best.
Score = Callable[[Embedder], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained and where it is written.

    data: the folder of data sets. score: measures a held-out part while training. command: as the
    user typed it, for the model card.
    """

    stages: Sequence[StageSettings]
    output: Path
    data: Path | None = None
    score: Score | None = None
    command: str = ""
    where: str = "[[stage]]"
    settings: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda line: None

    def folder(self, number: int) -> Path:
        """Of a stage, counted from 1."""
        stage = self.stages[number - 1]
        return self.output / "stages" / f"{number}-{stage.name or stage.kind}"


def train_recipe(recipe: Recipe, scale: str, output: Path, **options: Any) -> Embedder:
    """Run the stages of a recipe from its embedder; see `run`."""
    stages = recipe.at(STAGES, scale)
    if not stages:
        raise SettingsError(f"{recipe.path}: has no [[stage]], so nothing is trained")
    resume = options.pop("resume", False)
    settings = {"scale": scale, "recipe": recipe.resolved(scale)}
    plan = Run(stages, output, where=f"{recipe.path}: [[stage", settings=settings, **options)
    return run(plan, recipe.build(scale), resume=resume)


def run(plan: Run, embedder: Embedder, *, resume: bool = False) -> Embedder:
    """Train the embedder, stage by stage; saves it as OUTPUT/model, and returns it.

    Raises DataError if OUTPUT has a run already, unless it is resumed.
    """
    exchange = Exchange.here()
    _begin(plan, exchange, resume)
    before: Mapping[str, Any] | None = None
    for number, stage in enumerate(plan.stages, 1):
        embedder = _stage(plan, number, embedder, before, resume)
        before = before if stage.adapter is None else stage.adapter
    if exchange.rank == 0:
        embedder.eval()
        embedder.save_pretrained(plan.output / "model")
    exchange.wait()
    return embedder


def _begin(plan: Run, exchange: Exchange, resume: bool) -> None:
    file = plan.output / "recipe.json"
    content = {"command": plan.command, **plan.settings}
    if resume:
        if not file.is_file():
            raise DataError(f"{plan.output}: no run to resume, it has no recipe.json")
        before = json.loads(file.read_text("utf-8"))
        if {**before, "command": ""} != {**json.loads(json.dumps(content)), "command": ""}:
            raise SettingsError(
                f"{file}: the run has other settings than this recipe; start a new one in another "
                "folder"
            )
        return
    if plan.output.exists() and any(plan.output.iterdir()):
        raise DataError(f"{plan.output}: not empty; pass --resume to go on, or give another folder")
    exchange.wait()
    if exchange.rank == 0:
        plan.output.mkdir(parents=True, exist_ok=True)
        with atomic_file(file, "w") as stream:
            json.dump(content, stream, indent=1)


def _stage(
    plan: Run, number: int, embedder: Embedder, before: Mapping[str, Any] | None, resume: bool
) -> Embedder:
    """The embedder after a stage: trained, or as an earlier run left it."""
    stage, folder = plan.stages[number - 1], plan.folder(number)
    where = f"{plan.where} {number}]"
    set_seed(stage.seed)  # of an adapter's first weights, and whatever else is drawn
    facts = {"embedder": embedder, "stage": stage, "output": plan.output}
    task = TASKS.build(stage.kind, stage.settings, facts, where=where)
    if hasattr(task, "apply"):
        rows = TrainingData.read(stage.data, plan.data, where=f"{where} data") if stage.data else ()
        changed: Embedder = task.apply(rows)
        return changed
    trained = prepare(
        embedder,
        stage.adapter,
        stage.train,
        before=before,
        head=getattr(task, "needs_head", False),
        where=where,
    )
    plan.say(f"stage {number} ({stage.name or stage.kind}), {trained}")
    trainee = Trainee(embedder, task)
    if resume and (folder / FINAL / DONE).is_file():
        load_weights(trainee, folder / FINAL)
    else:
        with dropout_set(
            embedder, dropout=stage.dropout, attention_dropout=stage.attention_dropout
        ):
            embedder = _train(plan, stage, trainee, folder, where, resume)
    finish(embedder, stage.adapter)
    return embedder.eval()


def _train(
    plan: Run, stage: StageSettings, trainee: Trainee, folder: Path, where: str, resume: bool
) -> Embedder:
    batches = read_batches(stage, plan.data, where)
    plan.say(batches.epoch(0).report())
    device = trainee.embedder.device.type
    args = training_arguments(stage, folder, len(batches.epoch(0)), device=device, where=where)
    trainer = StageTrainer(trainee, args, batches, cached=stage.gradient_cache > 0)
    checkpoint = last_checkpoint(folder) if resume else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_final(folder / FINAL, DONE)
    return trainer.trained()


def read_batches(stage: StageSettings, data: Path | None, where: str) -> Batches:
    """The batches of a stage's data."""
    mixing = fill(Mixing, stage.mixing, f"{where} mixing")
    rows = TrainingData.read(stage.data, data, seed=stage.seed, where=f"{where} data")
    return Batches(rows, stage.batch_size, mixing, seed=stage.seed)
