"""Malformed requests from a seed: values of wrong kinds, broken JSON, odd bytes and headers."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

GOOD: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {
        "input": ["a cat", "a dog"],
        "model": "tiny",
        "dimensions": 8,
        "encoding_format": "base64",
        "user": "someone",
        "input_type": "query",
        "truncate": True,
    },
    "/v1/rerank": {
        "query": "a pet",
        "documents": ["a cat", {"text": "a car"}],
        "top_n": 1,
        "return_documents": True,
    },
    "/v1/sparse": {"input": "a cat", "model": "tiny"},
    "/tokenize": {"input": [[5, 6], [7]], "prompt": "about: "},
    "/v1/search": {
        "query": "a cat",
        "top_k": 3,
        "mode": "hybrid",
        "filter": {"$and": [{"year": {"$gte": 2001}}, {"kind": {"$in": ["cat", "river"]}}]},
        "explain": True,
    },
}


class Raw(str):
    """JSON as it is written, which json.dumps would not write."""


class Sent(NamedTuple):
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 1.5, -0.0, 3.0, 2**31, 2**63, -(2**63) - 1, 2**64, 10**300),
    *(Raw("NaN"), Raw("-Infinity"), Raw("1e400"), Raw("9" * 5000), Raw("01"), Raw("0x1")),
    *(
        "",
        " \n",
        "\0",
        "\u200b",
        "\ufeff",
        "\u202e",
        "'",
        '"',
        "a" * 70_000,
        "日" * 3000,
        "🙂" * 99,
    ),
    *("null", "tiny", "query", "../../etc/passwd", "%s%n{0}{x}", "<script>", "a\r\nb: c"),
    *(Raw('"\\ud800"'), Raw('"\\ud83d\\ud83d"'), Raw('"\\u12"'), Raw('"\\x"'), Raw("'a'")),
    *([], {}, [[]], [[], []], [{}], [None], ["a", 1], [1, "a"], [1.0], [True], ["a"] * 300),
    *([5], [10**9], [-5], [2**31], [5] * 5000, [[5], [2**70]], [[5], "a"], [[[5]]], [999] * 70),
    *({"text": "a"}, {"text": None}, {"$and": []}, {"$not": 3}, {"year": {"$in": [[]]}}),
    *({"year": {"$gt": "x"}}, {"year": {"$eq": 10**40}}, {"kind": {"$in": list("ab") * 500}}),
    *("year = 1", "year in (1, 2", "not not year", "kind = 'a\\", "year >= " + "9" * 5000),
    *("(" * 3000, "year=1 and " * 800, "kind = " + '"' + "x" * 9000 + '"', "year = 1e999", "{"),
    *(
        Raw("[" * 3000 + "]" * 3000),
        Raw('{"a":' * 300 + "1" + "}" * 300),
        Raw(""),
        Raw("undefined"),
    ),
)
NAMES = ("input", "query", "filter", "", "__class__", "model_config", "inputs", "a\nb", "é" * 200)
CONTENT_TYPES = (
    *(b"application/json", b"text/plain", b"application/json; charset=utf-16", b"", b"\xff\xfe"),
    *(b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded", b"a" * 3000),
)
HEADERS = (
    *((b"content-encoding", b"gzip"), (b"content-encoding", b"identity"), (b"expect", b"x")),
    *((b"content-length", b"5"), (b"content-length", b"9" * 5000), (b"content-length", b"-1")),
    *((b"transfer-encoding", b"gzip"), (b"authorization", b"Bearer \xff\0"), (b"x", b"\xf0" * 999)),
    *((b"accept-encoding", b"br;q=x"), (b"sec-fetch-site", b"\xff"), (b"host", b"evil/../")),
)


def written(value: Any) -> str:
    """JSON, with Raw parts as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        inside = (f"{json.dumps(name)}:{written(each)}" for name, each in value.items())
        return "{" + ",".join(inside) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=len(str(value)) % 2 == 0)


def hostile_requests(number: int, seed: int) -> Iterator[Sent]:
    """So many requests to all routes that take a body; the same for the same seed."""
    draw = random.Random(seed)
    paths = list(GOOD)
    for index in range(number):
        path = paths[index % len(paths)]
        body = _value(GOOD[path], draw)
        content = written(body).encode("utf-8", "surrogatepass")
        if draw.random() < 0.1:  # a field twice
            field = draw.choice(list(GOOD[path]))
            content = b"{" + f'"{field}":{written(_nasty(draw))},'.encode() + content[1:]
        if draw.random() < 0.4:
            content = _bytes(content, draw)
        headers = [(b"content-type", draw.choice(CONTENT_TYPES))]
        if draw.random() < 0.15:
            headers.append(draw.choice(HEADERS))
        yield Sent(path, headers, content)


def _value(good: Any, draw: random.Random) -> Any:
    """A good body with one to three of its parts made wrong."""
    body = json.loads(json.dumps(good))
    if draw.random() < 0.03:
        return _nasty(draw)
    for _ in range(draw.randint(1, 3)):
        place = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw.choice(keys)
            inside = place[key]
            if isinstance(inside, dict | list) and draw.random() < 0.5:
                place = inside
                continue
            _make_wrong(place, key, draw)
            break
    return body


def _nasty(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(NASTY))  # lists of it are changed, too


def _make_wrong(place: Any, key: Any, draw: random.Random) -> None:
    how = draw.random()
    if how < 0.75:
        place[key] = _nasty(draw)
    elif how < 0.85:
        del place[key]
    elif isinstance(place, dict):
        place[draw.choice(NAMES)] = _nasty(draw)
    else:
        place.insert(draw.randint(0, len(place)), _nasty(draw))


def _bytes(content: bytes, draw: random.Random) -> bytes:
    """Content cut, or with bytes put in, taken out, changed or repeated."""
    at = draw.randint(0, len(content))
    to = min(len(content), at + draw.randint(1, 20))
    odd = bytes(draw.randrange(256) for _ in range(draw.randint(1, 4)))
    return draw.choice(
        (
            content[:at],
            content[at:],
            content[:at] + odd + content[at:],
            content[:at] + content[to:],
            content[:at] + odd + content[to:],
            content[:at] + content[at:to] * 50 + content[to:],
            b"\xef\xbb\xbf" + content,
            content.decode("utf-8", "replace").encode("utf-16"),
            content + content,
            b"\0" * len(odd),
        )
    )
