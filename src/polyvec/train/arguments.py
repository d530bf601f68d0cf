"""transformers' TrainingArguments of a stage."""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from polyvec.errors import SettingsError, known
from polyvec.train.settings import StageSettings

# transformers 5.17 has the second name only, 5.23 both, and the second is deprecated.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
# Arguments that a stage sets, by the name of its own setting.
STAGE_SETS: Mapping[str, str] = {
    **{each.name: each.name for each in dataclasses.fields(StageSettings)},
    "output_dir": "",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "activation_checkpointing": "gradient_checkpointing",
}
MAIN = "eval_main"  # the score that decides which checkpoint is the best


def training_arguments(
    stage: StageSettings,
    output: Path,
    num_batches: int,
    *,
    device: str = "cpu",
    evaluated: bool = False,
    where: str = "",
) -> TrainingArguments:
    """transformers' arguments of a stage; SettingsError for one that it does not know.

    evaluated: whether scores are measured, before each checkpoint; the best one is then kept.
    """
    check_trainer_table(stage.trainer, f"{where} trainer")
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
        "max_steps": steps,
        "seed": stage.seed,
        "bf16": stage.bf16,
        "fp16": stage.fp16,
        CHECKPOINTING: stage.gradient_checkpointing,
        "torch_compile": stage.torch_compile,
        "use_cpu": device == "cpu",
        "save_strategy": "steps",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // 200),
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "log_level": "error",
        **stage.trainer,
    }
    if "save_steps" not in given:
        # A multiple, so that a resumed run reports the same means as one that was not killed.
        each = int(given["logging_steps"]) if given["logging_steps"] >= 1 else 1
        given["save_steps"] = math.ceil(steps / 10 / each) * each
    if evaluated:
        given |= {
            "eval_strategy": given["save_strategy"],
            "eval_steps": given["save_steps"],
            "load_best_model_at_end": True,
            "metric_for_best_model": MAIN,
            "greater_is_better": True,
        }
    try:
        arguments = TrainingArguments(**given)
        get_reporting_integration_callbacks(arguments.report_to)  # only a Trainer checks the names
        return arguments
    except (TypeError, ValueError, ImportError) as error:
        raise SettingsError(f"{where} trainer: {' '.join(str(error).split())}") from None


def check_trainer_table(table: Mapping[str, Any], where: str) -> None:
    """Raises SettingsError for an argument that transformers lacks, or that a stage sets itself."""
    names = TrainingArguments.__dataclass_fields__
    for key in table:
        if key not in names:
            hint = known(key, names).partition(" Known:")[0]
            raise SettingsError(
                f"{where}: {key!r} is not an argument of transformers' TrainingArguments.{hint}"
            )
        if key in STAGE_SETS:
            own = STAGE_SETS[key]
            raise SettingsError(
                f"{where}: {key!r} is set by the stage"
                + (f"; write {own} beside trainer, not in it" if own else ", in the run's folder")
            )


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
