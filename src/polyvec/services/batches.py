"""Which texts go into one request, and whether the budget still allows it."""

import asyncio
import math
from collections.abc import Sequence

from polyvec.errors import SettingsError

EXTRA_TOKENS = 16  # of a text: special tokens, and prompts that a provider adds


def estimate(text: str) -> int:
    """About how many tokens a text has, rather more: 3 bytes each. English has 4 to 5."""
    return len(text.encode()) // 3 + 1


def at_most(text: str) -> int:
    """More tokens than a text can have: a token is a byte or more, in every tokenizer in use."""
    return len(text.encode()) + EXTRA_TOKENS


def batches(texts: Sequence[str], *, max_texts: int, max_tokens: int | None) -> list[range]:
    """The texts in order, as many to a batch as both limits allow, one at least."""
    found: list[range] = []
    start = tokens = 0
    for place, text in enumerate(texts):
        more = estimate(text)
        full = max_tokens is not None and tokens + more > max_tokens
        if place > start and (full or place - start == max_texts):
            found.append(range(start, place))
            start, tokens = place, 0
        tokens += more
    return [*found, range(start, len(texts))] if texts else []


class Budget:
    """Tokens that may be spent; None for no limit.

    What a request may cost at most is reserved before it is sent, so the limit is never exceeded;
    where a provider does not count tokens, estimates are.
    """

    def __init__(self, max_tokens: int | None, max_cost: float | None, price: float | None) -> None:
        for name, value in (("max_tokens", max_tokens), ("max_cost", max_cost)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name} {value} must be a number above 0, or None")
        self.limit = float("inf") if max_tokens is None else float(max_tokens)
        if max_cost is not None:
            if price is None:
                raise SettingsError(
                    "max_cost needs the model's price, which is not known here: pass price=, in "
                    "dollars for a million tokens, or max_tokens"
                )
            self.limit = min(self.limit, max_cost / price * 1e6 if price else float("inf"))
        self.spent = self.reserved = 0
        self._settled: asyncio.Event | None = None

    def start(self) -> None:
        """Another event loop."""
        self.reserved, self._settled = 0, asyncio.Event()

    def reserve(self, tokens: int) -> bool:
        """Whether so many tokens more are within the limit; then they are reserved."""
        if self.spent + self.reserved + tokens > self.limit:
            return False
        self.reserved += tokens
        return True

    def settle(self, reserved: int, spent: int) -> None:
        """What a request did cost."""
        self.reserved -= reserved
        self.spent += spent
        if self._settled is not None:
            self._settled.set()

    async def wait(self) -> None:
        """Until a request under way is settled."""
        assert self._settled is not None
        self._settled.clear()
        await self._settled.wait()
