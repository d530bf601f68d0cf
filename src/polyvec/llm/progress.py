"""A progress bar of generation: prompts done, new tokens/s, and what they cost so far."""

import contextlib
import time
from collections.abc import Callable, Iterator

from polyvec.embed.progress import progress
from polyvec.llm.answers import Completion, Usage

BAR_FROM_PROMPTS = 4  # fewer are done before a bar can be read


@contextlib.contextmanager
def generation_progress(
    total: int | None, wanted: bool | None, usage: Usage
) -> Iterator[Callable[[Completion], None]]:
    """A bar on stderr; the function that advances it by one completion.

    `wanted` None: only where stderr is a terminal and there are several prompts. `total` None:
    the number of prompts is not known.
    """
    began, tokens = time.perf_counter(), 0

    def shown(_: float) -> str:
        cost = "" if usage.cost is None else f", cost {usage.cost:.4f}"
        return f"{tokens / (time.perf_counter() - began):.0f} new tokens/s{cost}"

    with progress(
        total, wanted, name="generating", bar_from=BAR_FROM_PROMPTS, shown=shown
    ) as advance:

        def count(completion: Completion) -> None:
            nonlocal tokens
            tokens += 0 if completion.cached else sum(a.new_tokens for a in completion.answers)
            advance(1)

        yield count
