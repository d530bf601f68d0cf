"""Mistakes of users: each is one line and exit status 2, or an error of polyvec's in Python."""

import json
import os
import shutil

import pandas
import pytest
import torch
from checkpoints import checkpoint
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from toy_run import PAIRS, write_recipe

from polyvec import Embedder, Trainer, TrainingArguments
from polyvec.cli import main
from polyvec.errors import DataError, PolyvecError, SettingsError, TrainingError
from polyvec.train.compared import Compared
from polyvec.train.losses.labelled import SoftmaxNLI
from polyvec.train.losses.scored import mse_score

ROWS = [{"anchor": a, "positive": b} for a, b in PAIRS]
STEPS = "max_steps = 4\ntrainer = { save_steps = 2, logging_steps = 1 }\n"


def train(recipe, *more):
    output = recipe.parent / "run"
    return main(["train", str(recipe), "-o", str(output), *more]), output


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("weight_decay = nan", "[stage 1]: weight_decay is nan, expected a number of at least 0"),
        ("seed = -1", "[stage 1]: seed is -1, expected a number of at least 0 and at most"),
        ("max_steps = 0", "give no step"),
        ("num_train_epochs = 0", "give no step"),
        ("accumulate = 0", "accumulate is 0"),
        ("gradient_cache = -1", "gradient_cache is -1"),
        ("max_length = 0", "max_length is 0"),
        ("bathsize = 3", "[stage 1] key 'bathsize' is not known. Did you mean 'batch_size'?"),
        ("embedder = 'x'", "[stage 1] key 'embedder' is not known"),
    ],
)
def test_a_setting_out_of_range_stops_before_weights_load(
    setting, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("polyvec.embed.compose.load_transformer", None)
    status, output = train(write_recipe(tmp_path, setting + "\n"))
    assert (status, output.exists()) == (2, False)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainer = { save_step = 2 }", "Did you mean 'save_steps'?"),
        ("trainer = { learning_rate = 1.0 }", "write learning_rate beside trainer, not in it"),
        ("trainer = { output_dir = 'x' }", "'output_dir' is set by the stage"),
        ("trainer = { report_to = 'tensorbord' }", "tensorbord is not supported"),
        ("max_length = 1", "leaves no room for a text"),
        ("losses = [{ kind = 'info_nce', datasets = ['pair'] }]", "Did you mean 'pairs'?"),
    ],
)
def test_a_setting_that_nothing_could_obey_is_one_line(setting, words, tmp_path, capsys):
    status, _ = train(write_recipe(tmp_path, setting + "\n"))
    assert status == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    # Nothing was trained, so the corrected recipe may take the same folder.
    status, _ = train(write_recipe(tmp_path, "max_steps = 1\n"))
    assert status == 0


def test_a_folder_with_a_file_of_another_program_is_not_taken(tmp_path, capsys):
    recipe = write_recipe(tmp_path, "max_steps = 1\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text('{"flour": "500 g"}')
    assert train(recipe)[0] == 2
    assert "not empty" in capsys.readouterr().err


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A recipe and its run, as if it had been killed after the second of four steps."""
    folder = tmp_path_factory.mktemp("stopped")
    recipe = write_recipe(folder, STEPS)
    status, output = train(recipe)
    assert status == 0
    for path in ("model", "stages/1-scl/final", "stages/1-scl/checkpoint-4"):
        shutil.rmtree(output / path)
    return folder


@pytest.fixture
def again(stopped, tmp_path):
    """A copy of the run, of the same recipe."""
    shutil.copytree(stopped / "run", tmp_path / "run", copy_function=os.link)
    shutil.copy(stopped / "pairs.jsonl", stopped / "kept.jsonl")
    yield stopped / "mine.toml", tmp_path / "run"
    shutil.copy(stopped / "kept.jsonl", stopped / "pairs.jsonl")


def resume(recipe, output, capsys):
    status = main(["train", str(recipe), "-o", str(output), "--resume"])
    return status, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_damaged_checkpoint_is_named(name, damage, again, capsys):
    """transformers goes on without a missing file, to other weights."""
    recipe, output = again
    path = output / "stages" / "1-scl" / "checkpoint-2" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    status, error = resume(recipe, output, capsys)
    assert status == 2
    assert f"{path}: missing or damaged. Remove {path.parent} to go on" in error


@pytest.mark.parametrize("name", ["recipe.json", "stages/1-scl/checkpoint-2/trainer_state.json"])
def test_a_damaged_file_of_a_run_is_named(name, again, capsys):
    recipe, output = again
    (output / name).unlink()
    (output / name).write_text("{")
    status, error = resume(recipe, output, capsys)
    assert status == 2
    assert f"{output / name}: " in error
    assert "damaged" in error


@pytest.mark.parametrize("change", [lambda rows: rows[::-1], lambda rows: rows[:6]])
def test_a_run_does_not_go_on_with_other_data(change, again, capsys):
    recipe, output = again
    file = recipe.parent / "pairs.jsonl"
    file.write_text("\n".join(change(file.read_text().splitlines())))
    status, error = resume(recipe, output, capsys)
    assert status == 2
    assert "the data set 'pairs' is not as it was when the run began (8 rows" in error


def test_a_score_or_label_that_changed_is_other_data(tmp_path):
    arguments = {"max_steps": 4, "use_cpu": True, "save_strategy": "steps", "save_steps": 2}
    rows = [{"sentence1": a, "sentence2": b, "score": i / 8} for i, (a, b) in enumerate(PAIRS)]
    args = TrainingArguments(str(tmp_path), **arguments)
    Trainer(embedder(), args, rows).train()
    args = TrainingArguments(str(tmp_path), **arguments)
    trainer = Trainer(embedder(), args, [*rows[:-1], {**rows[-1], "score": 0.0}])
    with pytest.raises(DataError, match="is not as it was when the run began"):
        trainer.train(resume_from_checkpoint=True)
    trainer = Trainer(embedder(), args, rows)
    with pytest.raises(TrainingError, match="no such checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def embedder():
    return Embedder.from_pretrained(checkpoint("meta-llama/"), pooling="mean", device="cpu")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"loss": 5}, "loss is builtins.int"),
        ({"loss": lambda batch: 1.0}, "returned float"),
        ({"loss": lambda batch: batch.query_BE}, r"returned \[8, \d+\]"),
        ({"loss": lambda batch: torch.tensor(1.0)}, "has no gradient"),
        ({"evaluator": 5}, "evaluator is builtins.int"),
        ({"evaluator": lambda model: None, "eval_strategy": "steps"}, "returned None"),
        ({"evaluator": lambda model: {}, "eval_strategy": "steps"}, "returned {}"),
        ({"eval_strategy": "steps"}, "eval_strategy has nothing to measure"),
        ({"adapter": "lora"}, "adapter is 'lora', expected a table"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"max_steps": 0}, "give no step"),
    ],
)
def test_arguments_of_the_trainer(more, words, tmp_path):
    front = {key: more[key] for key in ("loss", "evaluator") if key in more}
    given = {"max_steps": 1, "eval_steps": 1, "use_cpu": True, "save_strategy": "no"}
    given |= {key: value for key, value in more.items() if key not in front}
    args = TrainingArguments(str(tmp_path), **given)
    with pytest.raises(PolyvecError, match=words):
        Trainer(embedder(), args, ROWS, **front).train()


def test_parts_of_sentence_transformers_are_named(tmp_path, tiny_bert):
    theirs = SentenceTransformer(str(tiny_bert), device="cpu")
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True)
    with pytest.raises(PolyvecError, match=r"model is sentence_transformers.*polyvec\.Embedder"):
        Trainer(theirs, args, ROWS)
    with pytest.raises(PolyvecError, match='name the loss, such as "info_nce"'):
        Trainer(embedder(), args, ROWS, loss=losses.MultipleNegativesRankingLoss(theirs))
    evaluator = EmbeddingSimilarityEvaluator(["a"], ["b"], [0.5])
    with pytest.raises(PolyvecError, match="pass a function of the embedder"):
        Trainer(embedder(), args, ROWS, evaluator=evaluator)
    trainer = Trainer(embedder(), args, ROWS)
    with pytest.raises(SettingsError, match="nothing to measure"):
        trainer.evaluate()


@pytest.mark.parametrize("different", [1, 0])
def test_batches_of_equal_scores_teach_nothing_but_the_next_may(different, tmp_path):
    """CoSENT orders pairs by their scores: most batches here have nothing to order."""
    rows = [
        {"sentence1": a, "sentence2": b, "score": 0.5 + 0.5 * different * (i == 0)}
        for i, (a, b) in enumerate(PAIRS)
    ]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        use_cpu=True,
        save_strategy="no",
        seed=next(seed for seed in range(9) if not starts_with_the_first(rows, seed)),
    )
    trainer = Trainer(embedder(), args, rows, loss="cosent")
    if different:
        assert trainer.train().global_step == 4
        return
    with pytest.raises(PolyvecError, match="Does the loss have anything to compare"):
        trainer.train()


def starts_with_the_first(rows, seed):
    from polyvec.data.training.batches import Batches
    from polyvec.data.training.mixing import Mixing
    from polyvec.train.front import training_data

    batches = Batches(training_data(rows, seed), 2, Mixing(), seed=seed)
    return rows[0]["sentence1"] in [row.query for row in batches.rows(0, 0)]


def test_labels_beyond_the_number_of_labels():
    loss = SoftmaxNLI(4, num_labels=2)
    batch = Compared.pairs(torch.eye(4), torch.eye(4), label_B=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(DataError, match="a row has the label 2, expected 0 to 1; set num_labels"):
        loss(batch)


def test_scores_that_no_cosine_reaches():
    batch = Compared.pairs(torch.eye(2), torch.eye(2), score_B=torch.tensor([0.5, 4.5]))
    with pytest.raises(DataError, match=r"score 4\.5, which no cosine reaches"):
        mse_score(batch)


def test_a_field_of_columns_that_is_not_read(tmp_path, capsys):
    recipe = write_recipe(tmp_path, "")
    columns = '.jsonl", columns = { anchr = "positive", positive = "positive" }'
    recipe.write_text(recipe.read_text().replace('.jsonl"', columns))
    assert train(recipe)[0] == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "columns names a field 'anchr', which this form does not read" in error
    assert "Did you mean 'anchor'?" in error


def test_a_null_is_said_to_be_one(tmp_path, capsys):
    recipe = write_recipe(tmp_path, "")
    rows = [*ROWS[:3], {"anchor": "x", "positive": None}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert train(recipe)[0] == 2
    assert "pairs.jsonl:4: 'positive' is null" in capsys.readouterr().err


def test_a_guide_that_no_loss_reads_does_nothing(tmp_path, tiny_bert):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, guide=str(tiny_bert))
    with pytest.raises(SettingsError, match="guide does nothing: no loss needs it"):
        Trainer(embedder(), args, ROWS)


def test_a_data_frame_is_named():
    frame = pandas.DataFrame(ROWS)
    args = TrainingArguments("unused", max_steps=1, use_cpu=True)
    with pytest.raises(DataError, match=r"is a DataFrame; pass its .to_dict\('records'\)"):
        Trainer(embedder(), args, frame)
    assert len(Trainer(embedder(), args, frame.to_dict("records")).data) == len(ROWS)
