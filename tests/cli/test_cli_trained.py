"""Figures of trained recipes: measured before and after the stages, and checked again."""

import json

import pytest
from toy_run import PAIRS, write_recipe

from polyvec.evaluate.sections import EXPECT
from polyvec.recipe import load_recipe

FIGURE = "toys test spearman"


@pytest.fixture
def data(tmp_path):
    """Pairs of the training set that belong together, and others that do not."""
    (tmp_path / "toys").mkdir()
    rows = [{"sentence1": a, "sentence2": b, "score": 5.0} for a, b in PAIRS]
    others = zip(PAIRS, PAIRS[1:] + PAIRS[:1], strict=True)
    rows += [{"sentence1": a, "sentence2": b, "score": 0.0} for (a, _), (_, b) in others]
    (tmp_path / "toys" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.medium
def test_a_trained_recipes_figures_are_measured_and_checked_again(run, data, tmp_path):
    path = write_recipe(tmp_path, "max_steps = 20\n")
    on_data = "--data", data
    plain = run("recipes", "measure", path, FIGURE, *on_data)
    assert "untrained" not in plain.out
    done = run("recipes", "measure", path, FIGURE, "--train", *on_data)
    assert done.status == 0, done.err
    path.write_text(f"{path.read_text()}\n{done.out}")
    figure = load_recipe(path)[EXPECT]["nano"][FIGURE]
    assert f"measured = {figure.untrained}" in plain.out
    assert figure.measured > figure.untrained + 0.1
    checked = run("recipes", "check", path, *on_data)
    assert checked.status == 0, checked.err
    (line,) = [line for line in checked.out.splitlines() if FIGURE in line]
    assert line.endswith(f"untrained {figure.untrained}")
    score = float(line.split(": ")[1].split(",")[0])
    assert score == pytest.approx(figure.measured, abs=0.05)  # the trained one's, up to rounding


def test_a_trained_recipes_check_needs_its_data(run, tmp_path, one_line):
    path = write_recipe(tmp_path, "max_steps = 20\n")
    figure = f'"{FIGURE}" = {{ at_least = 0.1, measured = 0.5, untrained = 0.2 }}'
    path.write_text(f"{path.read_text()}\n[expect.nano]\n{figure}\n")
    assert "pass the folder of data sets with --data" in one_line(run("recipes", "check", path))
