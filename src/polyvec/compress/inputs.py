"""Texts and questions as they are given, checked."""

from collections.abc import Sequence
from typing import Any

from polyvec.errors import InputError


def check_text(text: Any, what: str) -> None:
    """Raises InputError for what is no text, or has half of a character."""
    if not isinstance(text, str):
        raise InputError(f"{what} is {type(text).__name__}, expected a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has a lone surrogate at character {error.start}") from None


def texts_and_questions(
    texts: str | Sequence[str], query: str | Sequence[str] | None
) -> tuple[list[str], list[str | None]]:
    """Texts that are not blank, and a question, or None, for each."""
    if not isinstance(texts, str) and not hasattr(texts, "__iter__"):
        raise InputError(f"texts is {type(texts).__name__}, expected a text or a list of texts")
    texts = [texts] if isinstance(texts, str) else list(texts)
    queries: list[Any] = [query] * len(texts)
    if query is not None and not isinstance(query, str):
        if not hasattr(query, "__iter__"):
            raise InputError(f"the question is {type(query).__name__}, expected a text or a list")
        queries = list(query)
    if len(queries) != len(texts):
        raise InputError(f"{len(queries)} questions for {len(texts)} texts")
    for place, (text, question) in enumerate(zip(texts, queries, strict=True)):
        check_text(text, f"text {place}")
        if question is not None:
            check_text(question, f"question {place}")
        if not text.strip():
            raise InputError(f"text {place} is empty; there is nothing to compress")
    return texts, queries
