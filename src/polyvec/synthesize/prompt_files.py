"""Prompts as data: one TOML file a name, with its source, typed slots and the form of its answer.

Byte-exact where a paper or its code gives the text; `source` says which, or "ours".
"""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polyvec.errors import DataError, InputError, SettingsError, known
from polyvec.llm.prompts import Prompt
from polyvec.llm.slots import SlotTemplate
from polyvec.settings import fill

FOLDER = Path(__file__).parent / "prompts"
DEMONSTRATIONS = "demonstrations"  # the slot where they stand, and the table that has them


@dataclass(frozen=True, slots=True)
class Slot:
    """What stands in a slot.

    type: "text" or "number" from the row, "choice" drawn from `values`.
    field: of the row (anchor, positive, negative, instruction, score, or a key of meta); default:
        the slot's own name. max_words: the most that is read of a text.
    """

    type: Literal["text", "number", "choice"] = "text"
    field: str | None = None
    values: tuple[str | int | float, ...] = ()
    max_words: int | None = None


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How an answer is read, and where it goes; the rest are defaults of the generation.

    kind: "text" (all of it), "first_line", "lines" (a value each, without bullets), "list" (a JSON
        or Python list of strings, a value each), "json" (an object, whose `fields` say which key
        goes where), "number" (the first one, from `low` to `high`), "choice" (one of `choices`).
    to: anchor, positive, negative, instruction, score or meta.NAME. each: whether several values
        make a row each ("rows"), or negatives of one row ("row").
    """

    kind: Literal["text", "first_line", "lines", "list", "json", "number", "choice"] = "text"
    to: str = "anchor"
    each: Literal["rows", "row"] = "rows"
    fields: Mapping[str, str] = field(default_factory=dict)
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt by name. plain: a text that the model goes on with; else a chat of one question."""

    source: str
    template: str
    answer: AnswerForm
    name: str = ""
    system: str | None = None
    plain: bool = False
    demonstration: str | None = None
    num_demonstrations: int = 0
    slots: Mapping[str, Slot] = field(default_factory=dict)
    demonstrations: tuple[Mapping[str, Any], ...] = ()

    def parsed(self) -> SlotTemplate:
        return _parsed(self.template, self.name)

    def asked(self, values: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> Prompt:
        """The prompt with these values and demonstrations; InputError for a missing value."""
        own = dict(values)
        if self.demonstration is not None:
            each = _parsed(self.demonstration, f"{self.name}: demonstration")
            numbered = enumerate(shown, 1)
            parts = [each.render({"number": i, **given}) for i, given in numbered]
            own[DEMONSTRATIONS] = "".join(parts)
            own["number"] = len(shown) + 1
        text = self.parsed().render(own)
        if self.plain:
            return text
        system = []
        if self.system:
            told = _parsed(self.system, f"{self.name}: system").render(own)
            system = [{"role": "system", "content": told}]
        return [*system, {"role": "user", "content": text}]

    def drawn(
        self, row: Mapping[str, Any], given: Mapping[str, Any], seed: tuple[int, ...]
    ) -> dict[str, Any]:
        """The values of the slots for a row: of a step's own table, else as the file says.

        In the step's table a list is drawn from, a text names a field of the row.
        """
        draw = np.random.default_rng(seed)
        return {
            name: self._value(name, slot, row, given.get(name), draw)
            for name, slot in sorted(self.slots.items())
        }

    def _value(
        self, name: str, slot: Slot, row: Mapping[str, Any], given: Any, draw: np.random.Generator
    ) -> Any:
        values = given if isinstance(given, list | tuple) else slot.values
        if isinstance(given, list | tuple) or (
            slot.type == "choice" and not isinstance(given, str)
        ):
            return values[int(draw.integers(len(values)))]
        source = given if isinstance(given, str) else slot.field or name
        value = row.get(source)
        if value is None:
            raise InputError(f"slot {name!r}: the row has no {source!r}")
        if slot.type == "number":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"slot {name!r}: {source!r} is {value!r}, not a number")
            return value
        if slot.type == "text" and not isinstance(value, str):
            raise InputError(f"slot {name!r}: {source!r} is {type(value).__name__}, not a text")
        if isinstance(value, str) and not value.strip():
            raise InputError(f"slot {name!r}: {source!r} is empty")
        if slot.max_words is not None:
            found = value.split()
            value = value if len(found) <= slot.max_words else " ".join(found[: slot.max_words])
        return value


def prompt_names(folder: Path = FOLDER) -> list[str]:
    """The names of the prompts inside the package."""
    return sorted(path.stem for path in folder.glob("*.toml"))


@functools.lru_cache(maxsize=256)
def prompt_file(name: str, where: str = "prompt", folder: Path = FOLDER) -> PromptFile:
    """The prompt of a name, or of a file NAME.toml; SettingsError says what is wrong with it."""
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        names = prompt_names(folder)
        raise SettingsError(f"{where}: prompt {name!r} is not known.{known(name, names)}")
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: not TOML ({error})") from None
    place = str(path) if name.endswith(".toml") else f"prompt {name!r}"
    slots = {key: fill(Slot, each, f"{place} slot {key!r}") for key, each in _slots(raw, place)}
    answer = fill(AnswerForm, raw.pop("answer", {}), f"{place} [answer]")
    raw |= {"slots": {}, "answer": {}, "name": path.stem}
    found: PromptFile = PromptFile(
        **{**_typed(raw, place), "slots": slots, "answer": answer},
    )
    _check(found, place)
    return found


def _slots(raw: dict[str, Any], place: str) -> list[tuple[str, Any]]:
    found = raw.pop("slots", {})
    if not isinstance(found, dict):
        raise SettingsError(f"{place} key 'slots' is {found!r}, not a table")
    return list(found.items())


def _typed(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    from polyvec.settings import typed

    plain = {key: value for key, value in raw.items() if key not in ("slots", "answer")}
    return typed(PromptFile, plain, place, partial=True) | _required(plain, place)


def _required(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    for name in ("source", "template"):
        if name not in raw:
            raise SettingsError(f"{place} key {name!r} is missing")
    return {}


def _check(found: PromptFile, place: str) -> None:
    """Every slot of the template is described, and the other way round."""
    templates = [found.parsed(), *([_parsed(found.system, place)] if found.system else [])]
    used = {name for each in templates for name in each.slots}
    own = set(found.slots) | ({DEMONSTRATIONS, "number"} if found.demonstration else set())
    for name in sorted(used - own):
        raise SettingsError(
            f"{place}: slot {name!r} of the template is not in [slots].{known(name, own)}"
        )
    for name in sorted(set(found.slots) - used):
        raise SettingsError(f"{place}: slot {name!r} is not in the template")
    for name, slot in found.slots.items():
        if slot.values and slot.type != "choice":
            raise SettingsError(f"{place} slot {name!r}: values need type = 'choice'")
    if found.answer.kind == "json" and not found.answer.fields:
        raise SettingsError(f"{place} [answer]: kind 'json' needs fields = {{ key = 'anchor' }}")


@functools.lru_cache(maxsize=256)
def _parsed(text: str, where: str) -> SlotTemplate:
    return SlotTemplate.parse(text, where)


def demonstrations_of(path: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a file of demonstrations; DataError for one without a needed column."""
    from polyvec.data.texts import read_rows

    found = []
    for where, row in read_rows(path):
        for name in needed:
            if row.get(name) is None:
                raise DataError(f"{where}: a demonstration has no {name!r}.{known(name, row)}")
        found.append(row)
    return found
