"""What is read before a chunk, so that it is understood without the rest of its document."""

import bisect
import re
from collections.abc import Callable

# From a document to the header of a chunk that begins at a place of it; "" for none.
Header = Callable[[str], Callable[[int], str]]
LONGEST_TITLE = 200  # characters; a longer first line is a paragraph
# A fenced block, in which "# ..." is no heading, or a heading in Markdown (CommonMark's ATX).
_HEADING = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,}).*?(?:^ {0,3}(?P=fence)|\Z)"
    r"|^ {0,3}(?P<marks>#{1,6})[ \t]+(?P<text>\S[^\n]*?)[ \t]*#*[ \t]*\r?$",
    re.MULTILINE | re.DOTALL,
)


def no_header(text: str) -> Callable[[int], str]:
    """None."""
    return lambda start: ""


def title(text: str) -> Callable[[int], str]:
    """The document's first line, for chunks that begin after it; "" if it is no title.

    >>> title("Cats\\n\\nThey purr.")(6)
    'Cats'
    """
    first = next((line for line in text.splitlines(keepends=True) if line.strip()), "")
    end = text.find(first) + len(first)
    line = first.strip().lstrip("#").strip()
    return lambda start: line if start >= end and len(line) <= LONGEST_TITLE else ""


def headings(text: str) -> Callable[[int], str]:
    """The Markdown headings above a place, from the outermost, joined by " > ".

    >>> headings("# Cats\\n\\n## Food\\n\\nFish.")(17)
    'Cats > Food'
    """
    starts: list[int] = []
    paths: list[tuple[tuple[int, str], ...]] = []
    for match in _HEADING.finditer(text):
        if match["marks"]:
            level = len(match["marks"])
            above = tuple(each for each in (paths[-1] if paths else ()) if each[0] < level)
            starts.append(match.end())
            paths.append((*above, (level, match["text"])))

    def header(start: int) -> str:
        place = bisect.bisect_right(starts, start)
        return " > ".join(text for _, text in paths[place - 1]) if place else ""

    return header
