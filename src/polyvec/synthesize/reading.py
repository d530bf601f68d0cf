"""An answer of a language model becomes values of a row."""

import ast
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from polyvec.errors import SettingsError, known
from polyvec.llm.answers import Answer
from polyvec.synthesize.prompt_files import AnswerForm
from polyvec.synthesize.rows import Row

TARGETS = ("anchor", "positive", "negative", "instruction", "score", "meta.NAME")
META = "meta."
BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")
NUMBER = re.compile(r"[-+]?\d*\.?\d+")
MAX_CHARACTERS = 4000  # of a text in a JSON answer, which constrained decoding must bound


class UnreadableError(ValueError):
    """The answer is not of the form; the message says why, in a few words."""


def check_target(target: str, where: str) -> None:
    """SettingsError for what is no field of a row."""
    if target not in TARGETS[:-1] and not (target.startswith(META) and target != META):
        raise SettingsError(f"{where}: {target!r} is no field of a row.{known(target, TARGETS)}")


def schema_of(form: AnswerForm) -> dict[str, Any] | None:
    """The JSON schema that the answer must satisfy; None for answers that are not JSON."""
    if form.kind != "json":
        return None
    text = {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}
    number = {"type": "number", "minimum": form.low, "maximum": form.high}
    keys = {key: number if to == "score" else text for key, to in form.fields.items()}
    return {
        "type": "object",
        "properties": keys,
        "required": list(keys),
        "additionalProperties": False,
    }


def read_answer(answer: Answer, form: AnswerForm) -> list[dict[str, Any]]:
    """What each row gets, by target; one table, or several for lists. UnreadableError if none."""
    text = answer.text.strip()
    if not text:
        raise UnreadableError("empty answer")
    match form.kind:
        case "text":
            return [{form.to: text}]
        case "first_line":
            return [{form.to: text.splitlines()[0].strip()}]
        case "json":
            return [_object(answer, form)]
        case "number":
            return [{form.to: _number(text, form)}]
        case "choice":
            return [{form.to: _choice(text, form)}]
    values = _list(text) if form.kind == "list" else _lines(text)
    if form.each == "rows":
        return [{form.to: each} for each in values]
    return [{form.to: tuple(values)}]


def with_values(row: Row, values: Mapping[str, Any]) -> Row:
    """The row with the values of an answer; negatives are added to those that it has."""
    for target, value in values.items():
        if target.startswith(META):
            row = row.with_meta(**{target.removeprefix(META): value})
        elif target == "negative":
            more = value if isinstance(value, tuple) else (value,)
            row = dataclasses.replace(row, negatives=(*row.negatives, *more))
        else:
            row = dataclasses.replace(row, **{target: value})
    return row


def _lines(text: str) -> list[str]:
    return [found for line in text.splitlines() if (found := BULLET.sub("", line).strip())]


def _list(text: str) -> list[str]:
    start, end = text.find("["), text.rfind("]")
    if start < 0 or end < start:
        raise UnreadableError("no list in the answer")
    inside = text[start : end + 1]
    try:
        found = json.loads(inside)
    except ValueError:
        try:
            found = ast.literal_eval(inside)  # a Python list; runs no code
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UnreadableError("the list of the answer cannot be read") from None
    texts = [each.strip() for each in found if isinstance(each, str) and each.strip()]
    if not texts or len(texts) < len(found):
        raise UnreadableError("the answer is no list of texts")
    return texts


def _object(answer: Answer, form: AnswerForm) -> dict[str, Any]:
    found = answer.parsed
    if found is None:
        text = answer.text
        start, end = text.find("{"), text.rfind("}")
        try:
            found = json.loads(text[start : end + 1])
        except ValueError:
            raise UnreadableError("no JSON object in the answer") from None
    values: dict[str, Any] = {}
    for key, target in form.fields.items():
        value = found.get(key) if isinstance(found, dict) else None
        wanted: Any = (int, float) if target == "score" else str
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise UnreadableError(f"JSON without {key!r}")
        value = value.strip() if isinstance(value, str) else float(value)
        if value == "":
            raise UnreadableError(f"JSON with an empty {key!r}")
        if target == "negative" and target in values:
            values[target] = (*values[target], value)
        else:
            values[target] = (value,) if target == "negative" else value
    return values


def _number(text: str, form: AnswerForm) -> float:
    match = NUMBER.search(text)
    if match is None:
        raise UnreadableError("no number in the answer")
    value = float(match.group())
    if not form.low <= value <= form.high:
        raise UnreadableError(f"number outside of {form.low:g} to {form.high:g}: {value:g}")
    return value


def _choice(text: str, form: AnswerForm) -> str:
    """The choice that comes first in the answer."""
    lower = text.casefold()
    places = {each: lower.find(each.strip().casefold()) for each in form.choices}
    there = {each: place for each, place in places.items() if place >= 0}
    if not there:
        raise UnreadableError(f"none of {', '.join(map(str.strip, form.choices))} in the answer")
    return min(there, key=lambda each: (there[each], -len(each))).strip()
