"""polyvec mine: what it writes, its table, and what it says of bad input."""

import json

import pytest

from polyvec.data.training.sources import training_rows

WORDS = ["sea", "river", "stone", "bird", "tree", "cloud", "fire", "bread"]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"anchor": f"{word} here", "positive": f"here is the {word}"} for word in WORDS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def beir(tmp_path):
    """Each query has two documents, of which the training qrels know one."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [(f"{word}{i}", f"{word} number {i}") for word in WORDS for i in (1, 2)]
    files = {
        "corpus.jsonl": [{"_id": key, "title": "", "text": text} for key, text in documents],
        "queries.jsonl": [{"_id": word, "text": f"number of a {word}"} for word in WORDS],
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    header = "query-id\tcorpus-id\tscore\n"
    known = [f"{word}\t{word}1\t1\n" for word in WORDS]
    hidden = [f"{word}\t{word}2\t1\n" for word in WORDS]
    (folder / "qrels" / "train.tsv").write_text(header + "".join(known))
    (folder / "qrels" / "all.tsv").write_text(header + "".join(known + hidden))
    return folder


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_what_training_reads(run, pairs, tiny_bert, tmp_path):
    out = tmp_path / "mined.jsonl"
    done = run(
        "mine", pairs, "--model", tiny_bert, "--num-negatives", 2, "--output-scores", "-o", out
    )
    assert done.status == 0, done.err
    assert done.err == f"{out}: 8 rows\n"
    rows = training_rows({"path": str(out)})
    assert [row.query for row in rows] == [f"{word} here" for word in WORDS]
    assert all(len(row.negatives) == 2 and len(row.teacher_scores) == 3 for row in rows)
    table = dict(line.split("\t", 1) for line in done.out.splitlines())
    assert table["queries"] == "8" and table["negatives"] == "16"
    assert len(table["median"].split("\t")) == 3
    again = tmp_path / "again.jsonl"
    run("mine", pairs, "--model", tiny_bert, "--num-negatives", 2, "--output-scores", "-o", again)
    assert again.read_bytes() == out.read_bytes()


def test_sentence_transformers_columns(run, pairs, tmp_path):
    out = tmp_path / "mined.jsonl"
    options = ("--candidates", "bm25", "--num-negatives", 2, "--output-format", "n-tuple")
    assert run("mine", pairs, *options, "-o", out).status == 0
    assert list(lines_of(out)[0]) == ["anchor", "positive", "negative_1", "negative_2"]


def test_false_negatives_by_all_judgements(run, beir, tmp_path):
    """BM25 ranks the hidden document first, so it is one of two negatives."""
    full = [
        {"query": f"number of a {w}", "positive": [f"{w} number 1", f"{w} number 2"]} for w in WORDS
    ]
    (tmp_path / "full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in full))
    options = ("--candidates", "bm25", "--num-negatives", 2, "-o", tmp_path / "mined.jsonl")
    done = run("mine", beir, *options, "--relevant", tmp_path / "full.jsonl")
    assert done.status == 0, done.err
    assert "false negatives by all judgements\t8 (50.00 %)" in done.out
    assert "documents searched\t16" in done.out
    done = run("mine", beir, "--split", "all", *options)
    assert "false negatives with half of the positives hidden\t8 (50.00 %)" in done.out


def test_a_corpus_is_searched_too(run, pairs, tmp_path):
    (tmp_path / "more.txt").write_text("a sea of sea\n\nnothing\n")
    options = ("--candidates", "bm25", "--num-negatives", 1, "-o", tmp_path / "mined.jsonl")
    done = run("mine", pairs, *options, "--corpus", tmp_path / "more.txt")
    assert "documents searched\t10" in done.out
    assert lines_of(tmp_path / "mined.jsonl")[0]["neg"] == ["a sea of sea"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--corpus", "missing.txt"], "missing.txt: no such file"),
        (["--output-format", "tuple"], "Did you mean 'n-tuple'"),
        (["--candidates", "bm52"], "Did you mean 'bm25'"),
        (["--candidates", "bm52", "--model", "x"], "Did you mean 'bm25'"),
        (["--relative-margin", "nan"], "'relative_margin' is nan, expected a finite number"),
        (["--max-score", "nan"], "'max_score' is nan"),
        (["--range-min", "9", "--range-max", "10"], "fewer than num_negatives = 3"),
        (["--num-negatives", "20", "--output-format", "n-tuple"], "lower num_negatives"),
        (["--relative-margin", "0.999"], "relative_margin = 0.999 refuses"),
        (["--cross-encoder", "missing", "--max-score", "1"], "cross-encoder missing"),
        (["--cache", "x", "--no-cache"], "mutually exclusive"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, pairs, one_line, tmp_path, options, words):
    out = tmp_path / "mined.jsonl"
    searched = [] if "bm52" in options or "--cache" in options else ["--candidates", "bm25"]
    done = run("mine", pairs, *searched, *options, "-o", out)
    assert words in one_line(done)
    assert not out.exists()


def test_data_that_cannot_be_mined_is_one_line(run, one_line, tmp_path):
    out = tmp_path / "mined.jsonl"
    path = tmp_path / "x.jsonl"
    for text, words in (
        ('{"anchor": "a", "positive": ""}\n', "'positive' is empty"),
        ('{"sentence1": "a", "sentence2": "b", "score": 1}\n', "set min_score"),
        ('{"anchor": "a b", "positive": "a"}\n', "name a corpus"),
        ("", "no rows"),
    ):
        path.write_text(text)
        assert words in one_line(run("mine", path, "--candidates", "bm25", "-o", out))
    assert "missing.jsonl" in one_line(run("mine", tmp_path / "missing.jsonl", "-o", out))
    assert ".jsonl" in one_line(run("mine", path, "-o", tmp_path / "mined.csv"))


@pytest.mark.parametrize("option", ["pairs", "corpus", "link"])
def test_a_file_that_is_read_is_not_overwritten(run, pairs, one_line, tmp_path, option):
    out, more, before = pairs, [], pairs.read_text()
    if option == "corpus":
        out = tmp_path / "corpus.jsonl"
        out.write_text("".join(json.dumps({"text": f"sand {word}"}) + "\n" for word in WORDS))
        more, before = ["--corpus", out], out.read_text()
    if option == "link":
        out = tmp_path / "link.jsonl"
        out.hardlink_to(pairs)
    error = one_line(run("mine", pairs, "--candidates", "bm25", *more, "-o", out))
    assert "is read here, too; give another name" in error
    assert out.read_text() == before


def test_a_full_disk_leaves_the_old_file(run, pairs, tmp_path, small_files, one_line):
    out = tmp_path / "mined.jsonl"
    out.write_text("before\n")
    with small_files(64):
        done = run("mine", pairs, "--candidates", "bm25", "--num-negatives", 2, "-o", out)
    assert "File too large" in one_line(done)
    assert out.read_text() == "before\n"
