"""polyvec data stats: tables, JSON, and errors of one line."""

import json
import sys

import pytest

from polyvec import Embedder
from polyvec.data.stats import languages

COMPLAINT = "the parcel came two weeks late and the box was open"
TRAIN = [COMPLAINT, "many thanks for your quick and friendly help", "where do I find my invoice"]


@pytest.fixture
def mail(tmp_path):
    folder = tmp_path / "mail"
    folder.mkdir()

    def write(split, texts):
        rows = [{"text": text, "label": "a" if i else "b"} for i, text in enumerate(texts)]
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines))

    write("train", TRAIN)
    write("test", [f"{COMPLAINT.capitalize()}!", "cats sleep all day long"])
    return folder


def tables(done):
    """Header and rows of each table, by the header's first cell."""
    parts = [part.splitlines() for part in done.out.strip().split("\n\n")]
    cells = [[line.split("\t") for line in part] for part in parts]
    return {head[0] if head[0] != "file" else head[1]: (head, rows) for head, *rows in cells}


def test_tables_and_a_warning(run, mail):
    done = run("data", "stats", mail, "--guess", "script")
    assert done.status == 0
    found = tables(done)
    assert found["rows"][1] == [
        ["test.jsonl", "2", "text", "label", ""],
        ["train.jsonl", "3", "text", "label", ""],
    ]
    assert next(iter(found)) == "rows"
    head, rows = found["train"]
    assert dict(zip(head, rows[0], strict=True)) == {
        "train": "train.jsonl",
        "test": "test.jsonl",
        "field": "text",
        "train texts": "3",
        "texts": "2",
        "equal": "0",
        "same words": "1",
        "any 13-gram": "1",
        "%": "50.00",
        "13-grams shared %": "50.00",
    }
    _, (pair,) = found["found by"]
    assert pair[:4] == [
        "same words",
        "1.000",
        f"{mail / 'test.jsonl'}:1",
        f"{mail / 'train.jsonl'}:1",
    ]
    assert "warning: test.jsonl: 1 of 2 texts are in train.jsonl" in done.err
    assert "pip install 'polyvec[data]'" in done.err


def test_clean_data_is_not_warned_of(run, mail):
    (mail / "test.jsonl").write_text('{"text": "something else altogether"}\n')
    done = run("data", "stats", mail)
    assert done.status == 0
    assert "warning" not in done.err
    assert "found by" not in tables(done)


def test_all_figures_as_json(run, mail, tmp_path):
    path = tmp_path / "out.json"
    assert run("data", "stats", mail, "-o", path, "--ngram", "5").status == 0
    found = json.loads(path.read_text())
    assert [file["num_rows"] for file in found["files"]] == [2, 3]
    (overlap,) = found["overlaps"]
    assert (overlap["n"], overlap["num_same"], overlap["num_ngram"]) == (5, 1, 1)
    assert overlap["worst"][0]["train_text"] == COMPLAINT


def test_tokens_agree_with_what_embedding_cuts(run, tiny, tiny_bert, tmp_path):
    """The tiny model reads 64 tokens."""
    texts = ["cat " * length for length in (1, 60, 62, 63, 200)]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = run("data", "stats", path, "--tokenizer", tiny_bert)
    head, (row,) = next(value for key, value in tables(done).items() if key == "field")
    cells = dict(zip(head, row, strict=True))
    _, report = tiny.encode_with_report(texts)
    assert cells["too long"] == str(report.num_truncated) == "2"
    assert cells["tokens min/median/mean/p95/max"].startswith("3/64/")
    assert cells["tokens min/median/mean/p95/max"].endswith("/202")


def test_neighbours_find_a_text_in_other_words(run, mail, minilm_folder):
    (mail / "test.jsonl").write_text(
        '{"text": "where can I find my invoice"}\n{"text": "cats sleep all day"}\n'
    )
    done = run("data", "stats", mail, "--neighbours", "--model", minilm_folder)
    assert done.status == 0, done.err
    head, (row,) = tables(done)["train"]
    cells = dict(zip(head, row, strict=True))
    assert (cells["same words"], cells["any 13-gram"]) == ("0", "0")
    assert (cells["cosine from 0.9"], cells["cosine from 0.99"]) == ("1", "0")
    _, (pair,) = tables(done)["found by"]
    assert pair[0] == "neighbour"
    assert pair[4:] == ["where can I find my invoice", "where do I find my invoice"]


def test_judgements_and_what_is_missing(run, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "a document"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "a question"}\n')
    (tmp_path / "qrels.tsv").write_text("q1\td1\t1\nq1\td2\t2\n")
    done = run("data", "stats", tmp_path)
    head, (row,) = tables(done)["judged in"]
    cells = dict(zip(head, row, strict=True))
    assert (cells["passages"], cells["queries"], cells["judgements"]) == ("1", "1", "2")
    assert (cells["grades"], cells["missing passages"]) == ("1: 1, 2: 1", "1")
    assert "warning: qrels.tsv: 1 judged passages and 0 queries are not in" in done.err
    assert "(first: qrels.tsv:2)" in done.err


def test_cells_hold_no_tabs_or_new_lines(run, tmp_path):
    rows = [{"text": "a\tb\nc d e f g h", "label": f"x\ty{i % 2}"} for i in range(4)]
    for split in ("train", "test"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for head, body in tables(run("data", "stats", tmp_path)).values():
        assert {len(row) for row in body} == {len(head)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gone"], "gone: no such file or folder"),
        (["--guess", "tongue"], "guess 'tongue' is not known. Known: language, script."),
        (["--ngram", "0"], "'0' is not a positive integer"),
        (["--pairs", "some"], "'some' is not a positive integer"),
        (["--model", "x"], "--model has no effect without --neighbours"),
        (["--batch-size", "3"], "--batch-size has no effect without --neighbours"),
        (["--against", "gone"], "gone: no such file or folder"),
        (["--against", "."], "cannot be compared with itself"),
        (["-o", "no/such/out.json"], "the folder"),
        (["--tokenizer", "./no-model"], "no such folder"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_mistake_is_one_line(run, mail, monkeypatch, one_line, options, message):
    monkeypatch.chdir(mail)
    source = [] if options == ["gone"] else ["."]
    assert message in one_line(run("data", "stats", *source, *options))


def test_a_bad_row_is_named_by_its_line(run, mail, one_line):
    with (mail / "train.jsonl").open("a") as file:
        file.write('{"text": "half\n')
    assert f"{mail / 'train.jsonl'}:4: not JSON" in one_line(run("data", "stats", mail))


def test_neighbours_of_nothing(run, mail, one_line, monkeypatch):
    """Refused before a model is loaded."""
    monkeypatch.setattr(Embedder, "from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    (mail / "test.jsonl").rename(mail / "other.jsonl")
    assert "has no train and test files" in one_line(run("data", "stats", mail, "--neighbours"))


def test_an_action_is_asked_for(run, one_line):
    assert "ACTION" in one_line(run("data"))


def test_without_the_extra_a_guess_that_needs_it_is_refused(run, mail, monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    languages._identifier.cache_clear()
    try:
        error = one_line(run("data", "stats", mail, "--guess", "language"))
    finally:
        languages._identifier.cache_clear()
    assert "pip install 'polyvec[data]'" in error
