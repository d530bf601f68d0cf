"""How `polyvec search` prints hits: a table on a terminal, lines elsewhere, or JSON lines."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from polyvec.index.snippets import snippet

if TYPE_CHECKING:
    from polyvec.index.records import Explanation, Hit

SHARES = 5  # words that are printed of an explanation


def show(hits: "Iterable[Hit]", query: str = "") -> None:
    """Print score, id and the best snippet of each hit."""
    hits = list(hits)
    if sys.stdout.isatty():
        _table(hits, query)
        return
    for hit in hits:
        print(f"  {hit.score:.3f}  {_visible(place(hit))}  {_snippet(hit, query).text}")
        for line in explanation_lines(hit.explanation):
            print(f"      {line}")


def _table(hits: "Sequence[Hit]", query: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = bool(os.environ.get("NO_COLOR"))
    table = Table(header_style="none" if plain else "table.header")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id", overflow="fold")
    table.add_column("text", overflow="fold", ratio=1)
    for hit in hits:
        best = _snippet(hit, query, 200)
        text = Text(best.text)
        for start, end in best.marks:
            text.stylize("underline" if plain else "bold green", start, end)
        for line in explanation_lines(hit.explanation):
            text.append(f"\n{line}", "none" if plain else "dim")
        table.add_row(f"{hit.score:.3f}", _visible(place(hit)), text)
    Console(markup=False).print(table)


def place(hit: "Hit") -> str:
    """The id; of a chunk its document and range of characters."""
    held = hit.metadata
    if "document" in held and "start" in held and "end" in held:
        return f"{held['document']} [{held['start']}:{held['end']}]"
    return hit.id


def _snippet(hit: "Hit", query: str, width: int = 100) -> Any:
    # Texts of docstrings begin with their id, which is printed already.
    return snippet(hit.text.removeprefix(f"{hit.id}: "), query, width)


def explanation_lines(why: "Explanation | None") -> list[str]:
    """What each component scored, and the words that carried it."""
    if why is None:
        return []
    lines = [
        ", ".join(f"{each.name} {each.score:.3f} (rank {each.rank})" for each in why.components)
    ]
    if why.terms:
        best = sorted(why.terms.items(), key=lambda pair: -pair[1])
        lines.append("words: " + ", ".join(f"{term} {score:.2f}" for term, score in best))
    if why.shares:
        shares = sorted(why.shares, key=lambda each: -each.score)[:SHARES]
        told = ", ".join(f"{_visible(each.text)[:40]} {each.score:+.3f}" for each in shares)
        how = "of the score" if why.method == "token states" else "if it is left out"
        lines.append(f"dense, {how}: {told}")
    return lines


def json_line(query: str, hit: "Hit") -> str:
    """A hit with its whole text."""
    line: dict[str, Any] = {"query": query, "id": hit.id, "score": hit.score, "text": hit.text}
    if hit.metadata:
        line["metadata"] = dict(hit.metadata)
    if hit.explanation is not None:
        line["explanation"] = asdict(hit.explanation)
    return json.dumps(line, ensure_ascii=False)


def _visible(text: str) -> str:
    """The text without characters that control a terminal; --json prints it unchanged."""
    return "".join(char if char.isprintable() else " " for char in text)
