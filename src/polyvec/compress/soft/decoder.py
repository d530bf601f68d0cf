"""The language model that reads memories: what it predicts after one, and what it writes.

B rows, N predicted tokens of all rows, D state size, V vocabulary.
"""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.reading import Rows, adapter_off, read
from polyvec.compress.soft.writing import Advance
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.causal import kept_pairs
from polyvec.embed.embedder import Embedder
from polyvec.errors import InputError, ModelError
from polyvec.train.language_head import attach_head, log_probabilities

MEMORY = "memory"
Part = np.ndarray | str  # tokens, or the name of what stands there: MEMORY, or a task


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What a decoder reads, and what it should say.

    parts: tokens, MEMORY, and names of trained vectors. target: tokens. context: the text's
    tokens in place of the memory, for controls and teachers; None: the memory.
    """

    parts: tuple[Part, ...]
    target: np.ndarray
    context: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """States [N, D] before the predicted tokens, these tokens, and the row of each."""

    states_ND: Tensor
    targets_N: Tensor
    rows_N: Tensor

    def per_row(self, values_N: Tensor, count: int) -> Tensor:
        """The sum of a value over each row's tokens, float32 [count]."""
        start = values_N.new_zeros(count, dtype=torch.float32) + 0 * values_N.sum().float()
        return start.index_add(0, self.rows_N, values_N.float())


class Decoder(nn.Module):
    """A causal language model behind memories.

    shared: whether the weights are the encoder's; without_adapter: whether it is then computed
    without what was trained beside them. tasks: trained vectors by name.
    """

    def __init__(
        self, lm: Embedder, *, shared: bool, without_adapter: bool, tasks: Sequence[str]
    ) -> None:
        super().__init__()
        attach_head(lm)
        if lm.backbone.measured and lm.backbone.mechanism != "plan":
            raise ModelError(
                f"decoder {type(lm.backbone.model).__name__} takes no attention plan "
                f"({lm.backbone.layout_reason})"
            )
        self.lm = None if shared else lm
        object.__setattr__(self, "_shared", lm)
        self.without_adapter = without_adapter
        size = self.table.weight.shape[1]
        scale = self.table.weight.detach().float().std()
        self.tasks = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(size, device=scale.device) * scale) for name in tasks}
        )

    @property
    def embedder(self) -> Embedder:
        found: Any = self.lm if self.lm is not None else self._shared
        return cast(Embedder, found)

    @property
    def backbone(self) -> Backbone:
        return self.embedder.backbone

    @property
    def table(self) -> Any:
        return self.backbone.model.get_input_embeddings()

    @property
    def tokenizer(self) -> Any:
        return self.embedder.tokenizer

    @property
    def prefix(self) -> tuple[int, ...]:
        """Tokens that every text begins with (BOS), as the tokenizer has it."""
        return leading(self.tokenizer)

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def trained(self, kind: str) -> list[nn.Module]:
        """What stages train of a model of its own, by decoder_train."""
        if kind == "full":
            return [self.backbone]
        named = self.backbone.model.named_modules() if kind == "lora" else ()
        return [each for name, each in named if name.endswith(("lora_A", "lora_B"))]

    def computing(self, *, teacher: bool = False) -> contextlib.AbstractContextManager[None]:
        """The weights that decode; a teacher never has the adapter."""
        return adapter_off(self.backbone, self.without_adapter or teacher)

    def rows(
        self, asked: Sequence[Asked], memory: MemoryBatch | None
    ) -> tuple[Rows, list[np.ndarray]]:
        """The numbers of each row's inputs, without its target."""
        rows = Rows(self.table)
        states: list[np.ndarray] = [np.zeros(0, np.int64)] * len(asked)
        if memory is not None and memory.states_BMD is not None:
            states = rows.memories(memory)
        named = {name: rows.vectors(vector[None]) for name, vector in self.tasks.items()}
        found = []
        for each, own in zip(asked, states, strict=True):
            cached = memory is not None and bool(memory.pairs) and each.context is None
            numbers = [] if cached else [rows.tokens(self.prefix)]
            for part in each.parts:
                if isinstance(part, np.ndarray):
                    numbers.append(rows.tokens(part))
                elif part != MEMORY:
                    numbers.append(named[part])
                else:
                    numbers.append(own if each.context is None else rows.tokens(each.context))
            found.append(np.concatenate(numbers))
        return rows, found

    def predict(
        self, asked: Sequence[Asked], memory: MemoryBatch | None, *, teacher: bool = False
    ) -> Predicted:
        """States from which each target's tokens are predicted.

        memory: of these rows, in order; None where every row has a context of its own.
        """
        rows, starts = self.rows(asked, memory)
        numbers, places, owners = [], [], []
        for row, (each, start) in enumerate(zip(asked, starts, strict=True)):
            if not len(start):
                raise InputError("nothing is read before what is predicted; the prompt is empty")
            numbers.append(np.concatenate([start, rows.tokens(each.target[:-1])]))
            places.append(len(start) - 1 + np.arange(len(each.target)))
            owners.append(np.full(len(each.target), row))
        inputs_BTD, real_BT = rows.padded(numbers)
        with self.computing(teacher=teacher):
            found = read(self.backbone, inputs_BTD, real_BT, modes=self.modes, **past_of(memory))
        rows_N = torch.from_numpy(np.concatenate(owners)).to(inputs_BTD.device)
        place_N = torch.from_numpy(np.concatenate(places)).to(inputs_BTD.device)
        targets = np.concatenate([each.target for each in asked]).astype(np.int64)
        return Predicted(
            found.states_BTD[rows_N, place_N], torch.from_numpy(targets).to(rows_N.device), rows_N
        )

    @property
    def modes(self) -> tuple[str, ...]:
        return ("causal",) * self.backbone.num_layers

    def log_probabilities(self, found: Predicted, *, teacher: bool = False) -> Tensor:
        """Of each predicted token, float32 [N], in nats."""
        with self.computing(teacher=teacher):
            return log_probabilities(self.backbone, found.states_ND, found.targets_N)

    def logits(self, states_ND: Tensor, *, teacher: bool = False) -> Tensor:
        with self.computing(teacher=teacher):
            found: Tensor = self.backbone.logits(states_ND).float()
            return found

    def begin(self, asked: Sequence[Asked], memory: MemoryBatch | None) -> tuple[Tensor, Advance]:
        """Logits [B, V] of each row's first written token, and what gives those of the next."""
        rows, numbers = self.rows(asked, memory)
        inputs_BTD, real_BT = rows.padded(numbers)
        if not bool(real_BT.any(1).all()):
            raise InputError("nothing is read before what is written; the prompt is empty")
        past = past_of(memory)
        with self.computing():
            found = read(self.backbone, inputs_BTD, real_BT, modes=self.modes, keep=True, **past)
        seen_BP = torch.cat([past["past"][1], real_BT], 1) if past else real_BT
        row_B = torch.arange(len(asked), device=real_BT.device)
        first_BD = found.states_BTD[row_B, real_BT.sum(1) - 1]

        def advance(ids_B: Tensor) -> Tensor:
            nonlocal found, seen_BP
            assert found.cache is not None
            real = torch.ones_like(ids_B, dtype=torch.bool)[:, None]
            with self.computing():
                found = read(
                    self.backbone,
                    self.table(ids_B)[:, None],
                    real,
                    modes=self.modes,
                    start_B=found.next_B,
                    past=(tuple(kept_pairs(found.cache)), seen_BP),
                    keep=True,
                )
            seen_BP = torch.cat([seen_BP, real], 1)
            return self.logits(found.states_BTD[:, 0])

        return self.logits(first_BD), advance


def past_of(memory: MemoryBatch | None) -> dict[str, Any]:
    """Arguments of `read` for a memory of keys and values."""
    if memory is None or not memory.pairs:
        return {}
    return {"past": (memory.pairs, memory.real_BM), "start_B": memory.next_B}


def leading(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that a tokenizer puts before a text."""
    ids = tokenizer("").input_ids
    special = set(tokenizer.all_special_ids)
    return tuple(each for each in ids if each in special and each != tokenizer.eos_token_id)


def token_ids(tokenizer: Any, text: str, *, markup: bool = False) -> np.ndarray:
    """A text's tokens without special ones; of user text special strings stay characters."""
    if not text:
        return np.zeros(0, np.int64)
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=not markup)
    return np.array(found.input_ids, np.int64)


SLOT = re.compile(r"\{(memory|question|task)\}")


def prompt_parts(tokenizer: Any, prompt: str, *, task: str, question: str = "") -> tuple[Part, ...]:
    """A prompt as tokens, the memory and the task's vector; user text is never markup."""
    found: list[Part] = []
    for number, piece in enumerate(SLOT.split(prompt)):
        if number % 2 == 0:
            ids = token_ids(tokenizer, piece, markup=True)
        elif piece == "question":
            ids = token_ids(tokenizer, question)
        else:
            found.append(MEMORY if piece == MEMORY else task)
            continue
        if len(ids):
            found.append(ids)
    return tuple(found)
