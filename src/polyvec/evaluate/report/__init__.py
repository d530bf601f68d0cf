"""What a run found, as a page for a person: one HTML file, or Markdown for a code host.

Numbers are made in intervals.py and slices.py, put together in facts.py and shown by page.py and
markdown_page.py. Both forms say the same: scores with their intervals, what must not be missed,
slices by length, the worst items with their texts, similarities and the vectors' geometry.
"""

from pathlib import Path

from polyvec.evaluate.report.contents import Compared, Report, TaskReport
from polyvec.storage.files import atomic_file

__all__ = ["Compared", "Report", "TaskReport", "html", "markdown", "write_html", "write_markdown"]


def html(report: Report) -> str:
    """One page that needs nothing but itself. Raises InputError for a report without tasks."""
    from polyvec.evaluate.report.page import render

    return render(report)


def markdown(report: Report) -> str:
    """The same facts as Markdown (GitHub's). Raises InputError for a report without tasks."""
    from polyvec.evaluate.report.markdown_page import render

    return render(report)


def write_html(path: str | Path, report: Report) -> None:
    """The page as a file, whole or not at all."""
    _write(path, html(report))


def write_markdown(path: str | Path, report: Report) -> None:
    """The Markdown as a file, whole or not at all."""
    _write(path, markdown(report))


def _write(path: str | Path, text: str) -> None:
    with atomic_file(Path(path), "wb") as file:
        file.write(text.encode())
