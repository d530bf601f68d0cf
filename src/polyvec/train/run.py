"""A run: the stages of a recipe in order, on one embedder, in a folder that tells what was done.

OUTPUT/
  recipe.json          the resolved recipe, the scale and the command
  stages/1-scl/        of each stage: checkpoint-STEP/, final/, curve.csv, curve.svg
  model/               the embedder, for polyvec and sentence-transformers
  reranker/            of a stage that trains one

A killed run goes on with `resume`: finished stages are made again without training, by the same
changes to the embedder and the weights in final/, then the newest whole checkpoint is loaded.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from polyvec.data.training.batches import Batches
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.mixing import Mixing
from polyvec.data.training.summary import summaries
from polyvec.embed.embedder import Embedder
from polyvec.embed.sections import embedder_settings
from polyvec.errors import SettingsError
from polyvec.recipe import Recipe, plain
from polyvec.settings import fill
from polyvec.storage.files import held
from polyvec.train import preview
from polyvec.train.adapters import Trained, finish, prepare
from polyvec.train.arguments import training_arguments
from polyvec.train.checking import check_stage
from polyvec.train.checkpoints import (
    check_data,
    checkpoint_step,
    json_object,
    last_checkpoint,
    load_weights,
    mark_data,
)
from polyvec.train.dropout import check_views, dropout_set
from polyvec.train.exchange import Exchange
from polyvec.train.mining.stage import StageMining
from polyvec.train.output import DONE, FINAL, check_output, write_recipe
from polyvec.train.progress import Progress
from polyvec.train.report import SCORE, Curve, add_to_card, card
from polyvec.train.sample import Sample
from polyvec.train.sections import STAGES
from polyvec.train.settings import StageSettings
from polyvec.train.tasks import TASKS
from polyvec.train.trainee import Trainee
from polyvec.train.trainer import Score, StageTrainer

REDO = "Remove it; --resume then goes on from the last checkpoint"


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained and where it is written.

    data: the folder of data sets. score: measures a held-out part while training. overlap: says,
    in lines, which of the training texts the measured sets hold. command: as the user typed it,
    for the model card. naming: of a stage, a context whose errors name what the user typed for it.
    """

    stages: Sequence[StageSettings]
    output: Path
    data: Path | None = None
    score: Score | None = None
    overlap: Callable[[Iterable[str]], Iterable[str]] | None = None
    command: str = ""
    where: str = "[stage"
    naming: Callable[[int], contextlib.AbstractContextManager[None]] = lambda number: (
        contextlib.nullcontext()
    )
    settings: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda line: None
    shown: bool = False

    def place(self, number: int) -> str:
        """What errors call a stage, counted from 1."""
        return f"{self.where} {number}]"

    def folder(self, number: int) -> Path:
        """Of a stage, counted from 1."""
        stage = self.stages[number - 1]
        return self.output / "stages" / f"{number}-{stage.name or stage.kind}"


def train_recipe(recipe: Recipe, scale: str, output: Path, **options: Any) -> Embedder:
    """Run the stages of a recipe from its embedder; see `run`."""
    stages = recipe.at(STAGES, scale)
    if not stages:
        raise SettingsError(f"{recipe.path}: has no [[stage]], so nothing is trained")
    for number, stage in enumerate(stages, 1):  # before any weight loads
        with recipe.naming(f"stage {number}"):
            where = f"{recipe.path}: [stage {number}]"
            check_stage(stage, options.get("data"), where, stages[: number - 1])
    resume = options.pop("resume", False)
    settings = {"scale": scale, "recipe": recipe.resolved(scale)}
    plan = Run(
        stages,
        output,
        where=f"{recipe.path}: [stage",
        naming=lambda number: recipe.naming(f"stage {number}"),
        settings=settings,
        **options,
    )
    check_output(plan.output, plan.settings, resume=resume)
    return run(plan, recipe.build(scale), resume=resume)


def dry_run(
    recipe: Recipe, scale: str, data: Path | None, *, coloured: bool = False
) -> Iterator[str]:
    """Lines on what `train_recipe` would do, without weights; nothing is written."""
    from polyvec.embed.compose import compose

    stages = recipe.at(STAGES, scale)
    if recipe.present & {"compressor", "inverter"}:  # built for the sizes of their models
        embedder = recipe.build(scale)
    else:
        with recipe.naming("embedder"):
            embedder = compose(embedder_settings(recipe, scale), weights=False)
    yield f"{recipe.key} at scale {scale}: {embedder.num_parameters:,} parameters"
    before: Mapping[str, Any] | None = None
    for number, stage in enumerate(stages, 1):
        with recipe.naming(f"stage {number}"):
            where = f"{recipe.path}: [stage {number}]"
            yield f"stage {number} of {len(stages)}: {stage.name or stage.kind}"
            check_stage(stage, data, where, stages[: number - 1])
            facts = {"embedder": embedder, "stage": stage}
            task = TASKS.build(stage.kind, stage.settings, facts, where=where)
            if hasattr(task, "apply"):
                yield "  changes the embedder without training (not done here)"
                continue
            trained = _prepared(task, embedder, stage, before, where)
            before = before if stage.adapter is None else stage.adapter
            batches = read_batches(stage, data, where)
            if hasattr(task, "prepare"):
                task.prepare(batches.data)
            yield from (f"  {each}" for each in summaries(batches.data))
            sample = Sample(batches)
            args = training_arguments(stage, Path("unused"), len(sample), where=where)
            paint = preview.colours if coloured else preview.brackets
            with dropout_set(
                embedder, dropout=stage.dropout, attention_dropout=stage.attention_dropout
            ):
                check_views(task, embedder, where)
            yield from preview.described(
                embedder, task, trained, stage, sample, args.max_steps, paint
            )
            finish(embedder, stage.adapter)


def run(plan: Run, embedder: Embedder, *, resume: bool = False) -> Embedder:
    """Train the embedder, stage by stage; saves it as OUTPUT/model, and returns it.

    Raises DataError if OUTPUT has a run already, unless it is resumed.
    """
    exchange = Exchange.connected(embedder.device.type)
    check_output(plan.output, plan.settings, resume=resume)
    exchange.wait()  # before the first process writes
    with held(plan.output, "training") if exchange.rank == 0 else contextlib.nullcontext():
        return _run(plan, embedder, exchange, resume)


def _run(plan: Run, embedder: Embedder, exchange: Exchange, resume: bool) -> Embedder:
    if exchange.rank == 0:
        write_recipe(plan.output, plan.command, plan.settings, resume=resume)
    before: Mapping[str, Any] | None = None
    for number, stage in enumerate(plan.stages, 1):
        with plan.naming(number):
            embedder = _stage(plan, number, embedder, before, resume)
        before = before if stage.adapter is None else stage.adapter
    if exchange.rank == 0:
        embedder.eval()
        embedder.save_pretrained(plan.output / "model")
        add_to_card(plan.output / "model" / "README.md", card(plan.command, _told(plan)))
    exchange.wait()
    return embedder


def _told(plan: Run) -> list[dict[str, Any]]:
    """Of each stage what the model card says."""
    found = []
    for number, stage in enumerate(plan.stages, 1):
        file = plan.folder(number) / FINAL / DONE
        facts = json_object(file, REDO) if file.is_file() else {}
        settings = {k: v for k, v in plain(stage).items() if v not in ({}, [], None)}
        found.append({"name": stage.name or stage.kind, "settings": settings, **facts})
    return found


def _prepared(
    task: Any,
    embedder: Embedder,
    stage: StageSettings,
    before: Mapping[str, Any] | None,
    where: str,
) -> Trained:
    """What a stage trains: what its task says, else the embedder and its adapter."""
    if hasattr(task, "trained"):
        trained: Trained = task.trained()
        return trained
    return prepare(
        embedder,
        stage.adapter,
        stage.train,
        before=before,
        head=getattr(task, "needs_head", False),
        where=where,
    )


def _stage(
    plan: Run, number: int, embedder: Embedder, before: Mapping[str, Any] | None, resume: bool
) -> Embedder:
    """The embedder after a stage: trained, or as an earlier run left it."""
    stage, folder = plan.stages[number - 1], plan.folder(number)
    where = plan.place(number)
    set_seed(stage.seed)  # of an adapter's first weights, and whatever else is drawn
    facts = {"embedder": embedder, "stage": stage, "output": plan.output}
    task = TASKS.build(stage.kind, stage.settings, facts, where=where)
    if hasattr(task, "apply"):
        rows = TrainingData.read(stage.data, plan.data, where=f"{where} data") if stage.data else ()
        changed: Embedder = task.apply(rows)
        return changed
    trained = _prepared(task, embedder, stage, before, where)
    if Exchange.here().rank == 0:
        plan.say(f"stage {number} ({stage.name or stage.kind}), {trained}")
    trainee = Trainee(embedder, task)
    if resume and (folder / FINAL / DONE).is_file():
        json_object(folder / FINAL / DONE, REDO)
        load_weights(trainee, folder / FINAL)
    else:
        with dropout_set(
            embedder, dropout=stage.dropout, attention_dropout=stage.attention_dropout
        ):
            check_views(task, embedder, where)
            embedder = _train(plan, number, trainee, trained, resume)
    finish(embedder, stage.adapter)
    return embedder.eval()


def _train(plan: Run, number: int, trainee: Trainee, trained: Trained, resume: bool) -> Embedder:
    stage, folder, where = plan.stages[number - 1], plan.folder(number), plan.place(number)
    batches = read_batches(stage, plan.data, where)
    first_process = Exchange.here().rank == 0
    checkpoint = last_checkpoint(folder) if resume else None
    if checkpoint is not None:
        check_data(folder, batches.data)
    elif first_process:
        mark_data(folder, batches.data)
    mining = []
    if stage.mining:
        mining.append(StageMining(stage, batches, folder, lambda: trainee.embedder, plan.say))
        mining[0].begin(0)
    if first_process:
        plan.say(batches.epoch(0).report())
        for line in plan.overlap(batches.data.all_texts()) if plan.overlap else ():
            plan.say(line)
    first = 0 if checkpoint is None else checkpoint_step(checkpoint)
    args = training_arguments(
        stage,
        folder,
        len(batches.epoch(0)),
        device=trainee.embedder.device.type,
        evaluated=plan.score is not None,
        where=where,
    )
    args.eval_on_start = plan.score is not None and checkpoint is None
    curve = Curve(folder, until=first if checkpoint else None)
    name = f"{number}/{len(plan.stages)} {stage.name or stage.kind}"
    progress = Progress(name, args.max_steps, first=first, shown=plan.shown and first_process)

    def report(step: int, values: Mapping[str, float]) -> None:
        curve.add(step, values)
        progress.report(step, values)

    trainer = StageTrainer(
        trainee,
        args,
        batches,
        cached=stage.gradient_cache > 0,
        score=plan.score,
        report=report,
        on_step=lambda trainer, work, terms: progress.step(trainer.state.global_step),
        callbacks=mining,
    )
    for each in mining:
        each.trained = trainer.trained
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        progress.close()
    if (cut := trainer.cut()) and first_process:
        plan.say(f"{stage.name or stage.kind}: {cut}")
    if hasattr(trainee.task, "save") and first_process:
        trainee.task.save(plan.output)
    facts = _facts(plan, number, trained, batches, curve)
    trainer.save_final(folder / FINAL, DONE, facts)
    if trainer.exchange.rank == 0 and curve.rows:
        curve.draw(f"{stage.name or stage.kind}: loss" + (" and scores" if plan.score else ""))
    return trainer.trained()


def _facts(
    plan: Run, number: int, trained: Trained, batches: Batches, curve: Curve
) -> dict[str, Any]:
    """What the model card says of a stage."""
    names = dict.fromkeys(name for row in curve.rows for name in row if name.startswith(SCORE))
    scores = {}
    for name in names:
        values = [row[name] for row in curve.rows if name in row]
        best = max if plan.score is not None else min
        scores[name.removeprefix(SCORE)] = (values[0], best(values[1:], default=None))
    return {
        "trained": str(trained),
        "data": {each.name: len(each.rows) for each in batches.data.sets},
        "scores": scores,
        "loss": next((row["loss"] for row in reversed(curve.rows) if "loss" in row), None),
    }


def read_batches(stage: StageSettings, data: Path | None, where: str) -> Batches:
    """The batches of a stage's data."""
    mixing = fill(Mixing, stage.mixing, f"{where} mixing")
    rows = TrainingData.read(stage.data, data, seed=stage.seed, where=f"{where} data")
    return Batches(rows, stage.batch_size, mixing, seed=stage.seed)
