"""The page in a browser: opened from a file, looked at, and asked what its scripts did."""

import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest
from report_examples import mixed_report, read, report_of, retrieval_outcome, sts_outcome, task

from polyvec.evaluate.outcome import Item, Outcome
from polyvec.evaluate.report import write_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """`browse(page, option, ...)`: what the browser prints."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")

    def run(page, *options):
        home = tmp_path_factory.mktemp("browser")
        command = [program, *QUIET, f"--user-data-dir={home}", *options, page]
        return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode()

    return run


def pixels(path) -> np.ndarray:
    """An 8-bit PNG that is not interlaced, [height, width, channels]."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    head = chunks[0][1]
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (0, 4))
    assert head[8] == 8 and head[12] == 0
    channels = {0: 1, 2: 3, 6: 4}[head[9]]
    raw = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * channels)
    found = np.zeros((height, width * channels), np.uint8)
    above = np.zeros(width * channels, np.uint8)
    for number, (kind, row) in enumerate(zip(rows[:, 0], rows[:, 1:], strict=True)):
        above = found[number] = unfiltered(int(kind), row, above, channels)
    return found.reshape(height, width, channels)


def unfiltered(kind: int, row: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """A row of a PNG as it was before its filter (RFC 2083, 6)."""
    if kind == 0:
        return row
    if kind == 2:
        return row + above
    if kind == 1:
        return np.cumsum(row.reshape(-1, step), axis=0, dtype=np.uint8).ravel()
    line, up = row.tolist(), above.tolist()
    for i in range(len(line)):
        left = line[i - step] if i >= step else 0
        corner = up[i - step] if i >= step else 0
        guess = left + up[i] - corner
        paeth = min((left, up[i], corner), key=lambda value: abs(guess - value))
        line[i] = (line[i] + (paeth if kind == 4 else (left + up[i]) // 2)) & 255
    return np.array(line, np.uint8)


def test_the_page_is_seen_as_it_was_written_and_a_link_unfolds_its_task(browse, tmp_path):
    write_html(tmp_path / "report.html", mixed_report())
    written = read((tmp_path / "report.html").read_text())
    link = written.one(kind="overview").one("a")
    seen = read(browse(f"file://{tmp_path}/report.html{link.attributes['href']}", "--dump-dom"))
    for name in ("table", "details", "svg", "tr", "path", "li"):
        assert len(seen.all(name)) == len(written.all(name)), name
    assert seen.one("title").text == "some/model · evaluation"
    (opened,) = [one for one in seen.all("details") if "open" in one.attributes]
    assert opened.one(kind="title").text == link.text


def test_planted_scripts_do_not_run(browse, tmp_path):
    items = tuple(Item(EVIL, (EVIL, EVIL), 0.0, None, ((EVIL, EVIL, 0.5, 0),)) for _ in range(9))
    outcome = Outcome("retrieval", "map", {"map": 0.0}, items, similarities={EVIL: [0.1, 0.2]})
    write_html(tmp_path / "evil.html", report_of(task(EVIL, outcome, note=EVIL), model="x" + EVIL))
    seen = read(browse(f"file://{tmp_path}/evil.html", "--dump-dom"))
    assert seen.one("title").text.startswith("x<script>")
    assert not seen.all("script") and not seen.all("img")


def test_even_a_script_in_the_page_would_not_run(browse, tmp_path):
    """The page's own policy holds: the same script runs in a page without it."""
    write_html(tmp_path / "report.html", mixed_report())
    page = (tmp_path / "report.html").read_text()
    script = "<script>document.title = 'owned'</script></body>"
    (tmp_path / "with.html").write_text(page.replace("</body>", script))
    free = re.sub("<meta http-equiv[^>]*>", "", page).replace("</body>", script)
    (tmp_path / "without.html").write_text(free)
    titles = [
        read(browse(f"file://{tmp_path}/{name}.html", "--dump-dom")).one("title").text
        for name in ("with", "without")
    ]
    assert titles == ["some/model · evaluation", "owned"]


@pytest.mark.parametrize("width", [1000, 500])
def test_the_picture_shows_bars_text_and_no_overflow(browse, tmp_path, width):
    tasks = (task("sts", sts_outcome(), published=0.7), task("found", retrieval_outcome()))
    write_html(tmp_path / "report.html", report_of(*tasks))
    picture = tmp_path / "report.png"
    size = f"--window-size={width},900"
    browse(f"file://{tmp_path}/report.html", f"--screenshot={picture}", size)
    seen = pixels(picture)[..., :3].astype(int)
    assert seen.shape[:2] == (900, width)
    blue = (np.abs(seen - [0x4F, 0x8F, 0xC9]).max(axis=-1) < 3).sum()
    ink = (seen.max(axis=-1) < 90).sum()
    assert blue > 2000 and ink > 5000
    ground = np.abs(seen - 255).max(axis=-1) < 12
    assert ground[:, : width // 100].all() and ground[:, -(width // 100) :].all()


def test_dark_follows_the_reader(browse, tmp_path):
    write_html(tmp_path / "report.html", mixed_report())
    picture = tmp_path / "dark.png"
    options = ("--blink-settings=preferredColorScheme=0", "--window-size=800,400")
    browse(f"file://{tmp_path}/report.html", f"--screenshot={picture}", *options)
    seen = pixels(picture)[..., :3]
    assert tuple(seen[2, 2]) == (0x12, 0x16, 0x1B)
    assert (seen.min(axis=-1) > 200).sum() > 500
