"""Steps of single systems: ratings, branches, pairs, joined fields."""

import json

import pytest

from polyvec.data.texts import Record
from polyvec.errors import DataError, SettingsError
from polyvec.llm.function import FunctionLanguageModel
from polyvec.synthesize.rows import Row
from polyvec.synthesize.run import build_steps, dry_run, parts
from polyvec.synthesize.sections import StepSettings
from polyvec.synthesize.spending import Budget
from polyvec.synthesize.step import Tools


def one(kind, rows, tools=None, **settings):
    """A step alone."""
    return parts().build(kind, settings, where="test").run(rows, tools or Tools())


def asked(write):
    model = FunctionLanguageModel(write, "rule")
    return Tools(language_model=lambda name: model)


def test_a_rating_becomes_a_smoothed_score():
    """CLAIF's post-processing: 0.8 y + 0.2 / 3 * 1.5."""
    rows = [Row("a", text, meta={"id": text}) for text in ("same", "other", "odd", "far")]
    said = {"same": " 1.0", "other": " 0.35, because", "odd": " no idea", "far": " 7"}

    def write(prompt):
        return next(said[text] for text in said if f"'{text}'" in prompt)

    made = one("rate", rows, asked(write), prompt="claif_score", smoothing=0.2)
    assert [(row.positive, row.score) for row in made.kept] == [("same", 0.9), ("other", 0.38)]
    assert [each.reason.split(": ")[0] for each in made.rejected] == ["not rated", "not rated"]


def test_self_curation_keeps_pairs_that_are_rated_apart():
    """MultiCSR's filter 15: 3 and 3, and not the same; a better negative becomes the positive."""

    def write(prompt):
        return prompt.rsplit("is ", 1)[1]

    def row(positive, negative):
        return Row("a", f"is {positive}", (f"is {negative}",), meta={"id": f"{positive}"})

    limits = {"prompt": "multicsr_score", "to": "check", "positive_min": 3, "negative_max": 3}
    rows = [row(4.2, 1), row(2, 1), row(5, 4), row(3, 3), row(1, 4), Row("a", "is 3")]
    made = one("rate", rows, asked(write), swap=True, **limits)
    assert [(r.positive, r.negatives) for r in made.kept] == [
        ("is 4.2", ("is 1",)),
        ("is 4", ("is 1",)),
    ]
    assert made.kept[1].meta["ratings"] == [4.0, 1.0]
    kept = one("rate", rows, asked(write), **limits).kept
    assert [row.positive for row in kept] == ["is 4.2"]


def test_branches_give_every_row_to_each_or_one_row_to_one():
    rows = [Row(f"text {i}", meta={"id": f"t{i}"}) for i in range(40)]
    lists = [
        [{"kind": "generate", "prompt": name}]
        for name in ("sumcse_concise", "sumcse_contrast_idea")
    ]
    every = one("branches", rows, asked(lambda prompt: "said"), branches=lists)
    assert len(every.kept) == 80 and len({row.id for row in every.kept}) == 80
    assert {row.positive for row in every.kept[:40]} == {"said"}
    assert {row.negatives for row in every.kept[40:]} == {("said",)}
    split = one("branches", rows, asked(lambda p: "said"), branches=lists, share="split")
    assert sorted(row.id for row in split.kept) == sorted(row.id for row in rows)
    positives = sum(row.positive is not None for row in split.kept)
    assert 10 < positives < 30
    again = one("branches", rows, asked(lambda p: "said"), branches=lists, share="split", seed=1)
    assert [r.id for r in again.kept] != [r.id for r in split.kept]


def test_a_mistake_inside_of_branches_is_named():
    good = [{"kind": "generate", "prompt": "inpars"}]
    with pytest.raises(SettingsError, match=r"'branches' 2: \[step 1\].*'promt' is not known"):
        one("branches", [], branches=[good, [{"kind": "generate", "promt": "inpars"}]])
    with pytest.raises(SettingsError, match="two lists of steps or more"):
        one("branches", [], branches=[good])
    with pytest.raises(SettingsError, match="key 'kind' is missing"):
        one("branches", [], branches=[good, [{"prompt": "inpars"}]])


def test_settings_of_every_generate_inside_of_branches():
    lists = [[{"kind": "generate", "prompt": "sumcse_concise"}]] * 2
    made = one(
        "branches",
        [Row("a", meta={"id": "a"})],
        asked(lambda prompt: "one two three"),
        branches=lists,
        generate={"max_new_tokens": 2, "keep_cut": True},
    )
    assert [row.positive for row in made.kept] == ["one two", "one two"]


def test_a_budget_that_ends_in_a_branch_leaves_the_rows_of_those_before(runs):
    lists = [[{"kind": "generate", "prompt": name}] for name in ("multicsr_entail", "gense_entail")]
    steps = [{"kind": "texts", "to": "anchor"}, {"kind": "branches", "branches": lists}]
    texts = [f"text {i}" for i in range(4)]
    made = runs(steps, texts, lambda prompt: "said", budget=Budget.parse("6"))
    assert "2 of 4 rows were not asked" in made.unfinished
    assert [row.id for row in made.rows] == [f"t{i}.branch-1" for i in range(4)]
    again = runs(steps, texts, lambda prompt: "said", budget=Budget.parse("8"))
    assert again.unfinished is None and len(again.rows) == 8


def test_a_dry_run_counts_what_comes_behind_masks_and_branches():
    texts = [Record(str(i), f"one two three {i}") for i in range(3)]
    fill = {"kind": "generate", "prompt": "claif_infill", "max_new_tokens": 5}
    lists = [[{"kind": "mask_words"}, fill], [{"kind": "generate", "prompt": "claif_same"}]]
    settings = [
        StepSettings("texts", {"to": "anchor"}),
        StepSettings("generate", {"prompt": "knowledge"}),
        StepSettings("branches", {"branches": lists}),
        StepSettings("rate", {"prompt": "claif_score"}),
    ]
    tools = Tools(texts, asked(str).language_model)
    found = dry_run(build_steps(settings, "r"), tools)
    assert [each.num_calls for each in found.steps] == [3, 3 * 8 + 3, 3 * 8 + 3]


def test_pairs_of_training_data_and_of_texts(tmp_path, monkeypatch):
    lines = [{"question": f"q{i}", "sentence": f"s{i}"} for i in range(5)]
    folder = tmp_path / "squad_qg_pairs"
    folder.mkdir()
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setenv("POLYVEC_DATA", str(tmp_path))
    made = one("pairs", [], data={"name": "squad_qg_pairs"})
    assert [(r.anchor, r.positive) for r in made.kept] == [(f"q{i}", f"s{i}") for i in range(5)]
    assert len(one("pairs", [], data={"name": "squad_qg_pairs"}, limit=2).kept) == 2
    step = parts().build("pairs", {"data": {"name": "squad_qg_pairs"}}, where="test")
    before = step.depends(Tools())
    (folder / "test.jsonl").write_text(json.dumps(lines[0]))
    assert step.depends(Tools()) != before
    texts = [Record(str(i), f"text {i}") for i in range(5)]
    made = one("pairs", [], Tools(texts))
    assert [(r.anchor, r.positive) for r in made.kept] == [
        ("text 0", "text 1"),
        ("text 2", "text 3"),
    ]
    with pytest.raises(DataError, match="give data, or two texts"):
        one("pairs", [])


def test_unrelated_pairs_are_of_other_anchors():
    rows = [Row(f"a{i // 2}", f"p{i}", score=0.5, meta={"id": f"r{i}"}) for i in range(6)]
    made = one("unrelated", rows, n=3).kept
    assert made[:6] == rows and len(made) == 6 + 3 * 3
    own = {(row.anchor, row.positive) for row in rows}
    assert all(row.score == 0 and (row.anchor, row.positive) not in own for row in made[6:])
    with pytest.raises(DataError, match="same anchor"):
        one("unrelated", rows[:2])


def test_a_template_joins_fields():
    rows = [Row("a {cat}", meta={"id": "1", "knowledge": "It purrs."}), Row("b", meta={"id": "2"})]
    made = one("join", rows, template="{anchor} {knowledge}")
    assert [row.positive for row in made.kept] == ["a {cat} It purrs."]
    assert made.rejected[0].reason == "no knowledge"
