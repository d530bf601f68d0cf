"""Arguments that name nothing, or that nobody would mean: one line and exit status 2, at once."""

import json
import re

import pytest

from polyvec.cli import common
from polyvec.cli import parser as program


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIRS = [
    {"sentence1": "a cat", "sentence2": "a kitten", "score": 5},
    {"sentence1": "a cat", "sentence2": "a spoon", "score": 1},
    {"sentence1": "a dog", "sentence2": "the dog", "score": 4},
]


@pytest.fixture
def pairs(tmp_path):
    return lines(tmp_path / "pairs" / "test.jsonl", PAIRS).parent


@pytest.fixture
def clusters(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(6)]
    return lines(tmp_path / "clusters" / "test.jsonl", rows).parent


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if a model loads."""

    def refuse(*_, **__):
        pytest.fail("a model was loaded")

    monkeypatch.setattr(common, "load_model", refuse)


def options():
    """(verb, option) of every option that takes a text."""
    meaningful = {"--prompt", "--template", "--system", "--stop"}
    for verb, sub in program()._subparsers._group_actions[0].choices.items():
        for action in sub._actions:
            name = (action.option_strings or [None])[-1]
            takes_text = name and action.nargs != 0 and not action.choices
            if takes_text and action.type is None and name not in meaningful:
                yield verb, name


NEEDED = {
    "index": ["folder"],
    "search": ["folder", "query"],
    "evaluate": ["model", "task"],
    "compare": ["model", "model", "--tasks", "task"],
    "mine": ["pairs", "--output", "rows.jsonl"],
    "train": ["recipe"],
    "synthesize": ["recipe"],
    "relabel": ["pairs", "--output", "rows.jsonl"],
}


@pytest.mark.parametrize(("verb", "name"), [*options()])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_text_is_no_value_of_an_option(run, one_line, no_model, verb, name, empty):
    error = one_line(run(verb, *NEEDED.get(verb, []), name, empty))
    assert name in error
    assert "the value is empty" in error


@pytest.mark.parametrize(("verb", "arguments"), NEEDED.items())
def test_an_empty_text_is_no_positional_argument(run, one_line, no_model, verb, arguments):
    for place, name in enumerate(arguments):
        if not name.startswith("--"):
            given = [*arguments[:place], "", *arguments[place + 1 :]]
            assert "empty" in one_line(run(verb, *given))


def test_an_empty_prompt_replaces_the_models_default_prompt(run, tiny_bert):
    assert run("embed", "--model", tiny_bert, "--prompt", "", stdin=b"a cat\n").status == 0


def test_an_unset_folder_of_data_is_no_folder(run, one_line, monkeypatch, tiny_bert):
    monkeypatch.setenv("POLYVEC_DATA", "")
    assert "with --data" in one_line(run("evaluate", tiny_bert, "sts12"))


def test_subsets_that_no_task_has(run, one_line, no_model, pairs):
    error = one_line(run("evaluate", "model", pairs, "--subset", "xx"))
    assert "none of the tasks has it" in error


# ---- compare checks all before it measures anything ---------------------------------------------


def test_a_task_that_cannot_be_compared(run, one_line, no_model, pairs, clusters):
    error = one_line(run("compare", "a", "b", "--tasks", pairs, clusters))
    assert "v_measure of clustering is not a statistic of items" in error


def test_a_second_model_that_is_missing(run, one_line, no_model, pairs, tiny_bert):
    error = one_line(run("compare", tiny_bert, "/nowhere/model", "--tasks", pairs))
    assert "/nowhere/model: no such folder" in error


@pytest.mark.parametrize("samples", ["1", "0", "-5", "99999999999999999999"])
def test_too_few_samples_and_too_many(run, one_line, no_model, pairs, samples):
    error = one_line(run("compare", "a", "b", "--tasks", pairs, f"--samples={samples}"))
    assert f"{samples} samples, expected a whole number from 2 to" in error


@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_seeds_of_no_generator(run, one_line, no_model, pairs, seed):
    for verb in (
        ["compare", "a", "b", "--tasks", pairs],
        ["mine", pairs / "test.jsonl", "--output", pairs / "mined.jsonl"],
        ["generate", "--temperature", "1"],
    ):
        assert "is not a whole number from 0" in one_line(run(*verb, f"--seed={seed}"))


def test_compare_says_each_score_as_soon_as_it_is_known(run, pairs, tiny_bert):
    done = run("compare", tiny_bert, tiny_bert, "--tasks", pairs, "--samples", "5")
    assert len(re.findall(r"pairs \(test\): spearman -?\d+\.\d\d", done.err)) == 2


def test_evaluate_shows_what_was_measured_before_an_error(run, tmp_path, pairs, tiny_bert):
    # All cosines are 1, so that no correlation is defined: known only when they are computed.
    constant = [{**row, "sentence1": "a cat", "sentence2": "a cat"} for row in PAIRS]
    bad = lines(tmp_path / "constant" / "test.jsonl", constant).parent
    done = run("evaluate", tiny_bert, pairs, bad)
    assert done.status == 2
    assert "pairs" in done.out
    assert "spearman" in done.out
    assert "constant" in done.err.splitlines()[-1]


# ---- what gave a traceback ----------------------------------------------------------------------


def test_a_prompt_that_is_not_utf_8(run, one_line, tiny_bert):
    # The shell's byte 0xff reaches Python as this lone surrogate.
    done = run("embed", "--model", tiny_bert, "--prompt", "\udcff", stdin=b"a cat\n")
    assert "--prompt: the byte after character 0 is not UTF-8" in one_line(done)


@pytest.mark.parametrize("scores", [[1.0, None], [None, None], ["x", 1], [True, 1], [1], 5, None])
def test_scores_of_summaries_that_are_no_numbers(run, one_line, no_model, tmp_path, scores):
    row = {"text": "a cat", "human_summaries": ["cat"], "machine_summaries": ["a", "b"]}
    folder = lines(tmp_path / "summaries" / "test.jsonl", [{**row, "scores": scores}]).parent
    assert "test.jsonl:1: 'score" in one_line(run("evaluate", "model", folder))


@pytest.mark.parametrize("missing", ["summary", "fluency"])
@pytest.mark.parametrize("value", [None, [], {}])
def test_summaries_with_the_experts_scores(run, one_line, no_model, tmp_path, missing, value):
    each = {"summary": "a", "coherence": 1, "consistency": 1, "fluency": 1, "relevance": 1}
    row = {"text": "a", "human_summaries": ["b"], "machine_summaries": [{**each, missing: value}]}
    folder = lines(tmp_path / "summaries" / "test.jsonl", [row]).parent
    assert f"test.jsonl:1: '{missing}' is" in one_line(run("evaluate", "model", folder))


def test_a_text_that_is_a_number(run, one_line, no_model, tmp_path):
    file = lines(tmp_path / "items.jsonl", [{"text": 5}])
    for verb in (["embed"], ["index", tmp_path / "index"]):
        assert "items.jsonl:1: 'text' is int, not a string" in one_line(run(*verb, file))


@pytest.mark.parametrize("grade", ["99999999999999999999", "-99999999999999999999", "1e300"])
def test_a_grade_beyond_what_whole_numbers_hold(run, one_line, no_model, tmp_path, grade):
    folder = lines(tmp_path / "search" / "corpus.jsonl", [{"_id": "d", "text": "a"}]).parent
    lines(folder / "queries.jsonl", [{"_id": "q", "text": "a"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\td\t{grade}\n")
    error = one_line(run("evaluate", "model", folder))
    assert "test.tsv:2: grade" in error
    assert "is not between -2^53 and 2^53" in error
