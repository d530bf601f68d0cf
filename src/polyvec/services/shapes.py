"""How each API writes a request and how its reply is read, as the providers document them.

N texts, E numbers a vector.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from polyvec.llm.server.failures import RequestError
from polyvec.services.providers import Provider, Shape


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for beside its texts.

    task: the value of the role's field; "" for none. strict: long texts are refused.
    """

    model: str
    dimensions: int | None = None
    task: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """Vectors in the order of the texts, tokens that are paid for, and who says to have answered.

    tokens is None where the reply does not count them.
    """

    vectors_NE: np.ndarray
    tokens: int | None
    model: str | None = None


Write = Callable[[Provider, Asked, Sequence[str]], tuple[str, dict[str, Any]]]
Read = Callable[[Mapping[str, Any], int], Reply]


def write_openai(provider: Provider, asked: Asked, texts: Sequence[str]) -> tuple[str, Any]:
    """{"model", "input", "encoding_format", ...} to /embeddings."""
    body: dict[str, Any] = {"model": asked.model, "input": list(texts)}
    if provider.encoding:
        body["encoding_format"] = provider.encoding
    return "/embeddings", body | _options(provider, asked)


def read_openai(reply: Mapping[str, Any], num_texts: int) -> Reply:
    """{"data": [{"index", "embedding"}], "model", "usage": {"total_tokens"}}."""
    rows = _list(reply, "data")
    _check_count(len(rows), num_texts)
    places = [row.get("index", place) for place, row in enumerate(rows)]
    if not all(type(place) is int for place in places) or {*places} != {*range(num_texts)}:
        raise RequestError(f"the reply's index fields are not 0 to {num_texts - 1}", "reply")
    ordered = [row for _, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])]
    usage = _object(reply.get("usage"))
    tokens = _count(usage.get("total_tokens"))
    model = reply.get("model")
    return Reply(
        matrix([row.get("embedding") for row in ordered]),
        _count(usage.get("prompt_tokens")) if tokens is None else tokens,
        model if isinstance(model, str) and model else None,
    )


def write_google(provider: Provider, asked: Asked, texts: Sequence[str]) -> tuple[str, Any]:
    """{"requests": [{"model", "content", "taskType", ...}]} to :batchEmbedContents."""
    name = asked.model.removeprefix("models/")
    options = {"model": f"models/{name}", **_options(provider, asked)}
    requests = [{**options, "content": {"parts": [{"text": text}]}} for text in texts]
    return f"/models/{quote(name, safe='')}:batchEmbedContents", {"requests": requests}


def read_google(reply: Mapping[str, Any], num_texts: int) -> Reply:
    """{"embeddings": [{"values"}], "usageMetadata": {"promptTokenCount"}}."""
    rows = _list(reply, "embeddings")
    _check_count(len(rows), num_texts)
    usage = _object(reply.get("usageMetadata"))
    return Reply(matrix([row.get("values") for row in rows]), _count(usage.get("promptTokenCount")))


def write_cohere(provider: Provider, asked: Asked, texts: Sequence[str]) -> tuple[str, Any]:
    """{"model", "texts", "input_type", "embedding_types": ["float"], ...} to /embed."""
    body = {"model": asked.model, "texts": list(texts), "embedding_types": ["float"]}
    return "/embed", body | _options(provider, asked)


def read_cohere(reply: Mapping[str, Any], num_texts: int) -> Reply:
    """{"embeddings": {"float": [...]}, "meta": {"billed_units": {"input_tokens"}}}."""
    rows = _object(reply.get("embeddings")).get("float")
    if not isinstance(rows, list):
        raise RequestError(f"the reply has no embeddings.float but {sorted(reply)}", "reply")
    _check_count(len(rows), num_texts)
    billed = _object(_object(reply.get("meta")).get("billed_units"))
    return Reply(matrix(rows), _count(billed.get("input_tokens")))


def write_titan(provider: Provider, asked: Asked, texts: Sequence[str]) -> tuple[str, Any]:
    """{"inputText", "dimensions"} to /model/ID/invoke, one text."""
    body = {"inputText": texts[0], **_options(provider, asked)}
    return f"/model/{quote(asked.model, safe='')}/invoke", body


def read_titan(reply: Mapping[str, Any], num_texts: int) -> Reply:
    """{"embedding": [...], "inputTextTokenCount"}."""
    # Of embeddingsByType, "binary" would be bits.
    return Reply(matrix([reply.get("embedding")]), _count(reply.get("inputTextTokenCount")))


SHAPES: Mapping[Shape, tuple[Write, Read]] = {
    "openai": (write_openai, read_openai),
    "google": (write_google, read_google),
    "cohere": (write_cohere, read_cohere),
    "titan": (write_titan, read_titan),
}


def matrix(rows: Sequence[Any]) -> np.ndarray:
    """Float32 vectors [N, E] of lists of numbers or base64 of little-endian float32.

    RequestError for what is none, has several widths, or is not finite.
    """
    vectors = [_vector(row, place) for place, row in enumerate(rows)]
    widths = sorted({len(each) for each in vectors})
    if len(widths) != 1 or widths[0] == 0:
        raise RequestError(f"the reply's vectors have {widths} numbers", "reply")
    vectors_NE = np.stack(vectors)
    wrong = np.flatnonzero(~np.isfinite(vectors_NE).all(axis=1))
    if len(wrong):
        raise RequestError(f"vector {wrong[0]} of the reply holds NaN or infinity", "reply")
    return vectors_NE


def _vector(row: Any, place: int) -> np.ndarray:
    try:
        if isinstance(row, str):
            return np.frombuffer(base64.b64decode(row, validate=True), "<f4").astype(np.float32)
        if isinstance(row, list) and row:
            # None is NaN to numpy, and is told as that. A float64 beyond float32 becomes infinity.
            with np.errstate(over="ignore"):
                found = np.array(row, np.float64).astype(np.float32)
            if found.ndim == 1:
                return found
    except (binascii.Error, ValueError, TypeError):
        pass
    raise RequestError(f"vector {place} of the reply is not a list of numbers", "reply")


def _options(provider: Provider, asked: Asked) -> dict[str, Any]:
    """The fields that have the same place in every text's request."""
    found: dict[str, Any] = {}
    if asked.dimensions is not None:
        found[provider.dimensions_field] = asked.dimensions
    role_field = provider.roles_of(asked.model).parameter
    if role_field is not None and asked.task:
        found[role_field] = asked.task
    if provider.truncation is not None:
        name, cut, refuse = provider.truncation
        found[name] = refuse if asked.strict else cut
    return found


def _list(reply: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    rows = reply.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"the reply has no list {name!r} but {sorted(reply)}", "reply")
    return rows


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise RequestError(f"the reply has {found} vectors for {expected} texts", "reply")


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return int(value) if is_count else None
