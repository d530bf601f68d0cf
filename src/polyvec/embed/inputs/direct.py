"""The tokenizer of a text by the `tokenizers` library alone, transformers' one when needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from polyvec.embed.inputs.contract import TokenizerContract
from polyvec.embed.inputs.tokens import TextTokenizer


def read_bare(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json as it is; it neither pads nor truncates."""
    found = Tokenizer.from_file(str(path))
    found.no_padding()
    found.no_truncation()
    return found


class DirectTokenizer(TextTokenizer):
    """A TextTokenizer without `hf`, until something asks for it: then it becomes a plain one.

    It truncates from the right, and reads special tokens in texts as characters.
    """

    from_left = False

    def __init__(
        self,
        path: Path,
        contract: TokenizerContract,
        num_rows: int | None,
        load: Callable[[], TextTokenizer],
    ) -> None:
        self.contract, self.lower_case = contract, False
        self._data = read_bare(path)
        self._read_specials(self._data)
        self._data.encode_special_tokens = True
        self._rows, self._load = num_rows, load

    def whole(self) -> TextTokenizer:
        """This tokenizer with transformers' one."""
        load, contract = self.__dict__.get("_load"), self.contract
        if load is not None:
            self.__dict__.update(load().__dict__, contract=contract)
            self.__class__ = TextTokenizer  # type: ignore[assignment]
            self.__dict__.pop("_load", None)
        return self

    @property
    def max_length(self) -> int | None:
        return self.contract.max_length

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self.contract = self.contract.limited(value)

    def check_rows(self, rows: int | None) -> None:
        if "_load" not in self.__dict__ or rows != self._rows:
            TextTokenizer.check_rows(self.whole(), rows)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_load" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.whole(), name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.whole().__reduce_ex__(protocol)
