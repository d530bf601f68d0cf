"""The results of an evaluation as a page: one HTML file, or Markdown for a code host.

intervals.py and slices.py compute the numbers, facts.py collects them, and page.py and
markdown_page.py render them. Both formats have the same content: scores with intervals, notices,
scores by length, the worst items with their texts, similarities and the geometry of the vectors.
"""

from pathlib import Path

from polyvec.evaluate.report.contents import Compared, Report, TaskReport
from polyvec.storage.files import atomic_file

__all__ = ["Compared", "Report", "TaskReport", "html", "markdown", "write_html", "write_markdown"]


def html(report: Report) -> str:
    """One self-contained page. Raises InputError for a report without tasks."""
    from polyvec.evaluate.report.page import render

    return render(report)


def markdown(report: Report) -> str:
    """The same content as Markdown (GitHub's). Raises InputError for a report without tasks."""
    from polyvec.evaluate.report.markdown_page import render

    return render(report)


def write_html(path: str | Path, report: Report) -> None:
    """Write the page atomically."""
    _write(path, html(report))


def write_markdown(path: str | Path, report: Report) -> None:
    """Write the Markdown atomically."""
    _write(path, markdown(report))


def _write(path: str | Path, text: str) -> None:
    with atomic_file(Path(path), "wb") as file:
        file.write(text.encode())
