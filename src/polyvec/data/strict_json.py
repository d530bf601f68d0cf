"""JSON as RFC 8259 has it: each key once, no NaN, no number that is too large."""

import json
from typing import Any, NoReturn

MOST_DIGITS = 4000  # Python refuses whole numbers from 4,300 on


def strict_json(text: str) -> Any:
    """The value of a text; ValueError (JSONDecodeError for its syntax) says what is wrong.

    `json.loads` takes the last of two equal keys, NaN, and 1e999 as infinity.
    """
    return json.loads(
        text,
        object_pairs_hook=_unique,
        parse_float=_finite,
        parse_int=_whole,
        parse_constant=_refuse_constant,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} is given twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits is too large")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is too large for a number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
