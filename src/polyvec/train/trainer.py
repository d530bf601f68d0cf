"""The loop: transformers' Trainer with batches, steps and checkpoints of ours.

Batches of row numbers are a pure function of (seed, epoch), the same in every process; accelerate
neither shards nor scales anything. What is left to transformers: optimiser, schedule, clipping,
mixed precision, resuming, and reports to TensorBoard or W&B.
"""

import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from polyvec.data.training.batches import Batches
from polyvec.embed.embedder import Embedder
from polyvec.errors import MissingExtraError, SettingsError, TrainingError
from polyvec.storage.files import atomic_file
from polyvec.train import engine
from polyvec.train.adapters import check_gradients, has_gradient
from polyvec.train.arguments import CHECKPOINTING, MAIN
from polyvec.train.checkpoints import (
    STATE,
    WEIGHTS,
    check_whole,
    last_checkpoint,
    load_weights,
    save_weights,
)
from polyvec.train.exchange import Exchange
from polyvec.train.meter import Meter
from polyvec.train.report import SCORE
from polyvec.train.sample import Numbers, Sample
from polyvec.train.task import Work
from polyvec.train.trainee import EMBEDDER, Trainee

try:
    from accelerate.utils import save_fsdp_optimizer
except ImportError:
    raise MissingExtraError("accelerate", "train", "training") from None

PATIENCE = 10  # batches without a gradient before a run stops
# Scores of an embedder by name; the first is the main one.
Score = Callable[[Embedder], Mapping[str, float]]
Report = Callable[[int, Mapping[str, float]], None]


class StageTrainer(Trainer):
    """transformers' Trainer for one stage."""

    def __init__(
        self,
        trainee: Trainee,
        args: TrainingArguments,
        batches: Batches,
        *,
        cached: bool = False,
        score: Score | None = None,
        held_out: Batches | None = None,
        report: Report = lambda step, values: None,
        on_step: Callable[["StageTrainer", Work, engine.Terms], None] = lambda *_: None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """`score` measures the embedder on a held-out part, `held_out` are rows whose loss is
        measured; `report` gets the figures of the loop. The first process calls both.
        """
        self.task, self.cached, self.on_step = trainee.task, cached, on_step
        self.score, self.held_out, self.report = score, held_out, report
        if hasattr(self.task, "prepare"):
            self.task.prepare(batches.data)
        self.gradients_checked, self.batches_tried = False, 0
        self.batch_places: list[str] = []
        self.num_texts = self.num_cut = 0
        self.sample = Sample(batches)
        # Whatever a Dataset holds goes through a collator; row numbers pass as they are.
        try:
            super().__init__(
                trainee,
                args,
                data_collator=list,  # type: ignore[arg-type]
                train_dataset=Numbers(len(batches.data)),
                eval_dataset=Numbers(0),  # what is measured is ours, but there must be one
                callbacks=list(callbacks),
            )
        except RuntimeError as error:  # of a report's package, such as report_to = "wandb"
            if "to be installed" not in str(error):
                raise
            raise SettingsError(f"report_to: {error}") from None
        self.remove_callback(PrinterCallback)
        # FSDP shards the module in place: vectors and saved models come from a copy.
        self.whole = copy.deepcopy(trainee).cpu() if self.is_fsdp_enabled else None
        if self.is_fsdp_enabled:
            # The loss is outside of the forward, where FSDP would not gather their weights.
            self.accelerator.state.fsdp_plugin.ignored_modules = [trainee.heads]
        self.exchange = Exchange.here()
        self.folder = Path(str(args.output_dir))
        self.meter = Meter(
            trainee.embedder,
            trainee.jobs,
            cached=cached,
            checkpointed=bool(getattr(args, CHECKPOINTING)),
            half=args.bf16 or args.fp16,
            cost=getattr(self.task, "cost", None),
        )

    @property
    def trainee(self) -> Trainee:
        """The module without what accelerate wraps around it."""
        found: Trainee = self.accelerator.unwrap_model(self._module)
        return found

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train to the last step, from the newest whole checkpoint if it is True."""
        if resume_from_checkpoint is True:
            found = last_checkpoint(self.folder)
            resume_from_checkpoint = None if found is None else str(found)
        if resume_from_checkpoint:
            check_whole(Path(resume_from_checkpoint), self._state_files())
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / STATE))
            if 0 < self.args.max_steps <= state.global_step:
                return self._finished(state, Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _state_files(self) -> list[str]:
        """A checkpoint's files beside the weights; FSDP and DeepSpeed have folders of their own."""
        files = [] if self.is_deepspeed_enabled else ["scheduler.pt"]
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            files.append("optimizer.pt")
        alone = self.exchange.size == 1
        return [*files, "rng_state.pth" if alone else f"rng_state_{self.exchange.rank}.pth"]

    def _finished(self, state: TrainerState, checkpoint: Path) -> TrainOutput:
        """The weights of the last step; transformers would train for one more."""
        self.state, self.whole = state, None
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        load_weights(self.trainee, Path(best) if best else checkpoint)
        return TrainOutput(state.global_step, 0.0, {})

    # ---- batches and steps ------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Numbers of batches; not prepared by accelerate, which would shard them."""
        numbers = Numbers(len(self.sample.batches.data))
        return DataLoader(numbers, batch_sampler=self.sample, collate_fn=list)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the gradient of a batch; returns the loss of the whole batch."""
        model.train()
        (batch_number,) = inputs
        rows = self.sample.rows(batch_number)
        self.batch_places = [row.place or repr(row.query[:40]) for row in rows]
        if hasattr(self.task, "batch_number"):
            self.task.batch_number = batch_number
        shares = self.exchange.shares(len(rows))
        work = self.task.work(rows, shares, self.exchange.rank)
        count = self.current_gradient_accumulation_steps
        terms = engine.step(
            self._worker(model),
            self._in_step(work.pieces),
            lambda found: self._checked(self.task.loss(found, work.facts)),
            cached=self.cached,
            backward=lambda total: self.accelerator.backward(total / count),
            collect=lambda found: self.exchange.collect(work, found),
        )
        if self.accelerator.sync_gradients and not self.is_deepspeed_enabled:
            self.exchange.average(model.parameters())
        if not self.gradients_checked and not self.is_fsdp_enabled:
            self._check_gradients()
        self.meter.add(work, terms)
        self.num_texts += work.num_texts
        self.num_cut += work.num_cut
        self.on_step(self, work, terms)
        return engine.total(terms) / count

    def _check_gradients(self) -> None:
        """A batch may have nothing to compare: pairs of equal scores, a queue that is empty yet."""
        self.batches_tried += 1
        last = self.state.global_step + 1 >= self.args.max_steps > 0
        if has_gradient(self.trainee) or self.batches_tried == PATIENCE or last:
            check_gradients(self.trainee)
            self.gradients_checked = True

    def _worker(self, model: nn.Module) -> Any:
        """What computes pieces: FSDP and DeepSpeed must see each forward, DDP need not.

        DDP's own exchange knows neither weights that a batch does not use, nor heads that only
        the loss uses, nor a cache; `Exchange.average` does its work after the last piece.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return model
        return self.accelerator.unwrap_model(model)

    def _in_step(self, pieces: Sequence[engine.Piece]) -> Sequence[engine.Piece]:
        """The same number of pieces in each process, where layers wait for each other."""
        if not self.is_fsdp_enabled:
            return pieces
        missing = self.exchange.most(len(pieces)) - len(pieces)
        return [*pieces, *[dataclasses.replace(pieces[-1], num_rows=0)] * missing]

    def _checked(self, terms: engine.Terms) -> engine.Terms:
        for name, term in terms.items():
            if not bool(torch.isfinite(term.detach()).all()):
                self._raise_not_finite(f"the loss {name!r}")
        if torch.is_grad_enabled() and not any(term.requires_grad for term in terms.values()):
            raise SettingsError(
                f"the loss {', '.join(map(repr, terms))} has no gradient: it does not depend on "
                "the vectors, or detaches them"
            )
        return terms

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With fp16 a scaler skips such a step and lowers its scale.
        if found is not None and not self.args.fp16 and not math.isfinite(float(found)):
            self._raise_not_finite("the gradient")
        return found

    def _raise_not_finite(self, what: str) -> NoReturn:
        kept = last_checkpoint(self.folder)
        raise TrainingError(
            f"step {self.state.global_step + 1}: {what} is not a finite number. The batch has "
            f"{', '.join(self.batch_places[:3])} ({len(self.batch_places)} rows). "
            + (f"The last good weights are in {kept}. " if kept else "")
            + "Try a smaller learning_rate or max_grad_norm, or bf16 in place of fp16"
        )

    # ---- figures ----------------------------------------------------------------------------

    def cut(self) -> str:
        """How many of the texts read since the start were cut, over all processes; "" if none."""
        num_texts, num_cut = self.exchange.sums([self.num_texts, self.num_cut])
        if not num_cut:
            return ""
        return (
            f"{num_cut:,.0f} of {num_texts:,.0f} texts read ({100 * num_cut / num_texts:.3g} %) "
            "were cut, see max_length and query_max_length"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report figures, with those of the meter, to the run and to transformers' callbacks."""
        if "loss" in logs:
            logs |= self.meter.read(self.exchange)
        super().log(logs, start_time)
        if self.exchange.rank == 0 and ("loss" in logs or any(k.startswith(SCORE) for k in logs)):
            self.report(self.state.global_step, logs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores of the embedder as it is now, by the name "eval_..."; "eval_main" is the first.

        Without `score` the main one is the negative loss of the held-out rows.
        """
        found: dict[str, float] = {}
        with self.meter.stopped(), torch.random.fork_rng():
            if self.score is not None:
                embedder = self.trained()
                own = dict(self.score(embedder)) if self.exchange.rank == 0 else {}
                found |= self.exchange.broadcast(own)
            if self.held_out is not None:
                found["loss"] = self.held_out_loss(self.held_out)
        metrics = {f"{SCORE}{name}": float(value) for name, value in found.items()}
        self.log(dict(metrics))
        first = next(iter(found), None)
        if first is not None:
            metrics[MAIN] = -found[first] if first == "loss" else found[first]
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def held_out_loss(self, batches: Batches) -> float:
        """The mean loss of the batches of an epoch, without dropout."""
        worker = self._worker(self.model_wrapped)
        worker.eval()
        total = 0.0
        with torch.no_grad():
            for place in range(len(batches.epoch(0))):
                rows = batches.rows(0, place)
                work = self.task.work(rows, self.exchange.shares(len(rows)), self.exchange.rank)
                pieces = self._in_step(work.pieces)
                found = engine.joined(pieces, worker(pieces))
                terms = self.task.loss(self.exchange.collect(work, found), work.facts)
                total += float(engine.total(terms))
        worker.train()
        return total / len(batches.epoch(0))

    # ---- checkpoints ------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A folder checkpoint-STEP that is there whole or not at all."""
        self.store_flos()
        final = self.folder / f"checkpoint-{self.state.global_step}"
        partial = final.with_name(f".{final.name}.partial")
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.exchange.wait()
        try:
            with self.meter.stopped():
                self._write_checkpoint(partial)
        except (OSError, RuntimeError, SafetensorError) as error:
            # A full disk is a RuntimeError in torch, and safetensors has an error of its own.
            shutil.rmtree(partial, ignore_errors=True)
            raise self._not_written(final, error) from None
        self.exchange.wait()
        if self.args.should_save:
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(partial / STATE))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            self._rotate()

    def _write_checkpoint(self, folder: Path) -> None:
        self._save_weights(folder)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))

    def _not_written(self, path: Path, error: Exception) -> TrainingError:
        kept = last_checkpoint(self.folder)
        return TrainingError(
            f"{path}: could not be written ({' '.join(str(error).split())[:120]}). "
            + (f"The last whole checkpoint is {kept}. " if kept else "")
            + "Make room on the disk, then go on with --resume"
        )

    def _rotate(self) -> None:
        rotate_checkpoints(
            output_dir=str(self.folder),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )

    def _save_weights(self, folder: Path, *, final: bool = False) -> None:
        """Those that a run goes on with; `final` ones are the embedder's alone, without heads."""
        kept = self.trainee.kept()
        state = {
            name: each
            for name, each in whole_state(self._module).items()
            if kept(name) and (not final or name.startswith(EMBEDDER))
        }
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(state, folder / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # transformers would write the model once more here.
        save_fsdp_optimizer(
            self.accelerator.state.fsdp_plugin,
            self.accelerator,
            self.optimizer,
            self._module,
            output_dir,
        )
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self._module if model is None else model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_weights(self._module, Path(str(self.state.best_model_checkpoint)))

    def save_final(self, folder: Path, done: str, facts: Mapping[str, Any]) -> None:
        """The weights after the last step; the file `done`, with facts, says they are whole."""
        try:
            self._save_weights(folder, final=True)
            if self.args.should_save:
                with atomic_file(folder / done, "w") as stream:
                    json.dump({**facts, "steps": self.state.global_step}, stream, indent=1)
        except (OSError, SafetensorError) as error:
            raise self._not_written(folder, error) from None
        self.exchange.wait()

    def trained(self) -> Embedder:
        """The embedder as it is now, whole in every process."""
        if self.whole is None:
            return self.trainee.embedder
        self.whole.load_state_dict(whole_state(self._module))
        return self.whole.embedder


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name; those that FSDP shards are gathered, in every process."""
    found = {}
    for name, each in module.state_dict().items():
        found[name] = each.full_tensor().cpu() if hasattr(each, "full_tensor") else each
    return found
