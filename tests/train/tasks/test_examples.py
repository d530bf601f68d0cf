"""Demonstrations in training: which are shown, and that the model reads what `encode` would."""

import functools
import json

import pytest

from polyvec import Embedder, load_recipe
from polyvec.cli import main
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.inputs.demonstrations import Example
from polyvec.errors import SettingsError
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks import TASKS

ASK = "Find the answer"
PAIRS = [
    ("how do cats sleep", "Cats sleep curled up."),
    ("where do cats sleep at night", "On the sofa."),
    ("what is the capital of France", "Paris."),
    ("which river flows through Paris", "The Seine."),
    ("do cats sleep a lot", "Sixteen hours a day."),
    ("how tall is a giraffe", "Five metres."),
]
ROWS = [
    TrainingRow(query, (document,), instruction=ASK, dataset="qa", place=f"qa:{number}")
    for number, (query, document) in enumerate(PAIRS, 1)
]


@functools.cache
def embedder(recipe: str) -> Embedder:
    return load_recipe(recipe).build("nano")


def task_of(recipe, table, **stage):
    model = embedder(recipe)
    settings = StageSettings("scl", **stage)
    task = TASKS.build("scl", {"examples": table}, {"embedder": model, "stage": settings}, where="")
    task.prepare(ROWS)
    return task


def read(task, rows, shares, mine=0):
    """Ids of each text of a share in order: queries, then documents."""
    work = task.work(rows, shares, mine)
    tokens = [
        ids.tolist() for piece in work.pieces for ids in split(piece.payload.batch) if len(ids)
    ]
    return [tokens[place] for place in inverse(work.order["encode"].tolist())]


def split(batch):
    start = 0
    for length in batch.lengths:
        yield batch.ids_T[start : start + length]
        start += length


def inverse(order):
    return sorted(range(len(order)), key=order.__getitem__)


def ids_of(recipe, string):
    """Of a string with its special tokens written out, by the tokenizer alone."""
    return embedder(recipe).tokenizer(string, add_special_tokens=False).input_ids


def test_bge_icl_reads_in_training_what_its_release_writes():
    task = task_of("bge-icl", {"kind": "in_batch", "k": 3})
    whole = [Share(0, len(ROWS))]
    found = read(task, ROWS, whole)
    shown = task.examples.of(ROWS, whole[0], 0)
    assert max(map(len, shown)) > 1
    for row, examples, ids in zip(ROWS, shown, found, strict=False):
        before = "".join(
            f"<instruct>{ASK}\n<query>{each.query}\n<response>{each.document}\n\n"
            for each in examples
        )
        asked = f"<instruct>{ASK}\n<query>{row.query}\n<response>"
        assert ids == ids_of("bge-icl", f"<s>{before}{asked}</s>")
    assert found[len(ROWS)] == ids_of("bge-icl", "<s>Cats sleep curled up.</s>")


def test_rare_reads_in_training_what_its_release_writes():
    pytest.importorskip("bm25s")
    task = task_of("rare", {"kind": "nearest", "k": 2})
    found = read(task, ROWS, [Share(0, len(ROWS))])
    # Of the two that share "cats sleep" the shorter is nearer by BM25, so it is the last.
    assert found[0] == ids_of(
        "rare",
        f"<s>Instruct: {ASK}\n"
        "Query: where do cats sleep at night\nPositive Document: On the sofa.\n"
        "Query: do cats sleep a lot\nPositive Document: Sixteen hours a day.\n"
        "Query: how do cats sleep</s>",
    )


@pytest.mark.parametrize(("recipe", "kind"), [("bge-icl", "in_batch"), ("rare", "nearest")])
def test_training_reads_what_encode_reads(recipe, kind):
    """SILENT row 25."""
    pytest.importorskip("bm25s")
    task = task_of(recipe, {"kind": kind, "k": 3, "document_length": 4})
    whole = Share(0, len(ROWS))
    found = read(task, ROWS, [whole])
    for row, examples, ids in zip(ROWS, task.examples.of(ROWS, whole, 0), found, strict=False):
        ((tokens,),) = embedder(recipe).tokenize(
            [row.query], role="query", prompt=row.instruction, examples=examples
        )
        assert tokens.ids.tolist() == ids


def test_what_is_drawn_depends_on_seed_batch_and_row_alone():
    task = task_of("bge-icl", {"kind": "in_batch", "k": 4})
    whole = task.examples.of(ROWS, Share(0, 6), 7)
    assert task.examples.of(ROWS, Share(2, 5), 7) == whole[2:5]
    assert task.examples.of(ROWS, Share(0, 6), 8) != whole
    again = task_of("bge-icl", {"kind": "in_batch", "k": 4}, seed=1)
    assert again.examples.of(ROWS, Share(0, 6), 7) != whole
    counts = {
        len(each) for batch in range(40) for each in task.examples.of(ROWS, Share(0, 6), batch)
    }
    assert counts == {0, 1, 2, 3, 4}


def test_neither_the_query_nor_another_data_set_is_shown():
    other = TrainingRow("a cat", ("a pet",), dataset="other")
    twin = TrainingRow(PAIRS[0][0], ("Twelve hours.",), instruction=ASK, dataset="qa")
    rows = [*ROWS, other, twin]
    task = task_of("bge-icl", {"kind": "in_batch", "k": 9})
    for batch in range(30):
        shown = task.examples.of(rows, Share(0, len(rows)), batch)
        for row, examples in zip(rows, shown, strict=True):
            assert row.query not in [each.query for each in examples]
            assert "a cat" not in [each.query for each in examples]
        assert shown[6] == ()
        assert len(set(shown[2])) == len(shown[2])


def test_nearest_leaves_out_what_has_the_same_answer():
    pytest.importorskip("bm25s")
    task = task_of("rare", {"kind": "nearest", "k": 1})
    twin = TrainingRow("do the cats sleep a lot", (PAIRS[4][1],), dataset="qa")
    task.prepare([*ROWS, twin])
    (shown,) = task.examples.of([ROWS[4]], Share(0, 1), 0)
    assert shown[0].query in (PAIRS[0][0], PAIRS[1][0])
    half = task_of("rare", {"kind": "nearest", "k": 1, "without": 0.5})
    counts = [len(half.examples.of(ROWS, Share(0, 1), batch)[0]) for batch in range(100)]
    assert 30 < sum(counts) < 70


def test_examples_are_cut_and_those_that_do_not_fit_left_out():
    pytest.importorskip("bm25s")
    long = TrainingRow("how do cats sleep " * 40, ("They sleep well. " * 40,), dataset="qa")
    rows = [*ROWS, long]
    table = {"query_length": 5, "document_length": 3}
    for recipe, kind in (("bge-icl", "in_batch"), ("rare", "nearest")):
        task = task_of(recipe, {"kind": kind, "k": 6, **table})
        task.prepare(rows)
        shown = [each for batch in range(9) for each in task.examples.of(rows, Share(0, 7), batch)]
        assert any(long.query.startswith(each.query) for found in shown for each in found)
        for each in (each for found in shown for each in found):
            assert len(ids_of(recipe, each.query)) <= 5
            assert len(ids_of(recipe, each.document)) <= 3
        # With room for two of them: in_batch keeps the first drawn, nearest the nearest.
        limited = task_of(recipe, {"kind": kind, "k": 6, "total_length": 48, **table})
        limited.prepare(rows)
        fewer = [
            each for batch in range(9) for each in limited.examples.of(rows, Share(0, 7), batch)
        ]
        assert any(len(a) < len(b) for a, b in zip(fewer, shown, strict=True))
        for few, all_ in zip(fewer, shown, strict=True):
            assert few == (all_[: len(few)] if kind == "in_batch" else all_[len(all_) - len(few) :])
            ((tokens,),) = embedder(recipe).tokenize(["a"], role="query", prompt=ASK, examples=few)
            ((bare,),) = embedder(recipe).tokenize(["a"], role="query", prompt=ASK, examples=())
            assert len(tokens) - len(bare) <= 48


@pytest.mark.parametrize(
    ("recipe", "table", "message"),
    [
        ("e5-mistral", {"kind": "in_batch"}, "does not show examples; use one with an {examples}"),
        ("bge-icl", {}, "kind is missing. Known: in_batch, nearest."),
        ("bge-icl", {"kind": "inbatch"}, "Did you mean 'in_batch'"),
        ("bge-icl", {"kind": "in_batch", "num": 3}, "setting 'num' is not known"),
        ("bge-icl", {"kind": "in_batch", "k": 0}, "k is 0, expected 1 or more"),
        ("bge-icl", {"kind": "in_batch", "total_length": 0}, "total_length is 0"),
        ("rare", {"kind": "nearest", "without": 1.0}, "without is 1.0, expected 0 to below 1"),
    ],
)
def test_settings_of_examples(recipe, table, message):
    with pytest.raises(SettingsError) as raised:
        task_of(recipe, table)
    assert message in str(raised.value)


def test_an_example_shows_its_own_instruction():
    rows = [ROWS[0], TrainingRow("a", ("b",), instruction="Another", dataset="qa")]
    task = task_of("bge-icl", {"kind": "in_batch", "k": 1})
    shown = [task.examples.of(rows, Share(0, 1), batch)[0] for batch in range(8)]
    assert (Example("a", "b", "Another"),) in shown


RECIPE = """
[system]
name = "mine"
paper = "-"
tasks = ["retrieval"]

[embedder]
backbone = "polyvec/nano-lm"
template = "TEMPLATE"
pooling = "last"
prompts = { qa = "Find the answer" }
default_prompt = "qa"

[[stage]]
kind = "scl"
batch_size = 6
max_steps = 2
learning_rate = 1e-3
data = [{ path = "FOLDER/pairs.jsonl" }]
examples = { kind = "KIND", k = 2 }
"""


@pytest.mark.parametrize(("template", "kind"), [("bge_icl", "in_batch"), ("rare", "nearest")])
def test_a_recipe_trains_with_examples_and_its_model_reads_them_the_same_way(
    template, kind, tmp_path
):
    pytest.importorskip("bm25s")
    lines = [json.dumps({"anchor": query, "positive": document}) for query, document in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    recipe = tmp_path / "mine.toml"
    text = RECIPE.replace("TEMPLATE", template).replace("KIND", kind)
    recipe.write_text(text.replace("FOLDER", str(tmp_path)))
    output = tmp_path / "run"
    assert main(["train", str(recipe), "-o", str(output)]) == 0
    before, after = load_recipe(recipe).build("full"), Embedder.from_pretrained(output / "model")
    shown = [Example("a cat", "an animal", "Name it" if template == "bge_icl" else None)]
    ((one,),) = before.tokenize(["a dog"], role="query", examples=shown)
    ((two,),) = after.tokenize(["a dog"], role="query", examples=shown)
    assert one.ids.tolist() == two.ids.tolist()
    assert one.pooled.tolist() == two.pooled.tolist()
