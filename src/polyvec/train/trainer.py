"""The loop: transformers' Trainer with batches, steps and checkpoints of ours.

Batches of row numbers are a pure function of (seed, epoch), the same in every process; accelerate
neither shards nor scales anything. What is left to transformers: optimiser, schedule, clipping,
mixed precision, resuming, and reports to TensorBoard or W&B.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import rotate_checkpoints

from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError, ModelError, PolyvecError, SettingsError
from polyvec.train import engine
from polyvec.train.exchange import Exchange
from polyvec.train.settings import StageSettings
from polyvec.train.task import Task, Work
from polyvec.train.trainee import Trainee

WEIGHTS = "model.safetensors"
STATE = "trainer_state.json"
# Row numbers of each batch of an epoch.
Batches = Callable[[int], Sequence[Sequence[int]]]


class NotANumberError(PolyvecError):
    """The loss is NaN or infinite; the message names the batch."""


class Sample(Sampler[list[int]]):
    """The batches of the epoch that the loop is in; as many in each epoch as in the first."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.epoch = batches, 0
        self.first = batches(0)

    @property
    def batch_sampler(self) -> "Sample":
        """Itself: transformers sets the epoch of what is wrapped under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[list[int]]:
        found = self.first if self.epoch == 0 else self.batches(self.epoch)
        if len(found) < len(self):
            found = [*found, *self.first[: len(self) - len(found)]]
        return iter([list(each) for each in found[: len(self)]])


class StageTrainer(Trainer):
    """transformers' Trainer for one stage."""

    def __init__(
        self,
        trainee: Trainee,
        task: Task,
        args: TrainingArguments,
        rows: Sequence[TrainingRow],
        batches: Batches,
        *,
        cached: bool = False,
        on_step: Callable[["StageTrainer", Work, engine.Terms], None] = lambda *_: None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.task, self.rows, self.cached, self.on_step = task, rows, cached, on_step
        self.sample = Sample(batches)
        self.last_step, self.batch_of_step = -1, 0
        # Whatever a Dataset holds goes through a collator; row numbers pass as they are.
        super().__init__(
            trainee,
            args,
            data_collator=list,  # type: ignore[arg-type]
            train_dataset=range(len(rows)),
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.exchange = Exchange.here()
        self.folder = Path(str(args.output_dir))

    @property
    def trainee(self) -> Trainee:
        """The module without what accelerate wraps around it."""
        found: Trainee = self.accelerator.unwrap_model(self._module)
        return found

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    # ---- batches and steps ------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of row numbers; not prepared by accelerate, which would shard them."""
        return DataLoader(
            range(len(self.rows)),  # type: ignore[arg-type]
            batch_sampler=self.sample,
            collate_fn=list,
        )

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the gradient of a batch of row numbers; returns the loss of the whole batch."""
        model.train()
        rows = [self.rows[number] for number in inputs]
        shares = self.exchange.shares(len(rows))
        if hasattr(self.task, "batch_number"):
            self.task.batch_number = self._batch_number()
        work = self.task.work(rows, shares, self.exchange.rank)
        count = self.current_gradient_accumulation_steps

        def loss(found: engine.Rows) -> engine.Terms:
            terms = self.task.loss(found, work.facts)
            self._check_terms(terms, rows)
            return terms

        terms = engine.step(
            self.accelerator.unwrap_model(model),
            work.pieces,
            loss,
            cached=self.cached,
            backward=lambda total: self.accelerator.backward(total / count),
            collect=lambda found: self.exchange.collect(work, found),
        )
        if self.accelerator.sync_gradients:
            self.exchange.average(model.parameters())
        self.on_step(self, work, terms)
        return engine.total(terms) / count

    def _batch_number(self) -> int:
        """Of this batch in the run, from 0; the same after a resume."""
        step = self.state.global_step
        self.batch_of_step = self.batch_of_step + 1 if step == self.last_step else 0
        self.last_step = step
        return step * self.args.gradient_accumulation_steps + self.batch_of_step

    def _check_terms(self, terms: engine.Terms, rows: Sequence[TrainingRow]) -> None:
        bad = [name for name, term in terms.items() if not bool(torch.isfinite(term.detach()))]
        if bad:
            places = ", ".join(row.place or repr(row.query[:40]) for row in rows[:3])
            raise NotANumberError(
                f"step {self.state.global_step + 1}: the loss {bad[0]!r} is not a number. The "
                f"batch begins with {places}; checkpoints hold the last good weights. Try a "
                "smaller learning_rate, or bf16 in place of fp16"
            )

    # ---- checkpoints ------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A folder checkpoint-STEP that is there whole or not at all."""
        self.store_flos()
        final = self.folder / f"checkpoint-{self.state.global_step}"
        partial = final.with_name(f".{final.name}.partial")
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.exchange.wait()
        self.save_model(str(partial), _internal_call=True)
        self._save_optimizer_and_scheduler(str(partial))
        self._save_scaler(str(partial))
        self._save_rng_state(str(partial))
        self.exchange.wait()
        if not self.args.should_save:
            return
        self.state.save_to_json(str(partial / STATE))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        rotate_checkpoints(
            output_dir=str(final.parent),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights that are trained, heads, and buffers."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self._module.state_dict() if state_dict is None else state_dict
        save_weights({k: v for k, v in state.items() if self._kept(k)}, folder / WEIGHTS)

    def _kept(self, name: str) -> bool:
        return self.trainee.kept()(name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self._module if model is None else model, Path(resume_from_checkpoint))


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Tensors by name; those that share memory (tied weights) once."""
    found, seen = {}, set()
    for name, each in state.items():
        key = (each.data_ptr(), each.shape, each.stride()) if each.numel() else name
        if key not in seen:
            seen.add(key)
            found[name] = each.detach().contiguous().cpu()
    save_file(found, path, metadata={"format": "pt"})


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Weights of a checkpoint; ModelError if they belong to another model."""
    path = checkpoint / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{checkpoint}: not a checkpoint, it has no {WEIGHTS}")
    result = model.load_state_dict(load_file(path), strict=False)
    if result.unexpected_keys:
        raise ModelError(
            f"{path}: holds {result.unexpected_keys[0]}, which this model does not have; was it "
            "written by another recipe?"
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage."""
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and (path / STATE).is_file()
    ]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def training_arguments(
    stage: StageSettings, output: Path, num_batches: int, *, device: str = "cpu", where: str = ""
) -> TrainingArguments:
    """transformers' arguments of a stage; SettingsError for one that it does not know."""
    steps = stage.max_steps
    if steps < 0:
        per_epoch = math.ceil(num_batches / stage.accumulate)
        steps = math.ceil(stage.num_train_epochs * per_epoch)
    given: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": max(1, stage.batch_size // _world_size()),
        "gradient_accumulation_steps": stage.accumulate,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": stage.lr_scheduler_type,
        "warmup_steps": stage.warmup_steps,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "num_train_epochs": stage.num_train_epochs,
        "max_steps": stage.max_steps,
        "seed": stage.seed,
        "bf16": stage.bf16,
        "fp16": stage.fp16,
        "activation_checkpointing": stage.gradient_checkpointing,
        "torch_compile": stage.torch_compile,
        "use_cpu": device == "cpu",
        "save_strategy": "steps",
        "save_steps": max(1, math.ceil(steps / 10)),
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_broadcast_buffers": False,
        "log_level": "error",
    }
    try:
        return TrainingArguments(**{**given, **stage.trainer})
    except (TypeError, ValueError, ImportError) as error:
        raise SettingsError(f"{where} trainer: {' '.join(str(error).split())}") from None


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_rows(rows: Sequence[TrainingRow], where: str) -> None:
    """Raises DataError for a stage without rows, and for a row with an empty text."""
    if not rows:
        raise DataError(f"{where}: no rows to train on")
    for number, row in enumerate(rows):
        for text in row.texts:
            if not text.strip():
                raise DataError(f"{row.place or f'row {number}'}: a text is empty")
