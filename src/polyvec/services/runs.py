"""What one call asked for and paid, as a line of the ledger."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyvec.errors import DataError, ServiceWarning
from polyvec.llm.answers import Usage
from polyvec.llm.ledger import ledger_line


class Run:
    """The usage of one call, added to `total` at its end.

    Its line in the ledger is there from the first request on. Of a ledger that nobody asked for
    (`is_optional`) a failure is a warning.
    """

    def __init__(
        self, total: Usage, ledger: str | Path | None, name: str, url: str, *, is_optional: bool
    ) -> None:
        self.total, self.ledger, self.name, self.url = total, ledger, name, url
        self.is_optional = is_optional
        self.usage = Usage(prompt_price=total.prompt_price)
        self._stack = contextlib.ExitStack()
        self._write: Callable[[], None] | None = None

    def open(self) -> None:
        """Begin the line; DataError if the ledger cannot be written."""
        if self._write is not None or self.ledger is None:
            return
        line = ledger_line(self.ledger, self.usage, model=self.name, identity=self.url)
        try:
            Path(self.ledger).parent.mkdir(parents=True, exist_ok=True)
            self._write = self._stack.enter_context(line)
        except (OSError, DataError) as error:
            if not self.is_optional:
                raise DataError(f"ledger {self.ledger}: {error}") from None
            warnings.warn(f"going on without a ledger: {error}", ServiceWarning, stacklevel=3)
            self._write = lambda: None

    def add(self, tokens: int) -> None:
        """A reply came."""
        self.usage.prompt_tokens += tokens
        if self._write is not None:
            self._write()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.total.prompts += self.usage.prompts
        self.total.cached += self.usage.cached
        self.total.prompt_tokens += self.usage.prompt_tokens
        # A caller that takes no more vectors is no failure.
        is_closed = kind is GeneratorExit
        self._stack.__exit__(*(None, None, None) if is_closed else (kind, error, trace))
