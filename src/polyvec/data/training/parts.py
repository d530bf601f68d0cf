"""Parts of rows that several forms of training data share: passages, instructions, chats."""

from collections.abc import Mapping

from polyvec.data.training.cells import Cells, EmptyTextError
from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError


def is_pair(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(each, str) for each in value)
    )


def is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def is_numbered(name: str, stem: str) -> bool:
    return name == stem or name.startswith(f"{stem}_") or name == f"{stem}s"


def some(cells: Cells, positives: tuple[str, ...]) -> tuple[str, ...]:
    if not positives:
        raise EmptyTextError(
            f"{cells.place}: no positive. Correct the file, or leave such rows out with "
            "skip_empty = true."
        )
    return positives


def label(cells: Cells) -> int | None:
    return cells.label() if cells.has("label") else None


def passages(cells: Cells, name: str) -> tuple[str, ...]:
    return tuple(titled(each) for each in cells.tables(name))


def titled(cells: Cells) -> str:
    """ "title text", as Tevatron joins them; an empty title is left out."""
    title = cells.values.get("title")
    body = cells.text("text")
    return f"{title} {body}" if isinstance(title, str) and title.strip() else body


def documents(cells: Cells, name: str) -> tuple[str, ...]:
    value = cells.values.get(name)
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple(
        titled(cells.table(item, name)) if isinstance(item, Mapping) else cells.checked(item, name)
        for item in items
    )


def instructed(cells: Cells, value: object, name: str) -> tuple[str | None, str]:
    """(instruction, text) of a string or of [instruction, text]."""
    if isinstance(value, str):
        return None, cells.checked(value, name)
    if not isinstance(value, list | tuple) or not is_pair(value):
        raise DataError(f"{cells.place}: {name!r} is neither a text nor [instruction, text]")
    return str(value[0]), cells.checked(value[1], name)


def pairs_of(value: object) -> list[object]:
    if value is None:
        return []
    is_list = isinstance(value, list | tuple) and not is_pair(value)
    return list(value) if is_list else [value]  # type: ignore[call-overload]


def same(cells: Cells, instructions: list[str | None]) -> str | None:
    """The one instruction of all documents; DataError if they have several."""
    found = set(instructions)
    if len(found) > 1:
        raise DataError(f"{cells.place}: the documents have different instructions: {found}")
    return found.pop() if found else None


def task(cells: Cells) -> str:
    """The name of a row's own task, for batches of one task."""
    for name in ("task_name", "task_id"):
        if cells.has(name):
            return str(cells.value(name))
    return ""


def chat(cells: Cells, turns: tuple[str, ...]) -> TrainingRow:
    if not turns or len(turns) % 2:
        raise DataError(
            f"{cells.place}: a chat of {len(turns)} turns; expected user and assistant in turn"
        )
    return TrainingRow(turns[0], turns=turns, place=cells.place)


def message_texts(cells: Cells, name: str) -> tuple[str, ...]:
    chats = cells.values.get(name) or []
    if not isinstance(chats, list):
        raise DataError(f"{cells.place}: {name!r} is not a list of chats")
    return tuple(
        "\n".join(turns([cells.table(each, name) for each in chat], cells.place)) for chat in chats
    )


def turns(parts: list[Cells], place: str) -> tuple[str, ...]:
    lead = ""
    turns = []
    for part in parts:
        role, content = part.text("role"), part.text("content")
        if role == "system":
            lead += f"{content}\n\n"
            continue
        turns.append(lead + content)
        lead = ""
    if not turns:
        raise DataError(f"{place}: a chat without a message")
    return tuple(turns)
