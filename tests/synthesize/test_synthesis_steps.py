"""What each step keeps, rejects and says of it."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from polyvec.data.training.sources import training_rows
from polyvec.errors import DataError, GenerationError, InputError, SettingsError
from polyvec.llm.answers import Completion, Usage
from polyvec.llm.function import FunctionLanguageModel
from polyvec.recipe import all_recipes
from polyvec.synthesize.folder import training_line, write_rows
from polyvec.synthesize.rows import Row
from polyvec.synthesize.run import build_steps, dry_run, parts
from polyvec.synthesize.sections import STEPS, StepSettings
from polyvec.synthesize.spending import Budget, BudgetedLanguageModel
from polyvec.synthesize.step import Tools
from polyvec.synthesize.steps.filters import clean

RIVERS = [f"The river number {i} flows through Town{i} and ends in the sea." for i in range(8)]
TEXTS = {"kind": "texts"}
INPARS = {"kind": "generate", "prompt": "inpars"}


def question(prompt):
    """InPars' prompt ends with the document and 'Relevant Query:'."""
    number = prompt.rsplit("number ", 1)[1].split()[0]
    return f" Where does river {number} flow through Town{number}?\nAnd more"


def one(kind, rows, **settings):
    """A step alone."""
    step = parts().build(kind, settings, where="test")
    return step.run(rows, Tools())


def test_a_query_for_each_text(runs):
    made = runs([TEXTS, INPARS], RIVERS, question)
    assert made.rows[3].anchor == "Where does river 3 flow through Town3?"
    assert made.rows[3].positive == RIVERS[3]
    assert made.rows[3].meta == {"id": "t3", "made": {"anchor": "inpars"}}
    lines = (runs.folder / "out" / "train.jsonl").read_text().splitlines()
    assert json.loads(lines[3]) == {"query": made.rows[3].anchor, "pos": [RIVERS[3]], "neg": []}


def test_every_step_says_what_came_in_and_why_rows_went(runs):
    def write(prompt):
        number = int(prompt.rsplit("number ", 1)[1].split()[0])
        return [" Where is it?", "I'm sorry, but I cannot do that.", f" {RIVERS[2]}", " Hm"][
            number % 4
        ]

    steps = [TEXTS, INPARS, {"kind": "refusals"}, {"kind": "copies"}, {"kind": "length", "min": 2}]
    made = runs([*steps, {"kind": "deduplicate", "fields": ["anchor"]}], RIVERS, write)
    shown = [(r.kind, r.num_in, r.num_out, dict(r.reasons)) for r in made.reports]
    assert shown == [
        ("texts", 0, 8, {}),
        ("generate", 8, 8, {}),
        ("refusals", 8, 6, {"anchor is a refusal": 2}),
        ("copies", 6, 5, {"anchor equal to positive": 1}),
        ("length", 5, 3, {"anchor shorter than 2 words": 2}),
        ("deduplicate", 3, 2, {"the same anchor as an earlier row": 1}),
    ]
    assert made.reports[1].asked == 8
    stored = [json.loads(line) for line in (runs.folder / "out" / "rejected.jsonl").open()]
    assert stored[0]["step"] == "03-refusals" and "I'm sorry" in stored[0]["reason"]
    assert Row.of(stored[0]["row"], "").positive == RIVERS[1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty answer"),
        ("a b c d e f g h", "cut by max_new_tokens"),
    ],
)
def test_a_bad_answer_is_rejected_with_its_reason(runs, answer, reason):
    with pytest.raises(DataError, match=f"step 2 .generate. keeps none of 8 rows: 8 {reason}"):
        runs([TEXTS, {**INPARS, "max_new_tokens": 5}], RIVERS, lambda prompt: answer)


def test_an_off_document_query_is_filtered_by_the_round_trip(runs):
    """Promptagator's check: the query of another document is dropped."""

    def write(prompt):
        return question(prompt.replace("number 5", "number 2"))

    step = {"kind": "round_trip", "by": "bm25", "k": 1}
    made = runs([TEXTS, INPARS, step], RIVERS, write)
    assert [row.id for row in made.rows] == ["t0", "t1", "t2", "t3", "t4", "t6", "t7"]
    assert [each.row.id for _, each in made.rejected] == ["t5"]


def test_n_answers_make_n_rows_and_repeated_prompts_other_answers(runs):
    class Seeded(FunctionLanguageModel):
        """Writes the seed."""

        def stream_checked(self, prompts, settings):
            self.function = lambda prompt: f"seed {settings.seed}"
            return super().stream_checked(prompts, settings)

    grid = {"kind": "grid", "values": {"language": ["English"]}, "repeat": 3}
    brainstorm = {"kind": "generate", "prompt": "inpars", "slots": {"document": "language"}}
    made = runs([grid, {**brainstorm, "temperature": 1.0}], write=Seeded(str, "seeded"))
    assert [row.anchor for row in made.rows] == ["seed 0", "seed 1", "seed 2"]


def test_a_finished_run_asks_nothing_again(runs):
    first = runs([TEXTS, INPARS], RIVERS, question)
    again = runs([TEXTS, INPARS, {"kind": "length"}], RIVERS, question)
    assert again.rows == first.rows
    assert runs.models.usage.prompts == 0  # the first two steps were read from the folder
    other = runs([TEXTS, INPARS, {"kind": "length"}], RIVERS[:7], question)
    assert len(other.rows) == 7
    assert (runs.models.usage.prompts, runs.models.usage.cached) == (7, 7)


def test_a_budget_that_ends_keeps_what_is_there_and_goes_on_later(runs):
    steps = [TEXTS, INPARS, {"kind": "length"}]
    part = runs(steps, RIVERS, question, budget=Budget.parse("3"))
    assert [row.id for row in part.rows] == ["t0", "t1", "t2"]
    assert part.unfinished == "the budget is spent; 5 of 8 rows were not asked"
    assert len((runs.folder / "out" / "train.jsonl").read_text().splitlines()) == 3
    whole = runs(steps, RIVERS, question, budget=Budget.parse("8"))
    assert len(whole.rows) == 8 and whole.unfinished is None
    assert runs.models.spent.prompts == 5  # the other three were paid for before


def test_a_budget_that_ends_within_a_judge_says_that_nothing_was_judged(runs):
    def write(prompt):
        return "true" if prompt.startswith("You are") else question(prompt)

    steps = [TEXTS, INPARS, {"kind": "judge", "judges": [{"kind": "llm", "mode": "write"}]}]
    made = runs([*steps, {"kind": "length", "min": 99}], RIVERS, write, budget=Budget.parse("10"))
    assert made.unfinished == "step 3 (judge) was not done, the budget does not suffice for it"
    assert len(made.rows) == 8
    whole = runs(steps, RIVERS, write, budget=Budget.parse("16"))
    assert whole.unfinished is None and "verdicts" in whole.rows[0].meta
    assert runs.models.usage.cached == 2  # answers of the first run, which were paid for


def test_what_is_only_scored_counts_against_a_budget_of_money():
    """A judge on a server reads tokens, too; what they could cost is refused before it is paid."""

    class Scoring(FunctionLanguageModel):
        def score_checked(self, prompts, choices):
            self.usage.prompts += len(prompts)
            self.usage.prompt_tokens += 10 * len(prompts)
            return np.full((len(prompts), len(choices)), 0.5)

    inner, spent = Scoring(str, "scoring"), Usage()
    inner.usage.prompt_price = 1e6 / 10  # an answer of ten tokens costs 1
    model = BudgetedLanguageModel(inner, Budget.parse("2.5"), spent)
    prompt = " ".join(["word"] * 10)
    for _ in range(2):
        model.score([prompt], ["yes", "no"])
    assert (spent.prompts, spent.cost) == (2, 2.0)
    with pytest.raises(GenerationError, match="the budget is spent"):
        model.score([prompt], ["yes", "no"])
    assert inner.usage.prompts == 2


def test_a_budget_of_money_is_never_exceeded(runs):
    prices = {"prompt_price": 1000.0, "new_price": 1000.0}
    made = runs([TEXTS, INPARS], RIVERS, question, budget=Budget.parse("1.50"), **prices)
    assert 0 < len(made.rows) < 8
    assert runs.models.spent.cost <= 1.5


def test_a_failed_call_is_asked_again_and_none_is_paid_twice(runs):
    from polyvec.llm.answers import Completion

    class Failing(FunctionLanguageModel):
        """Every third call fails, once."""

        num_calls = 0

        def stream_checked(self, prompts, settings):
            for number, completion in super().stream_checked(prompts, settings):
                self.num_calls += 1
                failed = self.num_calls % 3 == 0 and self.num_calls < 8
                yield number, Completion((), error="HTTP 500") if failed else completion

    model = Failing(question, "failing")
    first = runs([TEXTS, INPARS], RIVERS, model)
    assert len(first.rows) == 6
    assert first.reports[1].reasons == {"no answer": 2}
    second = runs([TEXTS, INPARS], RIVERS, model)
    assert [row.id for row in second.rows] == [f"t{i}" for i in range(8)]
    assert model.num_calls == 10


def test_all_answers_the_same_are_noticed(runs):
    made = runs([TEXTS, INPARS], RIVERS, lambda prompt: "What is it?")
    assert made.reports[1].notes["warning"] == "all 8 answers are the same: 'What is it?'"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"kind": "genrate"}, "step 'genrate' is not known. Did you mean 'generate'"),
        ({**INPARS, "promt": "x"}, "setting 'promt' is not known. Did you mean 'prompt'"),
        ({"kind": "generate", "prompt": "inpar"}, "prompt 'inpar' is not known. Did you mean"),
        ({**INPARS, "slots": {"docment": "anchor"}}, "slot 'docment' is not known. Did you mean"),
        ({**INPARS, "to": "query"}, "'query' is no field of a row"),
        ({**INPARS, "num_demonstrations": 3}, "has no place for demonstrations"),
        (
            {"kind": "generate", "prompt": "promptagator_trec_covid", "num_demonstrations": 9},
            "3 demonstrations in prompt 'promptagator_trec_covid', fewer than num_demonstrations",
        ),
        ({**INPARS, "n": 3}, "temperature"),
        ({"kind": "length", "min": 5, "max": 3}, "holds nothing"),
        ({"kind": "log_probability", "prompt": "inpars"}, "set keep or at_least"),
    ],
)
def test_a_wrong_step_is_refused_before_anything_runs(step, message):
    kind, settings = step["kind"], {k: v for k, v in step.items() if k != "kind"}
    with pytest.raises(SettingsError, match=message):
        build_steps([StepSettings(kind, settings)], "mine.toml")


def test_demonstrations_of_a_file_are_drawn_without_the_rows_own(runs, tmp_path):
    pool = tmp_path / "pool.jsonl"
    rows = [{"document": text, "query": f"query {i}"} for i, text in enumerate(RIVERS[:4])]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = []

    def write(prompt):
        prompts.append(prompt)
        return f" query of {len(prompts)}"

    step = {"kind": "generate", "prompt": "promptagator_scifact", "demonstrations": str(pool)}
    runs([TEXTS, step], RIVERS[:4], write)
    for text, prompt in zip(RIVERS, prompts, strict=False):
        assert prompt.endswith(f"{text}\nFinding:")
        assert prompt.count("Finding: query") == 3
        assert prompt.count(text) == 1
    step["num_demonstrations"] = 5
    with pytest.raises(SettingsError, match=r"4 demonstrations in .*pool\.jsonl, fewer than"):
        runs([TEXTS, step], RIVERS, write)


def test_lengths_languages_copies_and_negatives():
    row = Row("wo fließt der Fluss durch die Stadt?", "The river flows through the town.", ("a",))
    assert one("length", [row], field="negatives", min=2).kept[0].negatives == ()
    assert one("language", [row], languages=["en"]).rejected[0].reason.endswith(": de")
    assert one("language", [row], field="positive", languages=["en"]).kept == [row]
    part = Row("River flows through", "The river flows through the town!")
    assert one("copies", [part]).kept == [part]
    assert not one("copies", [part], inside=True).kept
    assert not one("copies", [part], ngram=2).kept
    assert one("copies", [part], ngram=4).kept == [part]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("As an AI language model, I cannot", None),
        ("Sorry, but I can't help with that.", None),
        ("Sure, here is a query: where is the river?", "where is the river?"),
        ("1. “Where is the river?”", "Where is the river?"),
        ("I cannot find my keys anywhere", None),
        ("What is an AI language model?", "What is an AI language model?"),
        ("sorry for the late reply, what is it", "sorry for the late reply, what is it"),
    ],
)
def test_refusals(text, kept):
    found = one("refusals", [Row(text, "x")])
    assert [row.anchor for row in found.kept] == ([] if kept is None else [kept])
    if kept is not None:
        assert clean(text) == kept


def test_rows_that_hold_evaluation_texts_are_refused(tmp_path):
    words = [f"w{i}" for i in range(40)]
    tests = ["a short one", " ".join(words[:9]), " ".join(words[10:30])]
    (tmp_path / "test.txt").write_text("\n".join(tests))
    rows = [
        Row("A short, one!", "x"),  # the same but for case and punctuation
        Row("a short one and more", "x"),  # fewer than 8 words may be part of a text
        Row("y", f"it says: {' '.join(words[:9])} again"),
        Row("y", "z", (" ".join(["c", *words[12:25], "d"]),)),  # 13 words in a row
        Row("y", "z", (" ".join(["c", *words[12:24], "d"]),)),
    ]
    found = one("held_out", rows, against=[str(tmp_path / "test.txt")])
    assert found.kept == [rows[1], rows[4]]
    assert [each.row for each in found.rejected] == [rows[0], rows[2], rows[3]]


def test_a_dry_run_asks_nothing_and_counts_at_most(runs):
    asked = Counter()
    settings = [StepSettings("texts"), StepSettings("generate", {"prompt": "inpars"})]
    steps = build_steps([*settings, StepSettings("judge", {"judges": [{"kind": "llm"}]})], "r")
    runs([TEXTS, INPARS], RIVERS, question)
    tools = runs.models.tools([])
    tools.texts = [type("R", (), {"id": str(i), "text": t})() for i, t in enumerate(RIVERS)]
    found = dry_run(steps, tools)
    assert [(each.kind, each.num_calls, each.new_tokens) for each in found.steps] == [
        ("generate", 8, 512),
        ("judge", 8, 8),
    ]
    assert len(found.shown) == 3 and found.shown[0].endswith("sea.\nRelevant Query:")
    assert found.steps[0].prompt_tokens == sum(len(p.split()) for p in found.shown) // 3 * 8
    assert not asked


def test_the_steps_of_every_recipe_build():
    for recipe in all_recipes():
        for scale in ("full", "small", "nano"):
            if recipe.at(STEPS, scale):
                build_steps(recipe.at(STEPS, scale), recipe.key)


def test_importing_the_section_needs_no_torch():
    code = "import sys, polyvec.synthesize.sections; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_row_with_a_score_keeps_its_negatives(tmp_path):
    """Through the file, as the reader of training data has them."""
    rows = [Row("a", "b", ("c", "d"), score=0.5), Row("e", "f", score=0.25)]
    write_rows(tmp_path / "train.jsonl", map(training_line, rows))
    found = training_rows({"path": str(tmp_path / "train.jsonl")}, None, seed=0)
    assert [(row.query, row.positives, row.negatives, row.score) for row in found] == [
        ("a", ("b",), ("c", "d"), 0.5),
        ("e", ("f",), (), 0.25),
    ]


@pytest.mark.parametrize("kind", ["texts", "pairs", "grid"])
@pytest.mark.parametrize("wrong", [{"limit": 0}, {"seed": -1}])
def test_steps_that_draw_refuse_the_same(kind, wrong):
    more = {"values": {"topic": ["a"]}} if kind == "grid" else {}
    with pytest.raises((InputError, SettingsError), match=r"limit 0 must be 1|seed is -1"):
        build_steps([StepSettings(kind, {**more, **wrong})], "recipe")


def test_files_that_are_not_there_are_told_before_anything_is_asked(runs, tmp_path):
    asked = []
    nowhere = str(tmp_path / "nowhere.jsonl")
    for step in (
        {"kind": "held_out", "against": [nowhere]},
        {"kind": "round_trip", "corpus": nowhere},
        {
            "kind": "branches",
            "branches": [[{"kind": "length"}], [{"kind": "retrieve", "corpus": nowhere}]],
        },
    ):
        with pytest.raises(DataError, match="no such file"):
            runs([TEXTS, INPARS, step], RIVERS, lambda prompt: asked.append(prompt) or "said")
    assert not asked
    tuned = {"kind": "train_embedder", "train": {"max_steps": 1}}
    with pytest.raises(SettingsError, match="makes a model; put it before the branches"):
        runs([TEXTS, {"kind": "branches", "branches": [[tuned], [tuned]]}], RIVERS)


def test_a_step_whose_state_is_damaged_is_done_again(runs):
    first = runs([TEXTS, INPARS], RIVERS, question)
    for damaged in (b"{", b"\xff", b"[1]"):
        (runs.folder / "out" / "steps" / "02-generate.json").write_bytes(damaged)
        again = runs([TEXTS, INPARS], RIVERS, question)
        assert again.rows == first.rows and again.reports[1].asked == 0


def test_a_step_that_keeps_nothing_says_why_in_full(runs):
    with pytest.raises(DataError, match=r"1 no answer: .* has no tokens; "):
        runs([TEXTS, INPARS], RIVERS[:1], Refusing(str, "refusing"))


class Refusing(FunctionLanguageModel):
    def stream_checked(self, prompts, settings):
        for number, _ in enumerate(prompts):
            yield number, Completion((), error=f"prompts[{number}] has no tokens")
