"""Filters of metadata: `year >= 2020 and lang in ("en", "de")`, as text, as a dict, or as a tree.

    expression := term ("or" term)*
    term       := factor ("and" factor)*
    factor     := "not" factor | "(" expression ")" | field operator value | field "in" "(" ... ")"
                | field "not in" "(" ... ")" | field "exists"
    operator   := "=" | "==" | "!=" | "<" | "<=" | ">" | ">="
    value      := "text" | 'text' | number | true | false

A dict is LangChain's and Pinecone's form: {"lang": "en", "year": {"$gte": 2020}}, with $and, $or
and $not; a string that begins with { is one as JSON. A text without the field fits no comparison
with it, `!=` and `not in` neither, but `not (field = value)` holds for it: the same in every
engine.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polyvec.data.strict_json import strict_json
from polyvec.errors import InputError, known

Value = str | int | float | bool
Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Kind = Literal["text", "int", "float", "bool"]

COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
FIELD = re.compile(r"[A-Za-z_]\w{0,62}", re.ASCII)
DEPTH = 50  # of nested parts: more is a mistake, and would end in Python's own recursion limit


@dataclass(frozen=True, slots=True)
class Compare:
    """A field beside a value; False for a text without the field."""

    field: str
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class In:
    """A field's value is one of these."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """The text has the field."""

    field: str


@dataclass(frozen=True, slots=True)
class Not:
    """What is inside does not hold."""

    inside: "Filter"


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of the parts holds."""

    parts: tuple["Filter", ...]


Filter = Compare | In | Exists | Not | And | Or


# ---- from text ----------------------------------------------------------------------------------

TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<operator>==|!=|<=|>=|<|>|=|\(|\)|,)
      | (?P<word>[A-Za-z_]\w*)
    )""",
    re.VERBOSE | re.ASCII,
)


def read_filter(given: "str | Mapping[str, Any] | Filter | None") -> Filter | None:
    """The filter as a tree; None for nothing. Raises InputError that shows where it stops."""
    if given is None or isinstance(given, Compare | In | Exists | Not | And | Or):
        return given
    if isinstance(given, Mapping):
        return _of_dict(given, 0)
    if not isinstance(given, str):
        raise InputError(f"filter is {type(given).__name__}, expected a string or a dict")
    if given.lstrip().startswith("{"):  # a dict on the command line
        try:
            found = strict_json(given)
        except (ValueError, RecursionError) as error:
            raise InputError(f"filter {given!r}: not JSON ({error})") from None
        return _of_dict(found, 0)
    return _Reader(given).read() if given.strip() else None


class _Reader:
    """A recursive descent over the tokens of one filter."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.tokens = list(self._tokens())

    def read(self) -> Filter:
        found = self._expression(0)
        if self.place < len(self.tokens):
            raise self._wrong("'and', 'or' or the end")
        return found

    def _tokens(self) -> Iterator[tuple[str, str, int]]:
        at, end = 0, len(self.text.rstrip())
        while at < end:
            match = TOKEN.match(self.text, at)
            if match is None:
                raise InputError(
                    f"filter {self.text!r}: cannot read {self.text[at:].strip()[:20]!r}; write it "
                    'as: year >= 2020 and lang = "en"'
                )
            kind = match.lastgroup or ""
            yield kind, match[kind], match.start(kind)
            at = match.end()

    def _expression(self, depth: int) -> Filter:
        parts = [self._term(depth)]
        while self._word("or"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _term(self, depth: int) -> Filter:
        parts = [self._factor(depth)]
        while self._word("and"):
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _factor(self, depth: int) -> Filter:
        _check_depth(depth)
        if self._word("not"):
            return Not(self._factor(depth + 1))
        if self._symbol("("):
            inside = self._expression(depth + 1)
            self._expect(")")
            return inside
        kind, field, _ = self._next("a field's name")
        if kind != "word":
            self.place -= 1
            raise self._wrong("a field's name")
        if self._word("exists"):
            return Exists(_field(field))
        negated = self._word("not")
        if self._word("in"):
            self._expect("(")
            values = [self._value()]
            while self._symbol(","):
                values.append(self._value())
            self._expect(")")
            found = In(_field(field), tuple(values))
            return And((Exists(found.field), Not(found))) if negated else found
        kind, sign, _ = self._next("=, !=, <, <=, >, >=, in or exists")
        if negated or kind != "operator" or sign in "(),":
            self.place -= 1
            raise self._wrong("=, !=, <, <=, >, >=, in or exists")
        return _compare(field, "=" if sign == "==" else sign, self._value())

    def _value(self) -> Value:
        kind, text, _ = self._next("a value")
        if kind == "text":
            return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
        if kind == "number":
            # Python reads no whole number of over 4,300 digits; a float of so many is infinite.
            whole = len(text) < 400 and re.fullmatch(r"-?\d+", text)
            return int(text) if whole else float(text)
        if kind == "word" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        self.place -= 1
        raise self._wrong("a value: text in quotes, a number, true or false")

    def _next(self, expected: str) -> tuple[str, str, int]:
        if self.place >= len(self.tokens):
            raise self._wrong(expected)
        self.place += 1
        return self.tokens[self.place - 1]

    def _word(self, word: str) -> bool:
        found = self.place < len(self.tokens) and (
            self.tokens[self.place][0] == "word" and self.tokens[self.place][1].lower() == word
        )
        self.place += found
        return found

    def _symbol(self, symbol: str) -> bool:
        found = self.place < len(self.tokens) and self.tokens[self.place][:2] == (
            "operator",
            symbol,
        )
        self.place += found
        return found

    def _expect(self, symbol: str) -> None:
        if not self._symbol(symbol):
            raise self._wrong(repr(symbol))

    def _wrong(self, expected: str) -> InputError:
        if self.place < len(self.tokens):
            _, token, at = self.tokens[self.place]
            found = f"{token!r} at character {at}"
        else:
            found = "the end"
        return InputError(f"filter {self.text!r}: expected {expected}, got {found}")


def _check_depth(depth: int) -> None:
    if depth > DEPTH:
        raise InputError(f"filter: more than {DEPTH} parts within one another")


def _field(name: Any) -> str:
    if not isinstance(name, str) or not FIELD.fullmatch(name):
        raise InputError(
            f"filter: {name!r} is not a field's name (letters, digits and _, at most 63)"
        )
    return name


def _compare(field: Any, sign: str, value: Any) -> Compare:
    _check_value(field, value)
    if isinstance(value, bool) and sign not in ("=", "!="):
        raise InputError(f"filter: {field} {sign} {value}: true and false have no order")
    return Compare(_field(field), sign, value)  # type: ignore[arg-type]


def _check_value(field: Any, value: Any) -> None:
    if not isinstance(value, str | int | float):
        raise InputError(
            f"filter: {field} is compared with {type(value).__name__} {value!r}, expected text, a "
            "number, true or false"
        )
    if isinstance(value, str) and value.encode(errors="ignore").decode() != value:
        raise InputError(f"filter: {field} is compared with {value!r:.60}, not valid Unicode")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"filter: {field} is compared with a whole number of more than 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"filter: {field} is compared with {value}, expected a finite number")


# ---- from a dict --------------------------------------------------------------------------------

SIGNS = {"$eq": "=", "$ne": "!=", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}
KNOWN = (*SIGNS, "$in", "$nin", "$exists")


def _of_dict(given: Mapping[str, Any], depth: int) -> Filter:
    _check_depth(depth)
    parts = [part for key, value in given.items() for part in _of_item(key, value, depth)]
    if not parts:
        raise InputError("filter: an empty dict; pass None for no filter")
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _of_item(key: Any, value: Any, depth: int) -> list[Filter]:
    if key in ("$and", "$or"):
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise InputError(f"filter: {key} takes a list of filters, got {value!r}")
        inside = tuple(_of_dict(_dict(key, each), depth + 1) for each in value)
        return [And(inside) if key == "$and" else Or(inside)]
    if key == "$not":
        return [Not(_of_dict(_dict(key, value), depth + 1))]
    if isinstance(key, str) and key.startswith("$"):
        raise InputError(f"filter: {key!r} is not known.{known(key, ('$and', '$or', '$not'))}")
    field = _field(key)
    if not isinstance(value, Mapping):
        return [_compare(field, "=", value)]
    if not value:
        raise InputError(f"filter: {field} has an empty dict")
    return [_of_operator(field, sign, each) for sign, each in value.items()]


def _of_operator(field: str, sign: Any, value: Any) -> Filter:
    if sign in SIGNS:
        return _compare(field, SIGNS[sign], value)
    if sign in ("$in", "$nin"):
        if not isinstance(value, Sequence | set | frozenset) or isinstance(value, str) or not value:
            raise InputError(f"filter: {field} {sign} takes a list of values, got {value!r}")
        for each in value:
            _check_value(field, each)
        found = In(field, tuple(value))
        return found if sign == "$in" else And((Exists(field), Not(found)))
    if sign == "$exists":
        if not isinstance(value, bool):
            raise InputError(f"filter: {field} $exists takes true or false, got {value!r}")
        return Exists(field) if value else Not(Exists(field))
    raise InputError(f"filter: {field}: {sign!r} is not known.{known(str(sign), KNOWN)}")


def _dict(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"filter: {key} takes filters as dicts, got {value!r}")
    return value


# ---- what a filter asks -------------------------------------------------------------------------


def matches(given: Filter, metadata: Mapping[str, Value]) -> bool:
    """Whether a text with this metadata is let through: what every engine must agree with."""
    match given:
        case And(parts):
            return all(matches(part, metadata) for part in parts)
        case Or(parts):
            return any(matches(part, metadata) for part in parts)
        case Not(inside):
            return not matches(inside, metadata)
        case Exists(field):
            return field in metadata
        case In(field, values):
            return field in metadata and metadata[field] in values
        case Compare(field, sign, value):
            return field in metadata and COMPARE[sign](metadata[field], value)


def check_fields(given: Filter, fields: Mapping[str, Kind]) -> None:
    """Raises InputError for a field that the index does not have, or a value of another kind."""
    for field, values in _asked(given):
        if field not in fields:
            raise InputError(
                f"filter: the index has no field {field!r}."
                + (known(field, fields) if fields else " Its texts have no metadata.")
            )
        for value in values:
            if not _fits(value, fields[field]):
                raise InputError(
                    f"filter: {field} is {fields[field]}, compared with {value!r}"
                    + (f'; write "{value}"' if fields[field] == "text" else "")
                )


def _asked(given: Filter) -> Iterator[tuple[str, tuple[Value, ...]]]:
    """Each field that is named, with the values beside it."""
    match given:
        case And(parts) | Or(parts):
            for part in parts:
                yield from _asked(part)
        case Not(inside):
            yield from _asked(inside)
        case Exists(field):
            yield field, ()
        case In(field, values):
            yield field, values
        case Compare(field, _, value):
            yield field, (value,)


def kind_of(value: Value) -> Kind:
    """The kind of field that a value of metadata makes."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return "float" if isinstance(value, float) else "text"


def _fits(value: Value, kind: Kind) -> bool:
    found = kind_of(value)
    return found == kind or {found, kind} <= {"int", "float"}
