"""Prompts from rows of data: a template with slots, "Write a question about: {text}"."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from polyvec.data.texts import as_json
from polyvec.errors import InputError, SettingsError, known

JSON_TYPES = (str, int, float, list, dict)
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class SlotTemplate:
    """A text with slots, which are names of a row's fields.

    Values are data: braces in them stay. A text or a date stands as it is, other values as JSON.

    >>> SlotTemplate.parse("{name}: {{{year}}}").render({"name": "a {b}", "year": 1999})
    'a {b}: {1999}'
    """

    pieces: tuple[tuple[str, bool], ...]  # a text, and whether it is the name of a slot

    @classmethod
    def parse(cls, text: str, where: str = "template") -> "SlotTemplate":
        """SettingsError for a brace without its partner."""
        pieces: list[tuple[str, bool]] = []
        literal, end = "", 0
        for match in _PIECE.finditer(text):
            literal += text[end : match.start()]
            end = match.end()
            if match.group() in ("{{", "}}"):
                literal += match.group()[0]
            elif match.group(1) is None:
                raise SettingsError(
                    f"{where}: {match.group()!r} at character {match.start()} is unmatched; "
                    f"write {match.group() * 2!r} for a literal brace"
                )
            else:
                pieces += [(literal, False), (match.group(1), True)]
                literal = ""
        return cls((*pieces, (literal + text[end:], False)))

    @property
    def slots(self) -> list[str]:
        return [text for text, is_slot in self.pieces if is_slot]

    def check(self, fields: Collection[str], where: str = "template") -> None:
        """SettingsError for a slot that is not among the fields."""
        for name in self.slots:
            if name not in fields:
                raise SettingsError(
                    f"{where}: slot {name!r} is not a field of the rows; for literal braces write "
                    f"{{{{ and }}}}.{known(name, fields)}"
                )

    def render(self, row: Mapping[str, Any]) -> str:
        """The text with the row's values; InputError for a value that is missing or no text."""
        return "".join(_value(row, text) if is_slot else text for text, is_slot in self.pieces)


def _value(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        raise InputError(f"the field {name!r} is {'null' if name in row else 'missing'}")
    # A date is not JSON: it stands without quotation marks, like a text.
    plain = value if isinstance(value, JSON_TYPES) else as_json(value)
    text = (
        plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, default=as_json)
    )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the field {name!r} has a lone surrogate at character {error.start}, which is not "
            "valid Unicode"
        ) from None
    return text
