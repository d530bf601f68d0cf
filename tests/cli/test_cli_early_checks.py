"""Mistakes that are known before a model loads, and the one line that says what they are."""

import json
import os

import pytest

RECIPE = """
[system]
name = "mine"
paper = "-"
tasks = ["similarity"]
[embedder]
pooling = "mean"
backbone = "polyvec/nano-lm"
[[stage]]
kind = "scl"
batch_size = 2
data = [{ path = "PAIRS" }]
"""
NO_TEXT = os.fsdecode(b"find\xff: {text}")  # as the shell passes a byte that is not UTF-8


@pytest.fixture
def recipe(tmp_path):
    rows = [{"anchor": "a cat", "positive": "a kitten"}, {"anchor": "sea", "positive": "a sea"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(more=""):
        text = RECIPE.replace("PAIRS", str(tmp_path / "pairs.jsonl")) + more
        (tmp_path / "mine.toml").write_text(text)
        return tmp_path / "mine.toml"

    return write


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "--prompt", NO_TEXT],
        ["search", "index", NO_TEXT],
        *(["generate", option, NO_TEXT] for option in ("--template", "--system", "--stop")),
        ["generate", "--field", NO_TEXT],
    ],
)
def test_bytes_that_are_no_text(run, one_line, arguments):
    """A template gave a traceback; as a stop it stood for nothing, as a field it was written."""
    assert "the byte after character 4 is not UTF-8" in one_line(run(*arguments, stdin=b"a\n"))


@pytest.mark.parametrize("arguments", [["recipes", "show"], ["embed", "--batch-size"]])
def test_a_long_value_is_not_repeated(run, one_line, arguments):
    assert len(one_line(run(*arguments, "x" * 100_000))) < 5_000


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("no.json", "no.json: cannot be read (No such file or directory)"),
        ("not.json", "not.json: not JSON (Expecting value: line 1"),
        ("utf16.json", "utf16.json: not UTF-8"),
        ("list.json", 'list.json: not published scores, {"scores": {task: {"split/subset": score'),
    ],
)
def test_published_scores(run, one_line, tmp_path, sts, file, message):
    (tmp_path / "not.json").write_text("x")
    (tmp_path / "utf16.json").write_bytes("{}".encode("utf-16"))
    (tmp_path / "list.json").write_text("[]")
    done = run("evaluate", "all-MiniLM-L6-v2", sts, "--published", tmp_path / file)
    assert message in one_line(done)


@pytest.fixture
def sts(tmp_path):
    (tmp_path / "sts").mkdir()
    rows = [{"sentence1": "a", "sentence2": text, "score": i} for i, text in enumerate("abc")]
    (tmp_path / "sts" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "sts"


@pytest.mark.parametrize("field", ["human_summaries", "machine_summaries"])
def test_a_text_without_summaries_is_named_by_its_line(run, one_line, tmp_path, field):
    row = {"text": "a", "human_summaries": ["a"], "machine_summaries": ["a", "b"], "scores": [1, 2]}
    row |= {field: []}
    (tmp_path / "summ").mkdir()
    (tmp_path / "summ" / "test.jsonl").write_text(json.dumps(row) + "\n")
    done = run("evaluate", "all-MiniLM-L6-v2", tmp_path / "summ")
    assert f"test.jsonl:1: '{field}' is an empty list" in one_line(done)


def test_a_field_that_is_missing_is_named_as_elsewhere(run, one_line, sts):
    (sts / "test.jsonl").write_text('{"sentence1": "a", "sentence": "b", "score": 1}\n')
    done = run("evaluate", "all-MiniLM-L6-v2", sts, "--kind", "sts")
    assert "Did you mean 'sentence'? Known: score, sentence, sentence1." in one_line(done)


def test_pythons_underscore_is_no_digit_of_a_grade(run, one_line, tmp_path):
    """1_0 was 10."""
    (tmp_path / "set" / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        (tmp_path / "set" / f"{name}.jsonl").write_text('{"_id": "a", "text": "b"}\n')
    (tmp_path / "set" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\ta\t1_0\n")
    done = run("evaluate", "all-MiniLM-L6-v2", tmp_path / "set")
    assert "test.tsv:2: grade '1_0' is not a finite number" in one_line(done)


@pytest.mark.parametrize("name", ["out.parquet", "new/out.jsonl", "out.jsonl"])
def test_the_output_is_not_in_the_folder_that_is_read(run, one_line, tmp_path, name):
    """The next run read out.jsonl as texts."""
    (tmp_path / "texts" / "new").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("a cat\n")
    done = run("embed", tmp_path / "texts", "-o", tmp_path / "texts" / name)
    assert "in the folder that is read" in one_line(done)


def test_vectors_that_are_no_texts_may_lie_beside_the_texts(run, tmp_path, tiny_bert):
    (tmp_path / "a.txt").write_text("a cat\n")
    for _ in "ab":
        done = run("embed", tmp_path, "-o", tmp_path / "out.npy", "--model", tiny_bert)
        assert done.status == 0, done.err


def test_an_output_below_a_file(run, one_line, tmp_path):
    """It said that the folder does not exist, and to create it."""
    (tmp_path / "a.txt").write_text("a cat\n")
    for verb in (
        ["embed", tmp_path / "a.txt", "-o", tmp_path / "a.txt" / "out.npy"],
        ["data", "import", tmp_path / "a.txt", tmp_path / "a.txt" / "out"],
    ):
        assert "a.txt is a file, not a folder" in one_line(run(*verb))


def test_texts_without_a_suffix_or_in_another_column(run, one_line, tmp_path):
    (tmp_path / "noext").write_text("a cat\n")
    done = run("embed", tmp_path / "noext")
    assert "noext: the name has no suffix that says its type. Known: txt, jsonl" in one_line(done)
    (tmp_path / "a.tsv").write_text("name\tpet\na\tb\n")
    assert "name it with --column. Known: name, pet." in one_line(run("embed", tmp_path / "a.tsv"))
    (tmp_path / "a.tsv").write_text("text\tpet\na\tb\n")
    done = run("embed", tmp_path / "a.tsv", "--id-column", "key")
    assert "no id column key. Known: pet, text." in one_line(done)
    (tmp_path / "a.txt").write_bytes("Kätzchen\n".encode("latin-1"))
    assert "convert it: iconv -f LATIN1 -t UTF-8" in one_line(run("embed", tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("a = " + "[" * 5000, "mine.toml: not TOML (maximum recursion"),
        ('losses = [{ kind = "info_nce", temperature = 0 }]', "temperature is 0"),
        ('losses = [{ kind = "info_nce", temperature = nan }]', "temperature is nan"),
        ('losses = [{ kind = "info_nce", temperature = -1.0 }]', "temperature is -1.0, expected m"),
        ('losses = [{ kind = "info_nce", weight = nan }]', "weight is nan, expected a number"),
        ('losses = [{ kind = "info_nce", weight = inf }]', "weight is inf, expected a number"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_recipe_is_checked_before_its_model_loads(run, tmp_path, recipe, more, message, dry_run):
    """The traceback of the first; the others were noticed at the first step."""
    options = ["--dry-run"] if dry_run else ["-o", tmp_path / "run"]
    done = run("train", recipe(more), *options)
    assert done.status == 2 and message in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_figures_of_a_training_are_checked_first(run, one_line, tmp_path, recipe, sts, dry_run):
    options = ["--dry-run"] if dry_run else ["-o", tmp_path / "run"]
    done = run("train", recipe(), *options, "--evaluate", "x")
    assert "--evaluate 'x' is not '<data folder> <split> <measure>'" in one_line(done)
    done = run("train", recipe(), *options, "--data", tmp_path, "--evaluate", "stsb test spearman")
    assert "stsb: no such folder" in one_line(done)
    done = run("train", recipe(), *options, "--data", tmp_path, "--evaluate", "sts dev spearman")
    assert "no split 'dev'" in one_line(done)
    assert not (tmp_path / "run").exists()


def test_figures_of_a_recipe_are_there_before_it_is_built(run, one_line, tmp_path):
    done = run("recipes", "check", "all-minilm", "--data", tmp_path)
    assert "stsb: no such folder" in one_line(done) and done.out == ""


ALIKE = {
    "all 2 scores are equal": [{"sentence1": "a", "sentence2": "b", "score": 1}] * 2,
    "only one label, 1": [{"sentence1": "a", "sentence2": "b", "label": 1}] * 2,
    "only one label, '1'": [{"text": "a", "label": 1}] * 2,
    "'sentence2' has a lone surrogate": [
        {"sentence1": "a", "sentence2": "\ud800", "score": score} for score in (1, 2)
    ],
}


@pytest.mark.parametrize("message", ALIKE)
def test_data_that_give_no_score_are_known_before_the_first_task_runs(
    run, one_line, tmp_path, sts, message
):
    """They were noticed after all tasks before them."""
    folder = tmp_path / "alike"
    folder.mkdir()
    for split in ("train", "test"):
        rows = "".join(json.dumps(row) + "\n" for row in ALIKE[message])
        (folder / f"{split}.jsonl").write_text(rows)
    kind = ["--kind", "classification"] if "'1'" in message else []
    done = run("evaluate", "all-MiniLM-L6-v2", *([] if kind else [sts]), folder, *kind)
    assert message in one_line(done) and done.out == ""
