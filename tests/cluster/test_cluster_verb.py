"""polyvec cluster: files in, groups out, and what is refused."""

import json

import pytest
from clusters_by_hand import GROUPS, planted

from polyvec.cli import main


@pytest.fixture
def texts(tmp_path):
    names, _, gold = planted(num_a_group=5)
    rows = [
        {"text": text, "label": GROUPS[group], "date": f"2026-03-{1 + 9 * (group % 3):02d}"}
        for text, group in zip(names, gold, strict=True)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.medium
def test_a_folder_has_groups_texts_calls_and_a_map(texts, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["cluster", str(texts), "--k", "4", "--label-column", "label", "-o", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split("\t") == ["group", "texts", "name", "keywords"]
    assert "accuracy 1.000" in shown.err and "stability" in shown.err
    assert [row["group"] for row in lines(out / "groups.jsonl")] == [0, 1, 2, 3]
    assert len(lines(out / "texts.jsonl")) == 20 and not lines(out / "calls.jsonl")
    assert json.loads((out / "report.json").read_text())["measures"]["nmi"] == 1.0
    assert "<canvas" in (out / "map.html").read_text()


@pytest.mark.medium
def test_a_local_model_is_asked_within_a_budget_and_never_twice(texts, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["cluster", str(texts), "--recipe", "alup", "--scale", "nano", "--k", "4"]
    command += ["--llm", "polyvec/nano-lm", "--answers", "text", "--budget", "6", "-o", str(out)]
    assert main(command) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["paid_calls"] == 6 and report["questions"] == 8  # 4 questions and 4 names
    told = report["without_a_usable_answer"]
    assert told["not asked: the budget is spent"] == 2
    assert "answers without effect" in capsys.readouterr().err
    assert main([*command[:-4], "--budget", "12", "-o", str(out)]) == 0
    assert json.loads((out / "report.json").read_text())["paid_calls"] == 8


WRONG = {
    "k": (["--k", "1"], "neither a whole number from 2 nor auto"),
    "feedback alone": (["--k", "4", "--feedback", "label"], "asks a language model"),
    "budget alone": (["--k", "4", "--budget", "5"], "nothing is asked without --llm"),
    "setting": (["--k", "4", "--method", "kmeans n=3"], "setting 'n' is not known"),
    "no equals": (["--k", "4", "--method", "kmeans n"], "'n' is not KEY=VALUE"),
    "k of hdbscan": (["--k", "4", "--method", "hdbscan"], "so k 4 has no effect"),
    "too many": (["--k", "21"], "20 different texts cannot make 21 groups"),
    "no such column": (["--k", "4", "--label-column", "x"], "no label column 'x'"),
    "no date": (["--method", "peaks", "--date-column", "label"], "not a date such as"),
    "peaks without dates": (["--method", "peaks"], "needs the date of each text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_one_line(name, texts, capsys):
    options, message = WRONG[name]
    try:
        status = main(["cluster", str(texts), *options])
    except SystemExit as error:
        status = error.code
    told = capsys.readouterr().err
    assert status == 2 and message in told
    assert "Traceback" not in told


@pytest.mark.medium
def test_dated_texts_are_grouped_by_peaks(texts, tmp_path):
    out = tmp_path / "out"
    command = ["cluster", str(texts), "--date-column", "date", "-o", str(out)]
    assert main([*command, "--method", "peaks distance=5.0 window=1"]) == 0
    # Two of the four groups are of the same day, and all of a day merge at this distance.
    assert sorted(row["size"] for row in lines(out / "groups.jsonl")) == [5, 5, 10]
