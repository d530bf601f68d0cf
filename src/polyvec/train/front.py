"""Training from Python, under the names of sentence-transformers' trainer."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, TrainOutput

from polyvec.data.training.batches import Batches
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.mixing import Mixing
from polyvec.data.training.sources import TrainingSet, rows_of
from polyvec.embed.embedder import Embedder
from polyvec.errors import (
    DataError,
    InputError,
    SettingsError,
    TruncationWarning,
)
from polyvec.settings import fill
from polyvec.storage.files import held
from polyvec.train.adapters import finish, prepare
from polyvec.train.arguments import CHECKPOINTING, MAIN
from polyvec.train.checkpoints import check_data, checkpoint_step, last_checkpoint, mark_data
from polyvec.train.dropout import check_views, dropout_set
from polyvec.train.losses.terms import Objective, Term
from polyvec.train.progress import Progress
from polyvec.train.report import Curve
from polyvec.train.settings import StageSettings, Wording, check_numbers
from polyvec.train.tasks import TASKS
from polyvec.train.trainee import Trainee
from polyvec.train.trainer import Score, StageTrainer

WHERE = "Trainer"
WORDING = Wording(
    stage=WHERE,
    loss="loss",
    keep_last_rows='mixing={"drop_last": False}',
    names={
        "batch_size": "per_device_train_batch_size",
        "accumulate": "gradient_accumulation_steps",
    },
)
Loss = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | Callable[..., Any] | None
Rows = Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]]


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments, and what a stage of a recipe has beside them.

    gradient_cache: tokens of a piece, so that memory does not grow with the batch; 0: none.
    adapter: a table such as {"kind": "lora", "rank": 16}; None trains all weights.
    train: parts trained beside the adapter. matryoshka: {"dimensions": [...]}.
    mixing: how data sets share batches. kind: of the stage, "scl", "ucl", "distill" ...
    guide, teacher: folder or hub id of another embedder, for losses that need one.
    max_length, query_max_length: most tokens of documents and queries while training.
    """

    gradient_cache: int = 0
    adapter: dict[str, Any] | None = None
    train: tuple[str, ...] = ("pooling", "projections", "new_tokens")
    matryoshka: dict[str, Any] | None = None
    mixing: dict[str, Any] | None = None
    kind: str = "scl"
    guide: str | None = None
    teacher: str | None = None
    max_length: int | None = None
    query_max_length: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        self.dataloader_pin_memory = False
        # Ours is shown in place of transformers' bar.
        self.show_progress_bar = not self.disable_tqdm
        self.disable_tqdm = True


OWN = {each.name for each in fields(TrainingArguments)} & {
    each.name for each in fields(StageSettings)
}


class WrittenStage(StageSettings):
    """A stage whose errors name the arguments that the user wrote, transformers' and ours."""

    wording = WORDING


class Trainer:
    """Trains an embedder on a data set.

    >>> import polyvec, tempfile
    >>> embedder = polyvec.Embedder.from_pretrained()
    >>> rows = [{"anchor": "a cat", "positive": "a kitten"}, {"anchor": "a car", "positive": "bus"}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     args = polyvec.TrainingArguments(folder, max_steps=1, use_cpu=True, save_strategy="no")
    ...     polyvec.Trainer(embedder, args, rows).train().global_step
    1
    """

    def __init__(
        self,
        model: Embedder,
        args: TrainingArguments | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        loss: Loss = None,
        evaluator: Callable[[Embedder], float | Mapping[str, float]] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Datasets: dicts in a list, or a datasets.Dataset, with sentence-transformers' columns
        (anchor, positive, negative; sentence1, sentence2, score; query ...), or several by name.

        loss: a name in LOSSES, a table with its settings, several of them, or a function of
        polyvec.train.compared.Compared; by default cosent for pairs with a score, else info_nce.
        evaluator: measures the embedder; a number, or scores by name, the first of which decides
        with load_best_model_at_end.
        """
        if not isinstance(model, Embedder):
            raise InputError(
                f"{WHERE}: model is {_kind(model)}; pass a polyvec.Embedder, such as "
                "Embedder.from_pretrained(folder)"
            )
        if train_dataset is None:
            raise DataError(f"{WHERE}: no train_dataset is given")
        self.model = model
        self.args = args or TrainingArguments("tmp_trainer", save_strategy="no")
        if not isinstance(self.args, TrainingArguments):
            raise InputError(
                f"{WHERE}: args is {_kind(self.args)}; pass "
                "polyvec.TrainingArguments, which takes the same arguments"
            )
        if _kind(evaluator).startswith("sentence_transformers."):
            raise InputError(
                f"{WHERE}: evaluator is {_kind(evaluator)}, which needs a SentenceTransformer; "
                "pass a function of the embedder that returns a number, or numbers by name"
            )
        if evaluator is not None and not callable(evaluator):
            raise InputError(f"{WHERE}: evaluator is {_kind(evaluator)}, expected a function")
        self.measured = evaluator is not None or eval_dataset is not None
        if not self.measured and self.args.eval_strategy != IntervalStrategy.NO:
            raise SettingsError(
                f"{WHERE}: eval_strategy has nothing to measure; pass eval_dataset or evaluator"
            )
        data = self.data = training_data(train_dataset, self.args.seed)
        self.stage = self._stage(loss, data)
        facts = {"embedder": model, "stage": self.stage}
        others = {"guide": self.args.guide, "teacher": self.args.teacher}
        settings = {name: str(each) for name, each in others.items() if each is not None}
        task = TASKS.build(self.stage.kind, settings, facts, where=WHERE)
        if callable(loss):
            task.objective = task.heads = Objective([Term(loss, _name(loss))])
        self.trained = prepare(
            model,
            self.stage.adapter,
            self.stage.train,
            head=getattr(task, "needs_head", False),
            where=WHERE,
        )
        batches = self._batches(data)
        if self.args.max_steps < 0:
            each = math.ceil(len(batches.epoch(0)) / self.args.gradient_accumulation_steps)
            self.args.max_steps = math.ceil(self.args.num_train_epochs * each)
        if self.args.load_best_model_at_end:
            self.args.metric_for_best_model, self.args.greater_is_better = MAIN, True
        self.curve = Curve(Path(str(self.args.output_dir)))
        self.loop = StageTrainer(
            Trainee(model, task),
            self.args,
            batches,
            cached=self.stage.gradient_cache > 0,
            score=None if evaluator is None else _score(evaluator),
            held_out=None
            if eval_dataset is None
            else self._batches(training_data(eval_dataset, self.args.seed)),
            report=self._report,
            on_step=lambda loop, work, terms: self.progress.step(loop.state.global_step),
            callbacks=callbacks,
        )
        self.progress = Progress("training", self.args.max_steps, shown=False)

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        self.curve.add(step, values)
        self.progress.report(step, values)

    def _stage(self, loss: Loss, data: TrainingData) -> StageSettings:
        own = {name: getattr(self.args, name) for name in OWN}
        own |= {name: own[name] or {} for name in ("matryoshka", "mixing")}
        if self.args.gradient_checkpointing or getattr(self.args, CHECKPOINTING):
            own["gradient_checkpointing"] = True
        if not isinstance(self.args.adapter, Mapping | None):
            raise SettingsError(
                f"{WHERE}: adapter is {self.args.adapter!r}, expected a table such as "
                '{"kind": "lora", "rank": 16}'
            )
        stage = WrittenStage(
            **{
                **own,
                "losses": tables(loss, data),
                "batch_size": self.args.train_batch_size * self.args.world_size,
                "accumulate": self.args.gradient_accumulation_steps,
            }
        )
        check_numbers(stage, WHERE)
        return stage

    def _batches(self, data: TrainingData) -> Batches:
        mixing = fill(Mixing, self.stage.mixing, f"{WHERE} mixing")
        size = min(self.stage.batch_size, len(data))
        advice = f"lower {WORDING.name('batch_size')}, or set {WORDING.keep_last_rows}"
        return Batches(data, size, mixing, seed=self.args.seed, advice=advice)

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train to the last step; True goes on from the newest checkpoint in output_dir.

        Progress is shown on stderr, unless the arguments have disable_tqdm.
        """
        folder = Path(str(self.args.output_dir))
        writes = self.args.save_strategy != SaveStrategy.NO and self.loop.exchange.rank == 0
        with held(folder, "training") if writes else contextlib.nullcontext():
            return self._train(folder, resume_from_checkpoint)

    def _train(self, folder: Path, resume_from_checkpoint: str | bool | None) -> TrainOutput:
        newest = last_checkpoint(folder) if resume_from_checkpoint else None
        if newest is not None:
            check_data(folder, self.data)
        elif self.loop.exchange.rank == 0 and self.args.save_strategy != SaveStrategy.NO:
            mark_data(folder, self.data)
        self.progress = Progress(
            "training",
            self.args.max_steps,
            first=0 if newest is None else checkpoint_step(newest),
            shown=self.args.show_progress_bar and self.loop.exchange.rank == 0,
        )
        try:
            with dropout_set(
                self.model,
                dropout=self.stage.dropout,
                attention_dropout=self.stage.attention_dropout,
            ):
                check_views(self.loop.task, self.model, WHERE)
                done = self.loop.train(resume_from_checkpoint)
        finally:
            self.progress.close()
        if (cut := self.loop.cut()) and self.loop.exchange.rank == 0:
            warnings.warn(f"{WHERE}: {cut}", TruncationWarning, stacklevel=3)
        self.model = self.loop.trained()
        finish(self.model, self.stage.adapter)
        self.model.eval()
        return done

    def evaluate(self) -> dict[str, float]:
        """Scores by the evaluator, and the loss of eval_dataset, as "eval_..."."""
        if not self.measured:
            raise SettingsError(f"{WHERE}: nothing to measure; pass eval_dataset or evaluator")
        return self.loop.evaluate()

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Save the embedder, for polyvec and sentence-transformers; by default in output_dir."""
        model = self.loop.trained()
        if self.loop.exchange.rank == 0:
            model.save_pretrained(output_dir or Path(str(self.args.output_dir)) / "model")
        self.loop.exchange.wait()

    @property
    def state(self) -> transformers.TrainerState:
        """Steps, epoch and what was logged."""
        return self.loop.state


def training_data(rows: Rows, seed: int) -> TrainingData:
    """Rows of one data set, or of several by name."""
    named = rows if isinstance(rows, Mapping) else {"data": rows}
    sets: list[TrainingSet] = []
    for name, each in named.items():
        if hasattr(each, "to_dict") and hasattr(each, "columns"):  # pandas iterates over columns
            raise DataError(f"{WHERE}: {name} is a DataFrame; pass its .to_dict('records')")
        if isinstance(each, str | bytes) or not isinstance(each, Iterable):
            raise DataError(f"{WHERE}: {name} is {type(each).__name__}, expected a list of dicts")
        sets.append(rows_of(_dicts(each, name), name=name, seed=seed))
    return TrainingData(sets, seed=seed)


def _dicts(rows: Iterable[Any], name: str) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{WHERE}: {name} {number} is {type(row).__name__}, expected a dict of columns "
                'such as {"anchor": ..., "positive": ...}'
            )
        yield row


def tables(loss: Loss, data: TrainingData) -> tuple[Mapping[str, Any], ...]:
    """The `losses` of a stage."""
    if loss is None:
        scored = data[0].score is not None
        return ({"kind": "cosent"},) if scored else ()
    if _kind(loss).startswith("sentence_transformers."):
        raise SettingsError(
            f"{WHERE}: loss is {_kind(loss)}, which polyvec does not call; name the loss, such "
            'as "info_nce" (docs/losses.md has the names of both)'
        )
    if callable(loss):
        return ()
    if not isinstance(loss, str | Mapping | Sequence):
        raise SettingsError(f"{WHERE}: loss is {_kind(loss)}, expected a name, table or function")
    several = [loss] if isinstance(loss, str | Mapping) else loss
    found: list[Mapping[str, Any]] = []
    for each in several:
        if not isinstance(each, str | Mapping):
            raise SettingsError(f"{WHERE}: loss {each!r} is neither a name nor a table")
        found.append({"kind": each} if isinstance(each, str) else each)
    return tuple(found)


def _score(evaluator: Callable[[Embedder], float | Mapping[str, float]]) -> Score:
    def score(embedder: Embedder) -> Mapping[str, float]:
        found = evaluator(embedder)
        scores = found if isinstance(found, Mapping) else {"score": found}
        if not scores or not all(isinstance(each, Real) for each in scores.values()):
            raise InputError(
                f"{WHERE}: the evaluator returned {found!r}, expected a number, or numbers by name"
            )
        return {name: float(each) for name, each in scores.items()}

    return score


def _name(loss: Callable[..., Any]) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
