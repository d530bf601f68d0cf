"""What was dropped, for people: in colour on a terminal, and as an HTML page."""

import html
from collections.abc import Iterable, Iterator
from pathlib import Path

from polyvec.compress.text.document import Compressed
from polyvec.storage.files import atomic_file

DROPPED, PLAIN = "\x1b[31;2;9m", "\x1b[0m"  # red, faint, struck through
STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.6 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit}
del{color:#b3261e;opacity:.55}section{margin:2rem 0}.facts{color:#777;font-size:.9em}
"""


def coloured(found: Compressed, *, colours: bool = True) -> str:
    """The original with what was dropped in red, or, without colours, in [-brackets-].

    Of a text that a model wrote anew, that text. Characters that control a terminal are left out.
    """
    if found.written:
        return _visible(found.text)
    before, after = (DROPPED, PLAIN) if colours else ("[-", "-]")
    return "".join(
        _visible(text) if kept or not text.strip() else f"{before}{_visible(text)}{after}"
        for text, kept in found.parts()
    )


def facts(found: Compressed) -> str:
    """One line of numbers."""
    how = "written anew" if found.written else f"{len(found.kept):,} pieces"
    return (
        f"{found.num_tokens_in:,} tokens to {found.num_tokens:,} "
        f"({100 * found.rate:.1f} %, {how}) in {found.seconds:.2f} s"
    )


def write_page(path: Path, results: Iterable[Compressed], question: str | None) -> None:
    """An HTML page that loads nothing: each original with what was dropped struck through."""
    with atomic_file(path, "w") as file:
        for part in page(results, question):
            file.write(part)


def page(results: Iterable[Compressed], question: str | None) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    yield "style-src 'unsafe-inline'\">"
    yield f"<title>Compressed text</title><style>{STYLE}</style></head><body>"
    yield "<h1>Compressed text</h1>\n"
    if question:
        yield f"<p>Question: {html.escape(question)}</p>\n"
    for found in results:
        yield f'<section><p class="facts">{facts(found)}</p><pre>'
        if found.written:
            yield html.escape(found.text)
        for text, kept in () if found.written else found.parts():
            escaped = html.escape(text)
            yield escaped if kept or not text.strip() else f"<del>{escaped}</del>"
        yield "</pre></section>\n"
    yield "</body></html>\n"


def _visible(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
