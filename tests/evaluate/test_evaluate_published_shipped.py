"""The published scores that are shipped, and the page that says where data sets come from."""

import json
import re
from pathlib import Path

import pytest

from polyvec.data.tasks.named import all_tasks
from polyvec.evaluate.published import read_published
from polyvec.evaluate.tasks import Result

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = DOCS / "results" / "published-all-minilm-l6-v2.json"


def test_scores_that_were_measured_have_their_published_ones():
    scores = read_published(PUBLISHED)
    rows = json.loads((DOCS / "results" / "all-minilm-l6-v2.json").read_text())["results"]
    tasks = {task.name: task for task in all_tasks(".")}
    results = [Result(**row) for row in rows]
    with_score = [each for each in results if each.published is not None]
    assert len(with_score) > 500
    for each in with_score:
        found = scores[tasks[each.task].official_name(each.subset)]
        assert found == pytest.approx(each.published, abs=1e-9)


def test_every_task_by_name_says_where_its_data_come_from():
    page = (DOCS / "data_sets.md").read_text()
    for task in all_tasks("."):
        (row,) = re.findall(rf"^\| `{re.escape(task.name)}` \|.*$", page, re.M)
        assert "https://github.com/" in row
        assert f"| {task.naming.official_task} |" in row
