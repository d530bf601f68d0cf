"""Rotary frequencies that follow the length of a text are those of each text alone.

longrope (Phi-3) and dynamic NTK pick their frequencies by the largest position of a batch, and
transformers (5.23) keeps what it picked in the module: a text's states would depend on its
neighbours and on what was computed before. Such modules are found by measurement, and compute
each text of a batch on a fresh copy of themselves.

B texts, T tokens of the longest or, packed, of all.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyvec.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBED = 4  # positions whose rotation is compared
BEYOND = 8  # how far the probe reaches past the longest declared length

_lengths: ContextVar[tuple[int, ...]] = ContextVar("polyvec_text_lengths", default=())


@contextlib.contextmanager
def texts_of(lengths: Sequence[int]) -> Iterator[None]:
    """Inside, the forwards of this thread compute texts of these lengths."""
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def install(model: PreTrainedModel) -> int:
    """Let every rotary module that follows lengths compute each text alone; how many there are."""
    found = [module for module in model.modules() if _is_rotary(module)]
    followers = [module for module in found if _follows_length(module)]
    for module in followers:
        if not isinstance(module.forward, RotaryOfEachText):
            _reset(module)
            module.forward = RotaryOfEachText(module)
    return len(followers)


class RotaryOfEachText:
    """The forward of one rotary module. A class of this file, so that models pickle."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shortest = min(_declared_lengths(module))

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        lengths = _lengths.get()
        rows = [self._class_of(length) for length in lengths]
        if len(set(rows)) < 2 or position_ids.ndim != 2:
            return _fresh(self.module)(x, position_ids, *args, **kwargs)
        packed = position_ids.shape == (1, sum(lengths))
        if packed:
            texts_BT = list(position_ids[0].split(list(lengths)))
        else:
            # Padding counts on, and would be the longest text of its row.
            places_BT = position_ids.expand(len(lengths), -1)
            ends_B1 = places_BT.gather(1, torch.tensor(lengths, device=x.device)[:, None] - 1)
            texts_BT = list(torch.minimum(places_BT, ends_B1))
        found: list[Any] = [None] * len(lengths)
        for kind in dict.fromkeys(rows):
            own = [i for i, row in enumerate(rows) if row == kind]
            places = torch.cat([texts_BT[i] for i in own])[None]
            out = _fresh(self.module)(x, places, *args, **kwargs)
            sizes = [len(texts_BT[i]) for i in own]
            for i, *parts in zip(own, *(part.split(sizes, 1) for part in _parts(out)), strict=True):
                found[i] = parts
        joined = tuple(
            torch.cat(list(part), 1 if packed else 0) for part in zip(*found, strict=True)
        )
        return joined if isinstance(out, tuple) else joined[0]

    def _class_of(self, length: int) -> int:
        """Texts of one class have one set of frequencies: all short ones, and equal long ones."""
        return length if length > self.shortest else 0


def extension(model: PreTrainedModel) -> float:
    """How many times longer than max_position_embeddings texts may be: dynamic NTK's factor."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None)
    kinds = [rope, *rope.values()] if isinstance(rope, Mapping) else []
    dynamic = [k for k in kinds if isinstance(k, Mapping) and k.get("rope_type") == "dynamic"]
    return max([float(kind.get("factor") or 1) for kind in dynamic], default=1.0)


def _parts(out: Any) -> tuple[Tensor, ...]:
    parts = out if isinstance(out, tuple) else (out,)
    if not all(isinstance(part, Tensor) and part.ndim >= 2 for part in parts):
        raise ModelError("rotary frequencies follow the text's length in an unknown form")
    return parts


def _is_rotary(module: nn.Module) -> bool:
    buffers = any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
    return buffers and "position_ids" in inspect.signature(type(module).forward).parameters


def _follows_length(module: nn.Module) -> bool:
    """Whether the first positions turn otherwise in a text beyond every declared length.

    Only a few positions are computed, so this costs the same for 512 and for 131,072.
    """
    rope_type = getattr(module, "rope_type", None)
    kinds = list(rope_type) if isinstance(rope_type, Mapping) else [None]
    return any(_turns(module, PROBED, kind) != _turns(module, None, kind) for kind in kinds)


def _turns(module: nn.Module, last: int | None, kind: str | None) -> list[list[float]]:
    """The rotation of the first positions in a text that ends at `last`; None: far beyond."""
    end = max(_declared_lengths(module)) + BEYOND if last is None else last
    device = next(module.buffers()).device
    places = torch.tensor([[*range(PROBED), end]], device=device)
    options = {} if kind is None else {"layer_type": kind}
    x = torch.zeros(1, 1, 1, device=device)
    try:
        out = _fresh(module)(x, places, **options)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return []
    parts = out if isinstance(out, tuple) else (out,)
    return [torch.view_as_real(p).flatten().tolist() if p.is_complex() else p.flatten().tolist()
            for p in (part[:, :PROBED] for part in parts)]  # fmt: skip


def _declared_lengths(module: nn.Module) -> list[int]:
    """All lengths at which the frequencies may change, from config and module; at least one."""
    config = getattr(module, "config", None)
    rope = getattr(config, "rope_parameters", None)
    tables = [rope, *rope.values()] if isinstance(rope, Mapping) else []
    found = [
        getattr(config, "max_position_embeddings", None),
        getattr(config, "original_max_position_embeddings", None),
        getattr(module, "original_max_seq_len", None),
        *(t.get("original_max_position_embeddings") for t in tables if isinstance(t, Mapping)),
    ]
    return [int(length) for length in found if length] or [1]


def _fresh(module: nn.Module) -> nn.Module:
    """A copy with buffers of its own, whose forward is the class's: what it keeps is dropped."""
    fresh = copy.copy(module)
    fresh.__dict__ = {k: v for k, v in module.__dict__.items() if k != "forward"}
    fresh._buffers = {
        name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()
    }
    return fresh


def _reset(module: nn.Module) -> None:
    """Undo what earlier texts left: the frequencies and the longest length seen."""
    for name in [
        n for n in (*module._buffers, *module.__dict__) if n.endswith("original_inv_freq")
    ]:
        prefix = name.removesuffix("original_inv_freq")
        original = getattr(module, name)
        getattr(module, f"{prefix}inv_freq").copy_(original)
        if hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_max_seq_len"):
        module.max_seq_len_cached = module.original_max_seq_len
