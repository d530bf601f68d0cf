"""What a run does in a second: tokens, padding, and its share of the processor's matmul peak."""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from polyvec.embed.embedder import Embedder
from polyvec.train import engine
from polyvec.train.exchange import Exchange
from polyvec.train.task import Job, Work

# Sides of the square matrices that the peak is measured with.
SIDES = {"cpu": 1024, "cuda": 8192}
TRIES = 3


class Meter:
    """Sums over the batches since the last reading."""

    def __init__(
        self,
        embedder: Embedder,
        jobs: Mapping[str, Job],
        *,
        cached: bool,
        checkpointed: bool,
        half: bool,
        cost: "Cost | None" = None,
    ) -> None:
        """cost: of a model that is trained in the embedder's place."""
        self.jobs = jobs
        self.cost = cost or step_cost(embedder, cached=cached, checkpointed=checkpointed)
        dtype = torch.bfloat16 if half else torch.float32
        self.processor = embedder.device.type, dtype
        self.peak = matmul_peak(*self.processor)
        self._start()

    def _start(self) -> None:
        self.terms: dict[str, float] = {}
        self.num_batches = self.num_tokens = self.num_computed = self.num_duplicates = 0
        self.flops = 0.0
        self.began = time.perf_counter()

    def add(self, work: Work, terms: engine.Terms) -> None:
        """Count a batch, after its step."""
        num_texts = sum(piece.num_rows for piece in work.pieces)
        self.flops += self.cost.per_token * work.num_computed_tokens
        self.flops += self.cost.per_text * num_texts - self.cost.forward * self._spared()
        for name, term in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(term)
        self.num_batches += 1
        self.num_tokens += work.num_tokens
        self.num_computed += work.num_computed_tokens
        self.num_duplicates += getattr(work.facts, "num_duplicates", 0)

    def _spared(self) -> int:
        """Tokens that jobs did not pass through the backbone, because they keep their vectors."""
        takes = (getattr(job, "take_spared", None) for job in self.jobs.values())
        return sum(take() for take in takes if take is not None)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Neither the time inside nor what is computed in it counts."""
        began = time.perf_counter()
        yield
        self._spared()
        self.began += time.perf_counter() - began

    def read(self, exchange: Exchange) -> dict[str, float]:
        """Means since the last reading, over all processes; every process must call it.

        tokens_per_s: real tokens. padding: share of the computed tokens. mfu: floating-point
        operations of the matrix products with weights over what the processor could do; attention
        scores, the loss, and vectors that are kept from an earlier batch are not counted.
        duplicates: equal documents of a batch.
        """
        seconds = max(time.perf_counter() - self.began, 1e-9)
        tokens, computed, flops = exchange.sums([self.num_tokens, self.num_computed, self.flops])
        count = max(self.num_batches, 1)
        if flops / seconds > self.peak * exchange.size:
            # Others were at work on the processor when it was measured.
            self.peak = max(self.peak, matmul_peak.__wrapped__(*self.processor))
        found = {f"loss/{name}": total / count for name, total in self.terms.items()}
        if len(found) == 1:
            found = {}  # it is the loss itself
        found |= {
            "tokens_per_s": tokens / seconds,
            "padding": 1 - tokens / computed if computed else 0.0,
            "mfu": flops / seconds / (self.peak * exchange.size),
            "duplicates": self.num_duplicates / count,
        }
        self._start()
        return found


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating-point operations of a training step.

    per_token, per_text: of the backbone and the pooling, and of the projections behind them.
    forward: of a token's forward pass through the backbone alone.
    """

    per_token: float
    per_text: float
    forward: float


def step_cost(embedder: Embedder, *, cached: bool = False, checkpointed: bool = False) -> Cost:
    """By the weights that states are multiplied by.

    Two operations for each weight forward, and again with a cache and with checkpointing; backward
    two for the gradient of states, which stops at the first trained weight, and two for that of
    each trained weight.
    """
    fixed = not any(each.requires_grad for each in embedder.backbone.parameters())
    of_backbone = {id(each) for each in embedder.backbone.parameters()}
    of_texts = {id(each) for each in embedder.projections.parameters()}
    per_token = per_text = forward = 0.0
    for parameter, number in matmul_weights(embedder).items():
        # Of a backbone that is trained, with an adapter too, all states have a gradient.
        passes = 1 + cached + (0 if fixed else 1 + checkpointed) + parameter.requires_grad
        fixed = fixed and not parameter.requires_grad
        if id(parameter) in of_texts:
            per_text += 2 * number * passes
        else:
            per_token += 2 * number * passes
        forward += 2 * number * (id(parameter) in of_backbone)
    return Cost(per_token, per_text, forward)


def matmul_weights(embedder: nn.Module) -> Mapping[nn.Parameter, float]:
    """Numbers in each weight that states are multiplied by; of experts those that a token meets."""
    found: dict[nn.Parameter, float] = {}
    tables = {id(each.weight) for each in embedder.modules() if isinstance(each, nn.Embedding)}
    for parameter in embedder.parameters():
        if parameter.ndim == 2 and id(parameter) not in tables:
            found[parameter] = parameter.numel()
        elif parameter.ndim == 3:
            found[parameter] = parameter.numel() * _experts_share(embedder)
    return found


def _experts_share(embedder: Any) -> float:
    config = embedder.backbone.model.config.get_text_config()
    used = getattr(config, "num_experts_per_tok", None)
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    there = next((n for name in names if (n := getattr(config, name, None))), None)
    return used / there if used and there else 1.0


@functools.cache
def matmul_peak(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a product of large square matrices, measured."""
    side = SIDES.get(device, SIDES["cpu"])
    # Not random: the run's generator must be as it would be without a measurement.
    a = torch.full((side, side), 0.5, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(TRIES):
        began = time.perf_counter()
        product = a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    del product
    return 2 * side**3 / best
