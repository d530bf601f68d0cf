"""The section [[stage]] of a recipe, as plain values: reading it needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
