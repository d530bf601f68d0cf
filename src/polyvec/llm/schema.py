"""JSON by a schema: the schema is checked before anything is written, each answer after it.

The reading is strict. Nothing is repaired: a code fence, a word before or after the value, a key
given twice or NaN make an answer an error, which says what was found.
"""

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from polyvec.data.strict_json import strict_json
from polyvec.errors import MissingExtraError, SettingsError
from polyvec.llm.answers import Answer

# Keywords without a rule of their own, and the usual ones of OpenAPI and pydantic.
ANNOTATIONS = frozenset(
    [
        *("$anchor", "$comment", "$defs", "$dynamicAnchor", "$id", "$schema", "$vocabulary"),
        *("contentEncoding", "contentMediaType", "contentSchema", "default", "definitions"),
        *("deprecated", "description", "discriminator", "else", "example", "examples", "format"),
        *("id", "maxContains", "minContains", "nullable", "readOnly", "then", "title"),
        *("writeOnly", "x-guidance"),
    ]
)
CLOSE = 0.85  # of a keyword's letters: "maxlength", "require"
SHOWN = 160  # characters of a message or a text in an error


def check_schema(schema: object) -> None:
    """Raises SettingsError, in one line, for what is not a JSON schema.

    Draft 2020-12 unless `$schema` names another. References must lead to places in the schema. An
    unknown keyword means nothing, so one that resembles a known keyword is an error, too.
    """
    if hasattr(schema, "model_json_schema"):
        raise SettingsError("schema is a pydantic model; give its model_json_schema()")
    if not isinstance(schema, Mapping):
        raise SettingsError(f"schema must be a JSON schema (a dict), got {_short(repr(schema))}")
    try:
        _validator(_described(schema))
    except (TypeError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"schema is not JSON ({error})") from None


def parse(text: str, schema: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The value of a JSON text and None; or None and what is wrong with it, in one line.

    Spaces and line breaks around the value are no error. The value satisfies the schema, `format`
    included where it can be checked without further packages (date, email, ipv4, ipv6, uuid).
    """
    from jsonschema.exceptions import best_match

    try:
        value = strict_json(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        problem = best_match(_validator(_described(schema)).iter_errors(value))
    except UnicodeEncodeError:
        return None, "not JSON: half of a surrogate pair stands alone, which is not a character"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {_where(text, error)}"
    except ValueError as error:
        return None, f"not JSON: {_short(str(error))}"
    except RecursionError:
        return None, "not JSON that can be read: nested too deeply"
    if problem is not None:
        return None, f"not of the schema: {problem.json_path}: {_short(problem.message)}"
    return value, None


def with_value(answer: Answer, schema: Mapping[str, Any] | None) -> Answer:
    """The answer with the value that its text is (`parsed`), or with what is wrong (`error`).

    A cut answer has a value if the text is complete all the same; never a bare number, whose next
    digits may be missing. Without a schema the answer stays as it is.
    """
    if schema is None:
        return answer
    if answer.finish == "refusal":
        return dataclasses.replace(answer, parsed=None, error="refused")
    value, error = parse(answer.text, schema)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    unfinished = is_number or (error is not None and error.startswith("not JSON"))
    if answer.finish == "length" and unfinished:
        value, error = None, f"cut by max_new_tokens after {answer.new_tokens} tokens: not complete"
    return dataclasses.replace(answer, parsed=value, error=error)


def _described(schema: Mapping[str, Any]) -> str:
    return json.dumps(dict(schema), allow_nan=False)


@functools.lru_cache(maxsize=64)
def _validator(described: str) -> Any:
    """What checks values by a schema; SettingsError for a malformed one."""
    try:
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import extend, validator_for
        from referencing import Registry
    except ImportError:
        raise MissingExtraError("jsonschema", "llm", "an answer by a JSON schema") from None
    schema = json.loads(described)
    kind, dialect = Draft202012Validator, schema.get("$schema")
    if dialect is not None:
        kind = validator_for(schema, default=None) if isinstance(dialect, str) else None
    if kind is None:
        raise SettingsError(f"schema: $schema {dialect!r} is not known; leave it out")
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise SettingsError(f"schema: {error.json_path}: {_short(error.message)}") from None
    _check_parts(schema, kind)
    exact = extend(kind, {"multipleOf": _multiple_of})
    # An own registry: the default one would fetch references from the network.
    validator = exact(schema, registry=Registry(), format_checker=kind.FORMAT_CHECKER)
    try:
        validator.is_valid(None)
    except RecursionError:
        raise SettingsError("schema: it refers to itself without end") from None
    return validator


def _multiple_of(validator: Any, step: float, value: Any, _: Any) -> Iterator[Any]:
    """As written in decimals: jsonschema divides floats, so that 8.2 is no multiple of 0.1."""
    from jsonschema import ValidationError

    if validator.is_type(value, "number") and Fraction(repr(value)) % Fraction(repr(step)):
        yield ValidationError(f"{value!r} is not a multiple of {step!r}")


def _check_parts(schema: dict[str, Any], kind: Any) -> None:
    """Raises SettingsError for a reference that leads nowhere, and for a misspelt keyword."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    known = ANNOTATIONS | set(kind.VALIDATORS)
    root = specification_with(kind.META_SCHEMA["$schema"]).create_resource(schema)
    pending = [(root, Registry().resolver_with_root(root))]
    while pending:
        part, resolver = pending.pop()
        if isinstance(part.contents, Mapping):
            _check_keywords(part.contents, known)
            reference = part.contents.get("$ref")
            try:
                if reference is not None:
                    resolver.lookup(reference)
            except Unresolvable:
                raise SettingsError(
                    f"schema: $ref {reference!r} leads to no place in the schema"
                ) from None
        pending += [(each, resolver.in_subresource(each)) for each in part.subresources()]


def _check_keywords(keywords: Iterable[str], known: Iterable[str]) -> None:
    lower = {word.lower(): word for word in known}
    for word in keywords:
        close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=CLOSE)
        if close and word not in lower.values():
            raise SettingsError(
                f"schema: keyword {word!r} is not known. Did you mean {lower[close[0]]!r}?"
            )


def _where(text: str, error: json.JSONDecodeError) -> str:
    if not text.strip():
        return "the answer is empty"
    if text.lstrip().startswith("```"):
        return "a code fence stands around it; ask for bare JSON"
    found = text[error.pos :].strip()
    at = f"found {_short(found, 40)!r}" if found else "the text ends"
    return f"{error.msg}, {at} (line {error.lineno}, column {error.colno})"


def _short(text: str, limit: int = SHOWN) -> str:
    """The text in one line, its middle left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 :]}"
