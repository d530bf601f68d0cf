"""Cost of inference: the survey's compression rate (Eq. 10) and average inference time."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from polyvec.errors import DataError, ShapeError
from polyvec.evaluate.measures.inputs import Numbers, numbers, whole


def compression_rate(compressed: Numbers, original: Numbers) -> float:
    """Length after compression over length before (Eq. 10), mean over contexts; smaller is better.

    Lengths in tokens or vectors: 8 memory slots for 64 tokens are 0.125. Above 1 the context grew.
    Some papers report the inverse. Raises DataError for an empty context.

    >>> compression_rate([8, 8], [64, 32])
    0.1875
    """
    short = numbers("compression_rate: compressed lengths", compressed)
    long = numbers("compression_rate: original lengths", original)
    if short.shape != long.shape:
        raise ShapeError(
            f"compression_rate: {len(short)} compressed lengths, {len(long)} original; give one "
            "for each context"
        )
    if not len(long) or long.min() <= 0 or short.min() < 0:
        raise DataError("compression_rate: expected lengths of 0 or more, original ones above 0")
    return float((short / long).mean())


def inference_time_s(
    run: Callable[[Any], object], examples: Sequence[Any], *, num_warmup: int = 1
) -> float:
    """Mean wall-clock seconds of `run` per example, after `num_warmup` untimed examples.

    `run` must wait until its work is done, on an accelerator too. Raises DataError without
    examples.

    >>> inference_time_s(len, ["a", "b"]) < 1
    True
    """
    if not len(examples):
        raise DataError("inference_time_s: no examples, expected at least one")
    for example in examples[: whole("num_warmup", num_warmup, at_least=0)]:
        run(example)
    began = time.perf_counter()
    for example in examples:
        run(example)
    return (time.perf_counter() - began) / len(examples)
