"""How fast a server is asked: requests and tokens a minute, and pauses that it asks for."""

import asyncio
import time

from polyvec.errors import SettingsError


class RateLimiter:
    """Spaces requests evenly, without bursts, below both limits; None for no limit."""

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        for limit in (requests_per_minute, tokens_per_minute):
            if limit is not None and limit <= 0:
                raise SettingsError(
                    f"requests_per_minute {requests_per_minute} and tokens_per_minute "
                    f"{tokens_per_minute} must be above 0, or None for no limit"
                )
        self.request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self.token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_tokens = self._paused_until = 0.0

    async def wait(self, tokens: int) -> None:
        """Returns when a request that may cost so many tokens may be sent."""
        start = max(time.monotonic(), self._next_request, self._next_tokens)
        self._next_request = start + self.request_s
        self._next_tokens = start + tokens * self.token_s
        while (left := max(start, self._paused_until) - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def give_back(self, tokens: int) -> None:
        """Tokens that were reckoned with but not used."""
        self._next_tokens -= tokens * self.token_s

    def pause(self, seconds: float) -> None:
        """Nobody asks for so long."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
