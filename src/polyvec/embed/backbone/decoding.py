"""Texts written by a language model, many at a time: prompts are read, then rows grow together.

Rows that have ended leave the batch, waiting ones enter. V logits, B rows.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from polyvec.embed.backbone.causal import READ_TOKENS, CausalModel, Prefix
from polyvec.embed.backbone.drawing import NOISE, Drawing, certain_max, draw
from polyvec.embed.backbone.kept_states import KeptStates
from polyvec.errors import GenerationError


class Constraint(Protocol):
    """What may come next; see `llm.constraint.TokenConstraint`."""

    def allowed(self, new_ids: Sequence[int]) -> Tensor: ...
    def is_done(self, new_ids: Sequence[int]) -> bool: ...


@dataclass(eq=False, slots=True)
class Request:
    """One text to write after `ids`; the fields from `new_ids` on are its answer.

    stop: whether the tokens written so far are to end.
    drawn: tokens that were computed, the one that ended the text included.
    finish: "stop" at the model's end or `stop`, "length" at a limit.
    end: the token of the model that ended it, which is not among `new_ids`.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    drawing: Drawing = field(default_factory=Drawing)
    stop: Callable[[list[int]], bool] | None = None
    constraint: Constraint | None = None
    new_ids: list[int] = field(default_factory=list)
    drawn: int = 0
    finish: Literal["stop", "length"] | None = None
    error: str | None = None
    end: int | None = None

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.new_ids)

    def allowed(self) -> Tensor | None:
        return None if self.constraint is None else self.constraint.allowed(self.new_ids)


class Decoder:
    """Writes the answers of requests, each as it would be written alone.

    `ends`: tokens that end a text. At most `batch_size` rows are written at a time, fewer where
    prompts and answers together could have more than `batch_tokens` tokens. In float32 an answer
    does not depend on the others (see drawing.py); in half precision it may.
    """

    def __init__(
        self,
        model: CausalModel,
        ends: Collection[int],
        *,
        batch_size: int = 32,
        batch_tokens: int = 16384,
    ) -> None:
        self.model, self.ends = model, frozenset(ends)
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self._noise = NOISE.get(next(model.lm.parameters()).dtype, 0.0)
        self.recomputed = 0

    def decode(self, requests: Iterable[Request]) -> Iterator[Request]:
        """The requests as they end, in any order; those that do not fit into the context first."""
        fitting = []
        for request in requests:
            if self.model.context is not None and len(request.ids) >= self.model.context:
                request.error = (
                    f"the prompt has {len(request.ids)} tokens, and prompt and answer may have "
                    f"{self.model.context} together; shorten the prompt"
                )
                yield request
            else:
                fitting.append(request)
        # Equal prompts side by side are read once; longest first, so that the others fit in.
        waiting = deque(sorted(fitting, key=lambda each: (-len(each.ids), each.ids)))
        prefix = self.model.shared([each.ids for each in fitting])
        kept, running = KeptStates(), list[Request]()
        while waiting or running:
            free = self._limit(list(islice(waiting, 1)), running) - len(running)
            if waiting and (not running or free >= max(1, self.batch_size // 8)):
                yield from self._admit(waiting, running, kept, max(free, 1), prefix)
            else:
                yield from self._grow(running, kept)

    def _limit(self, waiting: Sequence[Request], running: list[Request]) -> int:
        """How many rows may be written at a time."""
        longest = max(self._most(each) for each in (*running, *waiting))
        return max(1, min(self.batch_size, self.batch_tokens // longest))

    def _most(self, request: Request) -> int:
        most = len(request.ids) + request.max_new_tokens
        return most if self.model.context is None else min(most, self.model.context)

    def _admit(
        self,
        waiting: deque[Request],
        running: list[Request],
        kept: KeptStates,
        free: int,
        prefix: Prefix | None,
    ) -> Iterator[Request]:
        """Read the next prompts and write their first tokens."""
        group: list[Request] = []
        prompts: dict[tuple[int, ...], int] = {}
        while waiting and len(group) < free:
            ids = waiting[0].ids
            longest = len(group[0].ids) if group else len(ids)
            if ids not in prompts and prompts and (len(prompts) + 1) * longest > READ_TOKENS:
                break
            prompts.setdefault(ids, len(prompts))
            group.append(waiting.popleft())
        read, cache = self.model.read(list(prompts), prefix)
        known = len(prefix.ids) if prefix else 0
        places = [len(ids) - 1 - known for ids in prompts]
        logits_GV = read.logits(range(len(prompts)), places)
        rows = [prompts[each.ids] for each in group]
        self._choose(group, logits_GV[rows])
        most = len(running) + len(group)
        for request, row in zip(group, rows, strict=True):
            if request.finish is None and request.error is None:
                kept.add(cache, row, len(request.ids), rows=most)
                running.append(request)
            else:
                yield request

    def _grow(self, running: list[Request], kept: KeptStates) -> Iterator[Request]:
        """One more token of each row."""
        ids_B = torch.tensor([each.new_ids[-1] for each in running])
        places_B = torch.tensor(kept.lengths)
        cache = kept.open_step()
        logits_BV = self.model.step(ids_B, places_B, kept.mask, cache)
        kept.close_step()
        self._choose(running, logits_BV)
        for row in reversed(range(len(running))):
            if running[row].finish is not None or running[row].error is not None:
                yield running[row]
                kept.remove(row)
                running[row] = running[-1]
                running.pop()

    @torch.inference_mode()
    def _choose(self, requests: list[Request], logits_BV: Tensor) -> None:
        """Write each row's next token, and end the rows that are at their end."""
        largest_B = logits_BV.max(dim=1).values
        if not bool(largest_B.isfinite().all()):
            raise GenerationError("the model's logits are not finite; try dtype='float32'")
        tolerance_B = logits_BV.abs().max(dim=1).values * self._noise
        tokens, certain = certain_max(logits_BV, tolerance_B)
        for row, request in enumerate(requests):
            token, sure = tokens[row], certain[row]
            try:
                allowed_V = request.allowed()
            except GenerationError as error:
                request.error = str(error)
                continue
            if allowed_V is not None and not allowed_V.any():
                request.error = "the schema allows no token after what was written"
                continue
            drawing, noise = request.drawing, request.drawing.noise(len(request.new_ids))
            if noise is not None or allowed_V is not None:
                logits_V = _masked(logits_BV[row], allowed_V)
                token, sure = draw(logits_V, drawing, float(tolerance_B[row]), noise)
            if not sure and self._noise:
                self.recomputed += 1
                logits_V = _masked(self.model.alone((*request.ids, *request.new_ids)), allowed_V)
                token, _ = draw(logits_V, drawing, 0.0, noise)
            self._write(request, token)

    def _write(self, request: Request, token: int) -> None:
        request.drawn += 1
        if token in self.ends:
            request.finish, request.end = "stop", token
            return
        request.new_ids.append(token)
        done = request.constraint is not None and request.constraint.is_done(request.new_ids)
        if done or (request.stop is not None and request.stop(request.new_ids)):
            request.finish = "stop"
        elif len(request.new_ids) == request.max_new_tokens or request.length == self.model.context:
            request.finish = "length"


def _masked(logits_V: Tensor, allowed_V: Tensor | None) -> np.ndarray:
    found: np.ndarray = logits_V.cpu().numpy()
    return found if allowed_V is None else np.where(allowed_V.numpy(), found, -np.inf)
