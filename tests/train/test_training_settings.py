"""Settings of a run: from the command line, checked before weights load, told when they cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import checkpoint
from toy_run import PAIRS, write_recipe

from polyvec import Embedder, Trainer, TrainingArguments, load_recipe
from polyvec.cli import main
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.errors import DataError, PolyvecError, SettingsError, TruncationWarning
from polyvec.recipe import read_recipe
from polyvec.storage.files import held
from polyvec.train.sections import STAGES

ROWS = [{"anchor": a, "positive": b} for a, b in PAIRS]
LORA = 'adapter = { kind = "lora", dropout = 0.0 }\n'


def train(recipe, *more):
    output = recipe.parent / "run"
    return main(["train", str(recipe), "-o", str(output), *more]), output


def embedder():
    return Embedder.from_pretrained(checkpoint("meta-llama/"), pooling="mean", device="cpu")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("dropout = 1.0", "[stage 1]: dropout 1.0 is not at least 0 and less than 1"),
        ("attention_dropout = -0.1", "attention_dropout -0.1 is not at least 0 and less than 1"),
        ("bf16 = true\nfp16 = true", "bf16 and fp16 are both true"),
        ("lr_scheduler_type = 'linaer'", "'linaer' is not known. Did you mean 'linear'?"),
        ("trainer = { save_step = 2 }", "Did you mean 'save_steps'?"),
        ("trainer = { report_to = 'tensorbord' }", "tensorbord is not supported"),
        ("adapter = { kind = 'lroa' }", "Did you mean 'lora'?"),
        ("adapter = { kind = 'lora', rnak = 4 }", "Did you mean 'rank'?"),
        ("adapter = { kind = 'lora', rank = 0 }", "adapter 'lora': rank is 0, expected 1 or more"),
        ("adapter = { kind = 'lora', alpha = 0 }", "alpha is 0, expected more than 0"),
        ("adapter = { kind = 'lora', dropout = 1.5 }", "dropout 1.5 is not at least 0 and less"),
        ("adapter = { kind = 'lora', model = 'x' }", "adapter 'lora' key 'model' is not known"),
        ("learning_rate = 0", "learning_rate is 0, so no weight would move"),
        ("losses = [{ kind = 'TripletLoss' }]", "docs/losses.md has polyvec's name"),
        ("losses = [{ kind = 'info_nec' }]", "Did you mean 'info_nce'?"),
        ("losses = [{ kind = 'info_nce', temprature = 1 }]", "Did you mean 'temperature'?"),
        ("mixing = { one_datset = true }", "Did you mean 'one_dataset'?"),
    ],
)
def test_what_needs_no_model_is_checked_before_it_loads(
    setting, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("polyvec.embed.compose.load_transformer", None)
    recipe = write_recipe(tmp_path, "")
    text = recipe.read_text()
    name = setting.partition(" ")[0]  # in place of the recipe's own
    kept = [line for line in text.splitlines() if not line.startswith(name)]
    recipe.write_text("\n".join([*kept, setting]))
    status, output = train(recipe)
    assert (status, output.exists()) == (2, False)
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (
            'kind = "scl"\ndata = [{ path = "nowhere.jsonl" }]',
            "data[0]: nowhere.jsonl: no such file or folder",
        ),
        ('kind = "prune"', "stage 'prune': set num_layers, or choose"),
        ('kind = "merge"\nothers = ["ucl "]', "'ucl ' is no folder and no earlier stage"),
        ('kind = "merge"\nothers = ["mntp"]\nweights = [1.0]', "1 weights for the embedder and 1"),
        (
            'kind = "scl"\nmatryoshka = { dimensions = [0, 8] }',
            "are not all between 1 and the size",
        ),
        ('kind = "scl"\nmatryoshka = { weights = [1.0] }', "neither dimensions nor layers"),
    ],
)
def test_mistakes_of_later_stages_are_found_first(stage, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("polyvec.embed.compose.load_transformer", None)
    assert train(write_recipe(tmp_path, f"[[stage]]\n{stage}\n"))[0] == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "[stage 2]" in error and words in error


# ---- section.key=value -----------------------------------------------------------------------


def stage(tmp_path, *overrides, text=""):
    return load_recipe(write_recipe(tmp_path, text), overrides)[STAGES][0]


def test_the_command_line_changes_settings_of_a_recipe(tmp_path):
    recipe = write_recipe(tmp_path, "")
    more = ("--scale", "full", "stage.0.max_steps=2", "stage.scl.trainer.logging_steps=1")
    status, output = train(recipe, "embedder.pooling=first", *more)
    assert status == 0
    stored = json.loads((output / "recipe.json").read_text())
    assert stored["recipe"]["stage"][0]["max_steps"] == 2
    assert stored["recipe"]["embedder"]["pooling"] == "first"
    assert "stage.0.max_steps=2" in stored["command"]
    done = json.loads((output / "stages" / "1-scl" / "final" / "done.json").read_text())
    assert done["steps"] == 2


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("stage.0.learning_rate=1e-4", "learning_rate", 1e-4),
        ("stage.0.losses=[{kind = 'cosent'}]", "losses", ({"kind": "cosent"},)),
        ("stage.0.losses.0.temperature=0.1", "losses", ({"kind": "info_nce", "temperature": 0.1},)),
        ("stage.0.losses.info_nce.weight=2.0", "losses", ({"kind": "info_nce", "weight": 2.0},)),
        ("stage.0.name=a name=b", "name", "a name=b"),
        ("stage.0.adapter.kind=lora", "adapter", {"kind": "lora"}),
    ],
)
def test_values_are_those_of_toml_and_places_may_be_deep(override, name, value, tmp_path):
    found = stage(tmp_path, override, text='losses = [{ kind = "info_nce" }]\n')
    assert getattr(found, name) == value


def test_a_setting_of_a_scale_does_not_hide_the_new_value(tmp_path):
    text = "max_steps = 100\n[stage.nano]\nmax_steps = 5\n[stage.nano.trainer]\nsave_steps = 5\n"
    recipe = write_recipe(tmp_path, text)
    overrides = ["stage.0.max_steps=2", "stage.0.trainer.save_steps=1"]
    for scale in ("full", "nano"):
        found = load_recipe(recipe, overrides).at(STAGES, scale)[0]
        assert (found.max_steps, found.trainer) == (2, {"save_steps": 1})
    (one,) = load_recipe(recipe, ["stage.0.nano.max_steps=7"]).at(STAGES, "nano")
    assert one.max_steps == 7


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.0.max_step=2", "key 'max_step' is not known. Did you mean 'max_steps'?"),
        ("stage.0.max_steps=two", "key 'max_steps' is 'two', not int"),
        ("stage.0.max_steps=2.5", "key 'max_steps' is 2.5, not int"),
        ("stage.1.max_steps=2", "[[stage]]: no entry '1'; the first of 1 is 0"),
        ("stage.ucl.max_steps=2", "[[stage]]: no entry 'ucl'"),
        ("stage.0=2", "Expected stage.0.key=value"),
        ("stge.0.max_steps=2", "section [stge] is not known. Did you mean 'stage'?"),
        ("stage.0.batch_size.x=2", "stage.batch_size is 4, not a table"),
        ("embedder.poling=mean", "key 'poling' is not known. Did you mean 'pooling'?"),
        ("embedder.pooling=men", "'men' is not known. Did you mean 'mean'?"),
        ("stage.0.learning_rate=-1.0", "learning_rate is -1.0, expected a number of at least 0"),
        ("stage.0.kind=scll", "stage 'scll' is not known. Did you mean 'scl'?"),
        ("stage.0.losses=[{kind='cosnet'}]", "loss 'cosnet' is not known. Did you mean 'cosent'?"),
        ("stage.0.data.0.path=nowhere.jsonl", "nowhere.jsonl: no such file or folder"),
        ("stage.0.dynamic_negatives={every=0}", "every is 0, expected 1"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_a_wrong_override_is_one_line_that_quotes_it(override, words, dry, tmp_path, capsys):
    """Whether the file, the model or the stage is what it does not fit."""
    more = ["--dry-run"] if dry else []
    status, output = train(write_recipe(tmp_path, ""), override, *more)
    assert (status, (output / "model").exists()) == (2, False)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"polyvec: override {override!r}: ")
    assert words in error


def test_settings_that_do_not_go_together_are_quoted_together(tmp_path, capsys, monkeypatch):
    both = ["stage.0.bf16=true", "stage.0.fp16=true"]
    recipe = write_recipe(tmp_path, "")
    read = []
    monkeypatch.setattr(
        "polyvec.recipe.read_recipe", lambda *each: read.append(1) or read_recipe(*each)
    )
    assert train(recipe, "embedder.pooling=mean", *both)[0] == 2
    (error,) = capsys.readouterr().err.splitlines()
    told = "overrides 'stage.0.bf16=true', 'stage.0.fp16=true': "
    assert error == f"polyvec: {told}{recipe}: [stage 1]: bf16 and fp16 are both true; choose one"
    assert len(read) == 1


def test_a_mistake_of_the_file_is_not_laid_to_an_override(tmp_path, capsys):
    recipe = write_recipe(tmp_path, "max_step = 2\n")
    assert train(recipe, "embedder.pooling=mean")[0] == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"polyvec: {recipe}: [stage 1] key 'max_step' is not known")


def test_words_that_are_no_overrides_are_not_taken(tmp_path, capsys):
    assert train(write_recipe(tmp_path, ""), "max_steps=2")[0] == 2
    assert "section.key=value" in capsys.readouterr().err
    assert train(write_recipe(tmp_path, ""), "--dry-run", "more")[0] == 2
    assert "unrecognized arguments: more" in capsys.readouterr().err


# ---- two views, cut texts ---------------------------------------------------------------------


def unsupervised(tmp_path, more):
    recipe = write_recipe(tmp_path, f"max_steps = 1\n{more}")
    recipe.write_text(recipe.read_text().replace('kind = "scl"', 'kind = "ucl"'))
    return recipe


@pytest.mark.parametrize("more", ["", LORA, "attention_dropout = 0.0\n"])
def test_two_equal_views_are_an_error_that_names_the_setting(more, tmp_path, capsys):
    recipe = unsupervised(tmp_path, more)
    for option in ((), ("--dry-run",)):
        assert train(recipe, *option)[0] == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "[stage 1]: no dropout is active, so both vectors of a text would be" in error
        assert "Set attention_dropout" in error


@pytest.mark.parametrize(
    "more", ["attention_dropout = 0.1\n", LORA.replace("0.0", "0.1")], ids=["attention", "adapter"]
)
def test_dropout_anywhere_makes_two_views(more, tmp_path):
    assert train(unsupervised(tmp_path, more))[0] == 0


def test_views_in_python(tmp_path):
    args = TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no", kind="ucl"
    )
    with pytest.raises(SettingsError, match="Trainer: no dropout is active"):
        Trainer(embedder(), args, ROWS).train()


@pytest.mark.parametrize(
    ("kind", "count"),
    [("scl", "of 16"), ("ucl", "of 8"), ("diffcse", "of 8"), ("ntp", "of 8"), ("mntp", "of 8")],
)
def test_texts_that_were_cut_are_counted_once_a_stage(kind, count, tmp_path, capsys):
    recipe = write_recipe(tmp_path, f"max_length = {3 + (kind == 'ntp')}\n")
    recipe.write_text(recipe.read_text().replace('kind = "scl"', f'kind = "{kind}"'))
    if kind == "mntp":
        recipe.write_text(
            recipe.read_text().replace('"mean"\n', '"mean"\nattention = "bidirectional"\n')
        )
    own_positive = kind in ("ucl", "diffcse")
    if own_positive:
        more = 'mask = "<mask>"\n' if kind == "diffcse" else ""
        recipe.write_text(recipe.read_text() + "attention_dropout = 0.1\n" + more)
    model = load_recipe(recipe).build()
    texts = [text for pair in PAIRS for text in (pair[:1] if own_positive else pair)]
    lengths = [len(model.tokenizer(text).input_ids) for text in texts]
    assert train(recipe)[0] == 0
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "were cut" in each]
    assert line.startswith(f"{kind}: ")
    assert f"{count} texts read" in line
    if kind == "scl" or own_positive:
        assert line.startswith(f"{kind}: {sum(n > 3 for n in lengths)} {count} ")
    assert train(recipe, "--dry-run")[0] == 0
    assert "texts are cut (max_length)" in capsys.readouterr().out


def test_nothing_is_said_where_nothing_is_cut(tmp_path, capsys):
    assert train(write_recipe(tmp_path, "max_steps = 1\n"))[0] == 0
    assert "cut" not in capsys.readouterr().err


# ---- the Python trainer -----------------------------------------------------------------------


def test_cut_texts_in_python(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no")
    args.max_length = 4
    with pytest.warns(TruncationWarning, match=r"Trainer: \d+ of 16 texts read"):
        Trainer(embedder(), args, ROWS).train()
    args.max_length = 2
    with pytest.warns(TruncationWarning, match=r"Trainer: 4 of 4 texts read \(100 %\)"):
        Trainer(embedder(), args, [{"a": f"a text {i}", "b": f"a reply {i}"} for i in "12"]).train()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"per_device_train_batch_size": 0}, "Trainer: per_device_train_batch_size is 0"),
        ({"gradient_accumulation_steps": 0}, "Trainer: gradient_accumulation_steps is 0"),
        (
            {"mixing": {"smallest": 9}},
            'lower per_device_train_batch_size, or set mixing={"drop_last": False}',
        ),
        ({"loss": {"kind": "info_nec"}}, "Trainer loss: loss 'info_nec' is not known"),
        ({"loss": {"kind": "guided_info_nce"}}, "Trainer"),
        ({"loss": ["info_nce", "csr"]}, "Trainer loss"),
        ({"loss": "recovery"}, "Trainer: a loss compares vectors with those before a projection"),
        ({"loss": "kd_mse"}, "Trainer: losses need vectors of a teacher"),
        ({"kind": "distill"}, "Trainer: distillation needs losses"),
    ],
)
def test_errors_name_the_arguments_that_were_written(more, words, tmp_path):
    loss = more.pop("loss", None)
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no", **more)
    with pytest.raises(PolyvecError) as caught:
        Trainer(embedder(), args, ROWS, loss=loss).train()
    assert words in str(caught.value)
    assert "[[stage]]" not in str(caught.value)


def test_names_of_the_users_own_are_left_alone(tmp_path):
    """A data set may be called as a setting is."""
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no")
    with pytest.raises(DataError, match="Trainer: batch_size is str, expected a list"):
        Trainer(embedder(), args, {"batch_size": "text"})


# ---- resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"score": 0.5}, {"label": 1}, {"teacher_scores": (0.1, 0.2)}, {"instruction": "x"},
        {"document_instruction": "x"}, {"symmetric": True}, {"in_batch": False}, {"leading": 1},
        {"turns": ("q", "a")}, {"matches": False}, {"negatives": ("n", "m")},
        {"positives": ("p", "n"), "negatives": ()}, {"query": "z"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_the_mark_of_the_data_covers_every_field_that_matters(change):
    fields = {"query": "q", "positives": ("p",), "negatives": ("n",)}

    def mark(**more):
        rows = [TrainingRow("a", ("b",)), TrainingRow(**{**fields, **more}, place="x.jsonl:1")]
        return TrainingData([TrainingSet("pairs", rows)]).digests()

    assert mark() != mark(**change)
    assert mark() == mark(dataset="elsewhere")


def test_a_resumed_run_names_the_setting_that_was_edited(tmp_path, capsys):
    recipe = write_recipe(tmp_path, "max_steps = 1\n")
    assert train(recipe)[0] == 0
    capsys.readouterr()
    assert train(recipe, "--resume", "stage.0.learning_rate=0.5")[0] == 2
    error = capsys.readouterr().err
    assert "other settings than this recipe: stage.0.learning_rate is 0.5, was 0.001." in error
    assert train(recipe, "--resume", "stage.0.mixing.temperature=0.5")[0] == 2
    assert "stage.0.mixing.temperature is 0.5, was not set." in capsys.readouterr().err
    assert train(recipe, "--resume")[0] == 0


def test_an_output_that_is_a_file_is_said_to_be_one(tmp_path, capsys):
    recipe = write_recipe(tmp_path, "")
    (tmp_path / "run").write_text("a file")
    assert train(recipe)[0] == 2
    assert f"{tmp_path / 'run'}: a file, not a folder" in capsys.readouterr().err


SECOND = """
[[stage]]
kind = "scl"
name = "second"
max_steps = 1
data = [{ path = "FOLDER/pairs.jsonl" }]
"""


@pytest.mark.medium
def test_a_mistake_in_a_later_stage_does_not_cost_the_first(tmp_path, capsys):
    """A stage that has not trained may be corrected, taken out or added; one that has may not."""
    wrong = SECOND.replace("FOLDER", str(tmp_path)) + "mining = { num_negatives = 1 }\n"
    wrong += 'losses = [{ kind = "margin_mse" }]\n'
    recipe = write_recipe(tmp_path, "max_steps = 1\n" + wrong)
    output = tmp_path / "run"
    assert train(recipe)[0] == 2
    assert "margin_mse" in capsys.readouterr().err
    weights = output / "stages" / "1-scl" / "final" / "model.safetensors"
    mined, written = output / "stages" / "2-second" / "mined" / "0.jsonl", weights.stat().st_mtime
    assert mined.is_file()
    assert train(recipe, "--resume", "stage.0.learning_rate=0.5")[0] == 2
    assert "stage.0.learning_rate is 0.5" in capsys.readouterr().err
    write_recipe(tmp_path, "max_steps = 1\n" + wrong.replace("margin_mse", "triplet"))
    stored = mined.stat().st_mtime
    assert train(recipe, "--resume")[0] == 0
    assert (weights.stat().st_mtime, mined.stat().st_mtime) == (written, stored), "done once"
    kept = json.loads((output / "recipe.json").read_text())["recipe"]["stage"]
    assert kept[1]["losses"] == [{"kind": "triplet"}]
    # Now both have trained.
    assert train(recipe, "--resume", "stage.second.losses=[]")[0] == 2
    assert "stage.1.losses" in capsys.readouterr().err


@pytest.mark.medium
def test_negatives_that_were_mined_otherwise_are_mined_again(tmp_path):
    mining = 'losses = [{ kind = "margin_mse" }]\nmining = { num_negatives = 2 }\n'
    recipe = write_recipe(tmp_path, mining)
    assert train(recipe)[0] == 2
    write_recipe(tmp_path, "max_steps = 1\nmining = { num_negatives = 1 }\n")
    assert train(recipe, "--resume")[0] == 0
    rows = (tmp_path / "run/stages/1-scl/mined/0.jsonl").read_text().splitlines()
    assert [len(json.loads(row)["negatives"]) for row in rows] == [1] * len(rows)


def test_a_folder_that_a_process_trains_into_is_refused(tmp_path, capsys):
    recipe = write_recipe(tmp_path, "max_steps = 1\n")
    code = (
        "import sys, time; from pathlib import Path; from polyvec.storage.files import held\n"
        "with held(Path(sys.argv[1]), 'training'):\n    print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"held\n"
        assert train(recipe)[0] == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{tmp_path / 'run'}: another process is training into this folder" in error
        other.kill()
    assert train(recipe)[0] == 0  # who is killed holds nothing


def test_the_python_trainer_refuses_it_too(tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True)
    trainer = Trainer(embedder(), args, ROWS)
    with held(tmp_path, "training"), pytest.raises(DataError, match="another process is training"):
        trainer.train()
    assert trainer.train().global_step == 1


def test_a_refused_run_leaves_nothing_behind(tmp_path):
    recipe = write_recipe(tmp_path, "max_steps = 1\n")
    folder = tmp_path / "run"
    assert train(recipe, "--resume")[0] == 2
    assert not folder.exists()
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    assert train(recipe)[0] == 2
    assert [path.name for path in Path(folder).iterdir()] == ["thesis.tex"]
