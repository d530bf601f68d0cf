"""README.md of a model folder: the hub's metadata, and all settings that decide a vector.

The card of the folder that a model came from stays with its weights: its metadata (licence,
languages, data sets) in every save, its text as long as the weights are what it describes.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

FILE = "README.md"
BEGIN, END = "<!-- polyvec: settings -->", "<!-- polyvec: end of settings -->"
OF_SCORES = ("model-index",)  # metadata that training makes untrue
OWN = {
    "library_name": ["library_name: sentence-transformers"],
    "pipeline_tag": ["pipeline_tag: sentence-similarity"],
    "tags": ["tags: [sentence-transformers, sentence-similarity, feature-extraction, polyvec]"],
}
Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """The card that came with weights, and a stamp of them, () if they are only a part.

    `folder` is where it was read, or last saved: what was written into it since is read again.
    """

    text: str
    stamp: Stamp = ()
    folder: Path | None = None


def read_card(folder: Path, modules: Iterable[object] = ()) -> Card | None:
    """The card of a folder whose weights are those of the modules; None without one."""
    path = folder / FILE
    if not path.is_file():
        return None
    return Card(path.read_text("utf-8", errors="replace"), weights_stamp(modules), folder)


def card_of(target: Path | None, *, saved: Card | None, loaded: Card | None) -> Card | None:
    """The card of a model that is saved to `target`: what its folder says now, if it is there.

    Whoever writes a licence into a folder, saves there again and finds it gone would have lost it.
    Of another folder's model the card is not this model's.
    """
    for card in (saved, loaded):
        if card is not None and target is not None and _is_at(card, target):
            text = (target / FILE).read_text("utf-8", errors="replace")
            return dataclasses.replace(card, text=text)
    return loaded


def _is_at(card: Card, target: Path) -> bool:
    there = card.folder is not None and card.folder.exists() and (target / FILE).is_file()
    return there and target.samefile(card.folder)  # type: ignore[arg-type]


def saved_card(text: str, folder: Path, modules: Iterable[object]) -> Card:
    """The card that has just been written with these modules."""
    return Card(text, weights_stamp(modules), folder.absolute())


def weights_stamp(modules: Iterable[object]) -> Stamp:
    """Number of tensors, of numbers, and of changes in place: another one after training."""
    each = {id(p): p for m in modules if isinstance(m, nn.Module) for p in m.parameters()}
    changes = sum(0 if p.is_inference() else p._version for p in each.values())
    return (len(each), sum(p.numel() for p in each.values()), changes) if each else ()


def model_card(
    settings: Mapping[str, Any], dimension: int, source: Card | None = None, stamp: Stamp = ()
) -> str:
    """The text of a card; `source` came with the weights, whose stamp is now `stamp`."""
    section = [
        BEGIN,
        f"An embedding model with {dimension} dimensions, saved with polyvec.",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {key} | `{json.dumps(value)}` |" for key, value in settings.items()),
        "",
        END,
    ]
    metadata, text = _split(source.text) if source is not None else ({}, "")
    as_described = source is not None and stamp == source.stamp != ()
    if not as_described:
        metadata = {key: lines for key, lines in metadata.items() if key not in OF_SCORES}
    kept = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", "", text, flags=re.S).strip()
    head = [line for lines in {**OWN, **metadata}.values() for line in lines]
    body = f"{kept}\n\n" if kept and as_described else ""
    return "\n".join(["---", *head, "---", "", ""]) + body + "\n".join([*section, ""])


def _split(card: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each key of a card's metadata, as they are written, and its text."""
    lines = card.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---" or "---" not in map(str.rstrip, lines[1:]):
        return {}, card
    end = [line.rstrip() for line in lines].index("---", 1)
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:end]:
        started = re.match(r"([\w-]+):(\s|$)", line)
        key = started[1] if started else key
        found.setdefault(key, []).append(line)
    return found, "\n".join(lines[end + 1 :])
