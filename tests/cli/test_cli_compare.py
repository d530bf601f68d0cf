"""polyvec compare: two models, a table of differences, and which are significant."""

import json

import numpy as np
import pytest

from polyvec import Embedder
from polyvec.data.tasks.folder import read_folder
from polyvec.evaluate.tasks import evaluate, item_scores

WORDS = ["a cat", "the sea", "two dogs", "a red boat", "old men", "one tree", "a cat sat", "dogs"]


@pytest.fixture
def data(tmp_path):
    """Pairs and a small corpus: both kinds of task."""
    pairs, search = tmp_path / "pairs", tmp_path / "search"
    pairs.mkdir()
    draw = np.random.default_rng(0)
    rows = [(a, b, float(draw.random())) for a in WORDS for b in WORDS if a < b]
    (pairs / "test.jsonl").write_text(
        "\n".join(json.dumps({"sentence1": a, "sentence2": b, "score": s}) for a, b, s in rows)
    )
    (search / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(WORDS)]
    (search / "corpus.jsonl").write_text("\n".join(lines))
    lines = [json.dumps({"_id": f"q{i}", "text": f"{text} now"}) for i, text in enumerate(WORDS)]
    (search / "queries.jsonl").write_text("\n".join(lines))
    judged = "\n".join(f"q{i}\td{i}\t1" for i in range(len(WORDS)))
    (search / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n")
    return pairs, search


def test_the_items_make_the_score(data, tiny):
    for folder in data:
        items, statistic = item_scores(tiny, read_folder(folder))
        assert statistic(items) == pytest.approx(evaluate(tiny, folder).main_score, abs=1e-6)


def test_a_table_of_differences(run, data, tiny, tiny_bert, tmp_path):
    other = tmp_path / "other"
    Embedder.from_parts(tiny.backbone, tiny.text_tokenizer, pooling="first").save_pretrained(other)
    done = run("compare", tiny_bert, other, "--tasks", *data, "--samples", "50")
    assert done.status == 0
    header, *rows = (line.split("\t") for line in done.out.splitlines())
    assert header == ["data", "split", "measure", "first", "second", "difference", "95 % low",
                      "95 % high", "p", "items", "significant"]  # fmt: skip
    assert [row[0] for row in rows] == ["pairs", "search"]
    for row, folder in zip(rows, data, strict=True):
        assert float(row[3]) == pytest.approx(100 * evaluate(tiny, folder).main_score, abs=0.01)
        assert float(row[5]) == pytest.approx(float(row[4]) - float(row[3]), abs=0.011)
        assert 0 < float(row[8]) <= 1
    assert [row[9] for row in rows] == ["28", "8"]
    again = run("compare", tiny_bert, other, "--tasks", *data, "--samples", "50")
    assert again.out == done.out


def test_a_model_against_itself_differs_in_nothing(run, data, tiny_bert):
    done = run("compare", tiny_bert, tiny_bert, "--tasks", data[0], "--samples", "20")
    assert done.out.splitlines()[1].split("\t")[5:9] == ["+0.00", "+0.00", "+0.00", "1.000"]


def test_a_missing_folder_is_an_error_before_a_model_loads(run, data, one_line, tmp_path):
    done = run("compare", "/no/model", "/no/other", "--tasks", data[0], tmp_path / "gone")
    assert "gone: no such folder" in one_line(done)
