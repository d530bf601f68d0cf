"""The section [[stage]] of a recipe, as plain values: reading it needs no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from polyvec.errors import SettingsError

# The least value of each number, and the greatest that is allowed.
RANGES: Mapping[str, tuple[float, float]] = {
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "gradient_cache": (0, math.inf),
    "max_length": (1, math.inf),
    "query_max_length": (1, math.inf),
    "learning_rate": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "num_train_epochs": (0, math.inf),
    "max_steps": (-1, math.inf),
    "seed": (0, 2**32 - 1),  # numpy's
}
LOSS = "losses[{}]"  # what errors call a loss, by its place
SHARES = ("dropout", "attention_dropout")  # at least 0 and less than 1


@dataclass(frozen=True, slots=True)
class Wording:
    """What errors call a stage and its settings.

    stage: with its kind as "{}". loss: with its place as "{}". names: of settings that are called
    otherwise than in a recipe.
    """

    stage: str = "[[stage]] '{}'"
    loss: str = LOSS
    keep_last_rows: str = "drop_last = false"
    names: Mapping[str, str] = field(default_factory=dict)

    def name(self, setting: str) -> str:
        return self.names.get(setting, setting)


@dataclass(frozen=True, slots=True)
class StageSettings:
    """A stage of training; stages run in the order of the file, each on what the last one left.

    kind: a name in TASKS ("scl", "wcl", "ucl", "mntp", "ntp", ...) or "package.module:Class"; its
        own settings stand beside these and are kept in `settings`.
    name: of the stage's folder; by default its kind.
    data: tables with `path` or `name`, and how to read them (data/training/sources.py).
    losses: tables with `kind` (a name in LOSSES), `weight` and settings; of stages that compare
        vectors. `matryoshka`: settings of the nested dimensions that each is summed over.
    adapter: a table with `kind` ("lora", "qlora", "bitfit", "prompt", "bottleneck", "full",
        "frozen") and settings; None trains what the last stage trained, "full" in the first.
    train: parts that are trained beside the adapter: "pooling", "projections", "new_tokens".
    batch_size: rows of a whole batch, over all processes.
    accumulate: batches whose gradients are added before a step; each has its own negatives.
    gradient_cache: tokens of a piece; 0: the whole batch in one forward pass.
    max_length, query_max_length: most tokens of documents (and queries) while training.
    dropout, attention_dropout: in place of the model's own, while training.
    learning_rate, ... : as transformers' TrainingArguments names them.
    trainer: other TrainingArguments by their names.
    """

    wording: ClassVar[Wording] = Wording()

    @property
    def where(self) -> str:
        """What errors call it."""
        return self.wording.stage.format(self.kind)

    kind: str
    name: str | None = None
    data: tuple[Mapping[str, Any], ...] = ()
    losses: tuple[Mapping[str, Any], ...] = ()
    matryoshka: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    train: tuple[str, ...] = ("pooling", "projections", "new_tokens")
    mixing: Mapping[str, Any] = field(default_factory=dict)
    mining: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    accumulate: int = 1
    gradient_cache: int = 0
    max_length: int | None = None
    query_max_length: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    learning_rate: float = 2e-5
    lr_scheduler_type: str = "linear"
    warmup_steps: int | float = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    num_train_epochs: float = 1.0
    max_steps: int = -1
    seed: int = 42
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    trainer: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def check_numbers(stage: StageSettings, where: str) -> None:
    """Raises SettingsError for a number that transformers or torch would only trip over later."""
    for name in SHARES:
        share = getattr(stage, name)
        if share is not None and not 0 <= share < 1:
            raise SettingsError(f"{where}: {name} {share} is not at least 0 and less than 1")
    if stage.bf16 and stage.fp16:
        raise SettingsError(f"{where}: bf16 and fp16 are both true; choose one")
    for name, (least, most) in RANGES.items():
        value = getattr(stage, name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:
            limit = f" and at most {most}" if most < math.inf else ""
            raise SettingsError(
                f"{where}: {stage.wording.name(name)} is {value!r}, expected a number of at "
                f"least {least}{limit}"
            )
    if stage.learning_rate == 0:
        raise SettingsError(f"{where}: learning_rate is 0, so no weight would move")
    if stage.max_steps == 0 or (stage.max_steps < 0 and not stage.num_train_epochs):
        raise SettingsError(
            f"{where}: max_steps {stage.max_steps} and num_train_epochs "
            f"{stage.num_train_epochs:g} give no step; max_steps -1 trains whole epochs"
        )
