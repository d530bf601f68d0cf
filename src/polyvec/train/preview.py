"""What a run would do, without weights: parameters, memory, batches, and the first inputs."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyvec.embed.embedder import Embedder
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.train.adapters import Trained
from polyvec.train.exchange import Exchange
from polyvec.train.sample import Sample
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share, Work

SHOWN = 400  # characters of an input
# Bytes of a layer's states that the backward pass needs, for each token and each number of the
# hidden size: Korthikanti et al. 2022, arXiv:2205.05198, without dropout and attention scores.
STATE_BYTES = {4: 60, 2: 30}
CHECKPOINT_BYTES = {4: 4, 2: 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a step needs, estimated."""

    weights: float
    gradients: float
    optimiser: float
    states: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser + self.states

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimiser", "states")
        each = ", ".join(f"{name} {_size(getattr(self, name))}" for name in parts)
        return f"about {_size(self.total)}: {each}"


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def memory(embedder: Embedder, trained: Trained, stage: StageSettings, tokens: int) -> Memory:
    """Of one process whose largest forward pass computes so many tokens; Adam in float32."""
    half = 2 if stage.bf16 or stage.fp16 else 4
    config = embedder.backbone.model.config.get_text_config()
    each = (CHECKPOINT_BYTES if stage.gradient_checkpointing else STATE_BYTES)[half]
    layers = embedder.backbone.num_layers
    states = tokens * config.hidden_size * each * layers
    if stage.gradient_checkpointing:
        states += tokens * config.hidden_size * STATE_BYTES[half]  # of the layer computed again
    return Memory(
        4.0 * trained.num_parameters,
        4.0 * trained.num_trained,
        8.0 * trained.num_trained,
        float(states),
    )


def described(
    embedder: Embedder,
    task: Any,
    trained: Trained,
    stage: StageSettings,
    sample: Sample,
    steps: int,
    paint: Callable[[str, bool], str],
) -> Iterator[str]:
    """Lines on a stage; `paint` marks a stretch of an input by whether it is pooled."""
    yield f"  trains    {trained}"
    rows = sample.rows(0)
    shares = Exchange.here().shares(len(rows))
    work: Work = task.work(rows, shares, 0)
    largest = max((_num_tokens(piece.payload) for piece in work.pieces), default=0)
    tokens = largest if stage.gradient_cache else work.num_tokens
    yield f"  memory    {memory(embedder, trained, stage, tokens)}"
    yield f"  batches   {sample.batches.epoch(0).report()}; {steps} steps"
    yield f"            the first has {len(rows)} rows, {work.num_tokens:,} tokens" + (
        f" in {len(work.pieces)} pieces" if len(work.pieces) > 1 else ""
    )
    if work.num_cut:
        yield f"            {work.num_cut} of its {work.num_texts} texts are cut (max_length)"
    first: Work = task.work(rows[:1], [Share(0, 1)], 0)
    words = getattr(task, "own_tokenizer", embedder.tokenizer)
    for label, text in zip(_labels(rows[0], first), inputs(words, first, paint), strict=False):
        yield f"  {label:<9} {text}"


def _labels(row: Any, work: Work) -> Iterator[str]:
    if set(work.order) == {"encode"}:
        yield "query"
        yield from itertools.repeat("document")
    yield from itertools.repeat("input")


def inputs(words: Any, work: Work, paint: Callable[[str, bool], str]) -> Iterator[str]:
    """The texts of a batch as the model reads them, in the order of the batch."""
    found: dict[tuple[str, int], str] = {}
    for job, order in work.order.items():
        places = iter(order.tolist())
        for piece in (each for each in work.pieces if each.job == job):
            batch = getattr(piece.payload, "batch", None)
            counts = getattr(piece.payload, "num_inputs", (1,) * piece.num_rows)
            if batch is None:
                continue
            texts = iter(_texts(words, batch, paint))
            for count in counts:
                found[job, next(places)] = " + ".join(itertools.islice(texts, count))
    return iter(found[key] for key in sorted(found))


def _texts(words: Any, batch: TokenBatch, paint: Callable[[str, bool], str]) -> Iterator[str]:
    ends = np.cumsum(batch.lengths)[:-1]
    for ids, pooled in zip(
        np.split(batch.ids_T, ends), np.split(batch.pooled_T, ends), strict=True
    ):
        changes = np.flatnonzero(np.diff(pooled.astype(int))) + 1
        stretches = zip(np.split(ids, changes), np.split(pooled, changes), strict=True)
        yield "".join(
            paint(_shown(words, each), bool(flags[0])) for each, flags in stretches if len(each)
        )


def _shown(words: Any, ids: np.ndarray) -> str:
    text = words.decode(ids.tolist()).replace("\n", "\\n")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _num_tokens(payload: Any) -> int:
    batch = getattr(payload, "batch", None)
    return 0 if batch is None else int(sum(batch.lengths))


def brackets(text: str, pooled: bool) -> str:
    """Pooled stretches in brackets, where colours cannot be shown."""
    return f"⟦{text}⟧" if pooled else text


def colours(text: str, pooled: bool) -> str:
    """Pooled stretches in green, the others dim, for a terminal."""
    return f"\x1b[32m{text}\x1b[0m" if pooled else f"\x1b[2m{text}\x1b[0m"
