"""What a user sees and where it goes: tables, the next command, private files, caches."""

import json
import os
import shlex
import sys

import numpy as np
import pytest

from polyvec.cli import common


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"sentence1": "a cat", "sentence2": "a kitten", "score": 5},
        {"sentence1": "a cat", "sentence2": "a spoon", "score": 1},
        {"sentence1": "a dog", "sentence2": "the dog", "score": 4},
    ]
    return lines(tmp_path / "pairs" / "test.jsonl", rows).parent


# ---- tables -------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch, capsys):
    """`terminal(header, rows)`: the table as a terminal of 80 columns gets it."""

    def shown(header, rows):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("FORCE_COLOR", "1")
        capsys.readouterr()
        common.show_table(header, rows)
        return capsys.readouterr().out

    return shown


HEADER = ["a long name of data", "measure", *(f"number {i}" for i in range(12))]
ROWS = [
    ["massive_intent_classification", "ndcg@10", *(f"{100 + i}.{i:02}" for i in range(12))],
    ["sts", "spearman", *(f"-{i}.5" for i in range(12))],
]


def test_numbers_are_never_cut(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = terminal(HEADER, ROWS)
    for row in ROWS:
        (line,) = (line for line in out.splitlines() if f" {row[2]} " in line)
        assert all(f" {cell} " in line for cell in row[2:])
    assert "…" not in out


def test_numbers_end_in_the_same_column(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [["a", "5.00"], ["b", "-12.25"], ["c", ""]]
    first, second = (
        line
        for line in terminal(["data", "score"], rows).splitlines()
        if ".00" in line or ".25" in line
    )
    assert first.index("5.00") + 4 == second.index("-12.25") + 6


def test_no_color_is_not_bold_either(terminal, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1m" in terminal(["data"], [["a"]])
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in terminal(["data"], [["a"]])


# ---- the next command ---------------------------------------------------------------------------


def next_command(done):
    (line,) = (line for line in done.err.splitlines() if line.startswith("next: "))
    program, *arguments = shlex.split(line.removeprefix("next: "))
    assert program == "polyvec"
    return arguments


@pytest.mark.parametrize("name", ["pets", "my pets; rm -rf $HOME", "it's", "-pets"])
def test_the_next_command_runs_as_it_is_printed(run, tmp_path, monkeypatch, tiny_bert, name):
    monkeypatch.chdir(tmp_path)
    before = ["--"] if name.startswith("-") else []
    done = run("index", "--model", tiny_bert, *before, name, stdin=b"a cat\na dog\n")
    assert done.status == 0, done.err
    found = run(*next_command(done))
    assert found.status == 0, found.err
    assert "a cat" in found.out


# ---- files --------------------------------------------------------------------------------------


def test_a_private_file_stays_private(run, tmp_path, tiny_bert):
    output = tmp_path / "x.npy"
    output.write_bytes(b"")
    output.chmod(0o600)
    assert run("embed", "--model", tiny_bert, "-o", output, stdin=b"a cat\n").status == 0
    assert output.stat().st_mode & 0o777 == 0o600
    assert np.load(output).shape == (1, 32)


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.csv"])
def test_utf_16_is_named(run, one_line, tmp_path, coding, name):
    text = {"x.txt": "a cat\n", "x.jsonl": '{"text": "a cat"}\n', "x.csv": "text\na cat\n"}[name]
    (tmp_path / name).write_bytes(text.encode(coding))
    assert f"{name}:1: not UTF-8 but UTF-16" in one_line(run("embed", tmp_path / name))
    done = run("embed", stdin=text.encode(coding))
    assert "standard input:1: not UTF-8 but UTF-16" in one_line(done)


def test_a_null_character_in_a_text_is_a_character(run, tmp_path, tiny_bert):
    assert run("embed", "--model", tiny_bert, stdin=b"a cat\0 and a dog\n").status == 0


def test_a_dash_is_standard_output(run, tmp_path, monkeypatch, tiny_bert):
    monkeypatch.chdir(tmp_path)
    dashed = run("embed", "--model", tiny_bert, "-o", "-", stdin=b"a cat\n")
    assert dashed == run("embed", "--model", tiny_bert, stdin=b"a cat\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.tsv", "x.json", "folder"])
def test_texts_of_other_files(run, tmp_path, tiny_bert, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "a.txt").write_text("a cat\n")
    else:
        path.write_text("text\na cat\n" if name == "x.tsv" else '["a cat"]')
    done = run("embed", path, "--model", tiny_bert)
    (row,) = map(json.loads, done.out.splitlines())
    (expected,) = map(
        json.loads, run("embed", "--model", tiny_bert, stdin=b"a cat\n").out.splitlines()
    )
    assert row["embedding"] == expected["embedding"]
    assert row["id"] == {"folder": "a.txt:0"}.get(name, "0")


# ---- caches -------------------------------------------------------------------------------------


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """A cache folder that cannot be made, as in a read-only home."""
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("POLYVEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))


def test_without_a_writable_home_a_verb_goes_on_without_its_cache(
    run, no_home, pairs, tiny_bert, tmp_path
):
    done = run("evaluate", tiny_bert, pairs)
    assert done.status == 0
    assert "spearman" in done.out
    warning = done.err.splitlines()[0]
    assert warning.startswith("polyvec: warning: going on without a cache: ")
    assert "file is not a folder" in warning
    given = run("evaluate", tiny_bert, pairs, "--cache", tmp_path / "file")
    assert given.status == 2  # a folder that was asked for is not ignored
    rows = lines(
        tmp_path / "train.jsonl", [{"anchor": f"{i}", "positive": f"{i}!"} for i in range(4)]
    )
    mined = run(
        "mine", rows, "--model", tiny_bert, "--num-negatives", "1", "-o", tmp_path / "m.jsonl"
    )
    assert mined.status == 0, mined.err
    assert "without a cache" in mined.err


# ---- names of MTEB ------------------------------------------------------------------------------


@pytest.fixture
def scifact(tmp_path):
    folder = lines(tmp_path / "DATA/scifact/corpus.jsonl", [{"_id": "d", "text": "a"}]).parent
    lines(folder / "queries.jsonl", [{"_id": "q", "text": "a"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    return folder.parent


def test_a_task_by_the_name_that_mteb_gives_it(run, one_line, scifact, tiny_bert):
    ours = run("evaluate", tiny_bert, "scifact", "--data", scifact)
    theirs = run("evaluate", tiny_bert, "SciFact", "--data", scifact)
    assert ours.status == theirs.status == 0, theirs.err
    cut = [[line.split("\t")[:6] for line in done.out.splitlines()] for done in (ours, theirs)]
    assert cut[0] == cut[1]
    assert "give the folder of data sets with --data" in one_line(
        run("evaluate", tiny_bert, "SciFact")
    )


def test_a_default_of_the_environment_is_the_same(run, scifact, tiny_bert, monkeypatch):
    monkeypatch.setenv("POLYVEC_DATA", str(scifact))
    assert os.environ["POLYVEC_DATA"]
    assert run("evaluate", tiny_bert, "SciFact").status == 0
