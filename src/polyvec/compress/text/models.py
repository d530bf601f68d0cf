"""Models of scorers by name, each loaded once in a process, or given as objects."""

import functools
from typing import TYPE_CHECKING, Any, cast

from polyvec.errors import SettingsError
from polyvec.interfaces import TextEncoder
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.loading import load_language_model

if TYPE_CHECKING:
    from polyvec.llm.local import LocalLanguageModel

CACHED = 4


def language_model(given: str | LanguageModel) -> LanguageModel:
    return _language_model(given) if isinstance(given, str) else given


def local_model(given: str | LanguageModel, who: str) -> "LocalLanguageModel":
    """A language model whose probabilities can be read; SettingsError for a server's."""
    from polyvec.llm.local import LocalLanguageModel

    found = language_model(given)
    if not isinstance(found, LocalLanguageModel):
        raise SettingsError(
            f"{who} reads the probabilities of every token, which {found.identity} does not give; "
            "name a folder, hub id or GGUF file"
        )
    return found


def embedder(given: str | TextEncoder | None) -> TextEncoder:
    """None: the default model."""
    return given if isinstance(given, TextEncoder) else _embedder(given)


@functools.lru_cache(CACHED)
def _language_model(name: str) -> LanguageModel:
    return load_language_model(name)


@functools.lru_cache(CACHED)
def _embedder(name: str | None) -> TextEncoder:
    from polyvec.embed.embedder import Embedder

    found: Any = Embedder.from_pretrained(name) if name else Embedder.from_pretrained()
    return cast(TextEncoder, found)
