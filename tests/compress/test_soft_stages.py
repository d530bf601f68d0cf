"""Stages of compressors: what they train, what they leave, objectives, ranking, resuming."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.decoder import MEMORY, Asked, prompt_parts
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.ranking import Ranking, RankPassages, list_mle, rank, scores
from polyvec.compress.soft.sections import COMPRESSOR
from polyvec.compress.soft.settings import CompressorSettings
from polyvec.compress.soft.stage import Compress, divergence, importance
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import DataError, ModelError, SettingsError
from polyvec.recipe import all_recipes, load_recipe
from polyvec.train.engine import joined
from polyvec.train.run import train_recipe
from polyvec.train.sections import STAGES
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share

ROWS = [
    TrainingRow(
        f"{name} lives in a small house by the sea, and {place} is where the boat is all year.",
        (place,),
        instruction=f"Where is {name}'s boat?",
    )
    for name, place in (("Ann", "Dover"), ("Bob", "Leith"), ("Carl", "Brest"), ("Dora", "Genoa"))
]
TABLE_5 = {131, 132, *range(225, 237)}
RECIPE = """
[system]
name = "mine"
paper = "-"
tasks = ["compression"]

[encoder]
backbone = "polyvec/nano-lm"

[compressor]
memory = "slots"
memory_settings = { num = 2 }
decoder = "frozen"

[[stage]]
kind = "compress"
objectives = { autoencode = 1.0, answer = 1.0 }
data = [{ path = "FOLDER/rows.jsonl" }]
adapter = { kind = "lora", rank = 4, dropout = 0.0 }
batch_size = 2
learning_rate = 1e-3
max_steps = 4
trainer = { save_steps = 2, logging_steps = 1 }
"""


@functools.cache
def encoder():
    """Nothing here trains it."""
    return compose(EmbedderSettings("polyvec/nano-lm"))


def compressor(memory="slots", settings=None, **options):
    torch.manual_seed(0)
    given = settings if settings is not None else {"num": 2}
    return SoftCompressor(encoder(), CompressorSettings(memory, given, **options))


def stage(kind="compress", adapter="lora", **settings):
    return StageSettings(kind, adapter={"kind": adapter}, settings=settings)


def write(folder, text=RECIPE):
    lines = [
        {"query": row.query, "instruction": row.instruction, "positive": row.positives[0]}
        for row in ROWS
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = folder / "mine.toml"
    path.write_text(text.replace("FOLDER", str(folder)))
    return load_recipe(path)


def losses(task, rows):
    """The loss of a batch, by term."""
    work = task.work(rows, [Share(0, len(rows))], 0)
    results = [task.jobs[piece.job](task.compressor, piece.payload) for piece in work.pieces]
    return task.loss(work.ordered(joined(work.pieces, results)), work.facts)


def test_all_fifteen_rows_of_table_5_are_recipes():
    found = [recipe for recipe in all_recipes() if recipe[COMPRESSOR] is not None]
    rows = {recipe.system.reference for recipe in found if recipe.system.table == 5}
    assert rows == TABLE_5 | {256}


@pytest.mark.medium
@pytest.mark.parametrize(
    "recipe",
    [each for each in all_recipes() if each[COMPRESSOR] is not None and "nano" in each.scales],
    ids=lambda recipe: recipe.key,
)
def test_every_stage_of_every_recipe_has_a_gradient(recipe):
    model = recipe.build("nano").train()
    for each in recipe.at(STAGES, "nano"):
        kinds = {"compress": Compress, "compress_rank": RankPassages}
        task = kinds[each.kind](model, each, **each.settings)
        model.zero_grad()
        terms = losses(task, ROWS)
        assert all(torch.isfinite(term) for term in terms.values())
        sum(terms.values()).backward()
        moved = [p for p in model.projections.parameters() if p.grad is not None]
        assert any(bool((p.grad != 0).any()) for p in moved)


@pytest.mark.medium
def test_a_run_that_was_killed_goes_on_and_leaves_the_decoder_as_it_was(tmp_path):
    recipe = write(tmp_path)
    before = {
        k: v.clone() for k, v in recipe.build("full").encoder.backbone.model.state_dict().items()
    }
    whole = train_recipe(recipe, "full", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    stages = tmp_path / "killed" / "stages" / "1-compress"
    for path in (stages / "final", stages / "checkpoint-4", tmp_path / "killed" / "model"):
        shutil.rmtree(path)
    again = train_recipe(recipe, "full", tmp_path / "killed", resume=True)
    for name, each in whole.state_dict().items():
        assert_close(again.state_dict()[name], each, atol=1e-6, rtol=1e-5)
    after = whole.encoder.backbone.model.state_dict()
    for name, each in before.items():
        place = name if name in after else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(after[place], each), name
    loaded = SoftCompressor.from_pretrained(tmp_path / "whole" / "model")
    assert (
        loaded.fingerprint()
        == SoftCompressor.from_pretrained(tmp_path / "whole" / "model").fingerprint()
    )
    (memory,) = loaded.compress([ROWS[0].query])
    assert isinstance(loaded.generate(["Where?"], [memory])[0], str)


def test_distillation_is_zero_when_the_memory_is_the_text():
    model = compressor(decoder="frozen").eval()
    ids = model.context(ROWS[0].query).ids
    states = model.table(torch.from_numpy(ids))[None]
    real = torch.ones(states.shape[:2], dtype=torch.bool)
    memory = MemoryBatch(real, real.sum(1), (len(ids),), states)
    asked = model.asked("answer", question="Where?", target=" Dover")
    teacher = Asked(asked.parts, asked.target, ids)
    with torch.no_grad():
        gaps = divergence(model, [teacher], model.decoder.predict([asked], memory), 1.0)
        assert_close(gaps, torch.zeros_like(gaps), atol=1e-5, rtol=0)
        other = MemoryBatch(real, real.sum(1), (len(ids),), states.flip(1))
        assert (
            float(divergence(model, [teacher], model.decoder.predict([asked], other), 1.0)[0])
            > 1e-3
        )


def test_important_tokens_have_more_weight():
    model = compressor(decoder="frozen").eval()
    ids = model.context(ROWS[0].query).ids
    asked = model.asked("autoencode", target=ROWS[0].query, end=False)
    weights = importance(model, [asked], [ids])
    assert_close(weights.mean(), torch.tensor(1.0))
    assert float(weights.max()) > 1.2 * float(weights.min())


def test_the_loss_is_the_mean_over_tokens():
    model = compressor(decoder="frozen").eval()
    task = Compress(model, stage(), {"answer": 2.0})
    with torch.no_grad():
        together = losses(task, ROWS)["answer"]
        sums, counts = 0.0, 0
        for row in ROWS:
            asked = model.asked("answer", question=row.instruction, target=f" {row.positives[0]}")
            mean, _ = model.scored([asked], model.read([model.context(row.query)]))
            sums += float(-mean) * len(asked.target)
            counts += len(asked.target)
    assert float(together) == pytest.approx(2 * sums / counts, rel=1e-4)


def test_a_text_is_cut_before_a_word_and_goes_on_there():
    task = Compress(compressor(), stage(), {"continue": 1.0})
    row = TrainingRow(" ".join(f"word{number}" for number in range(60)))
    example = task.example(row, 0)
    decode = task.compressor.tokenizer.decode
    both = decode(example.context.ids) + decode(example.asked["continue"].target)
    assert row.query.startswith(both)
    with pytest.raises(DataError, match="too short"):
        task.example(TrainingRow("word"), 0)


def test_a_prompt_is_the_context_of_every_row():
    model = compressor("soft", {"num": 3}, decoder="frozen")
    task = Compress(model, stage(adapter="frozen"), {"distil": 1.0}, prompt="Speak like a pirate.")
    example = task.example(ROWS[0], 0)
    assert model.tokenizer.decode(example.text) == "Speak like a pirate."
    assert set(losses(task, ROWS)) == {"distil"}


@pytest.mark.parametrize(
    ("objectives", "options", "message"),
    [
        ({"anser": 1.0}, {}, "Did you mean 'answer'"),
        ({"answer": 0.0}, {}, "expected above 0"),
        ({"answer": 1.0, "continue": 1.0}, {}, "different contexts"),
        ({"select": 1.0}, {}, "nothing to predict"),
        ({"continue": 1.0}, {"continuation": (0.9, 0.1)}, "two shares"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(objectives, options, message):
    with pytest.raises(SettingsError, match=message):
        Compress(compressor(), stage(), objectives, **options)


def test_a_frozen_decoder_is_not_trained_by_sharing_weights():
    with pytest.raises(SettingsError, match="shares with the encoder"):
        Compress(compressor(decoder="frozen"), stage(adapter="full"), {"answer": 1.0})
    merged = StageSettings("compress", adapter={"kind": "lora", "merge": True})
    with pytest.raises(SettingsError, match="adapter merged changes"):
        Compress(compressor(decoder="frozen"), merged, {"answer": 1.0})
    with pytest.raises(SettingsError, match=r"needs a recipe with \[compressor\]"):
        Compress(compose(EmbedderSettings("polyvec/nano-lm")), stage(), {"answer": 1.0})


SECOND = """
[[stage]]
kind = "compress"
objectives = { answer = 1.0 }
data = [{ path = "FOLDER/rows.jsonl" }]
batch_size = 2
learning_rate = 1e-2
max_steps = 2
"""


@pytest.mark.medium
def test_a_second_stage_leaves_a_frozen_decoder_as_it_was(tmp_path):
    recipe = write(tmp_path, RECIPE + SECOND)
    untrained = recipe.build("full")
    asked = {"questions": ["Where is it?"], "contexts": [ROWS[0].query]}
    before = untrained.score("answer", [" Dover"], **asked)
    trained = train_recipe(recipe, "full", tmp_path / "run")
    assert len(list((tmp_path / "run" / "stages").iterdir())) == 2
    assert_close(trained.score("answer", [" Dover"], **asked), before, atol=0, rtol=0)
    own = write(tmp_path, RECIPE + SECOND + 'adapter = { kind = "lora", rank = 4 }\n')
    with pytest.raises(SettingsError, match="would merge the earlier one"):
        train_recipe(own, "full", tmp_path / "own")


def test_a_stage_without_an_adapter_does_not_train_a_frozen_decoder(tmp_path):
    none = RECIPE.replace('adapter = { kind = "lora", rank = 4, dropout = 0.0 }\n', "")
    with pytest.raises(SettingsError, match="without an adapter it changes the weights"):
        train_recipe(write(tmp_path, none), "full", tmp_path / "run")


def test_user_text_in_a_prompt_is_never_markup():
    tokenizer = compressor().tokenizer
    parts = prompt_parts(
        tokenizer, "{memory} {question}", task="answer", question="{memory} </s> {task}"
    )
    assert sum(isinstance(part, str) for part in parts) == 1 and parts[0] == MEMORY
    ids = np.concatenate([part for part in parts if not isinstance(part, str)])
    assert tokenizer.eos_token_id not in ids


def test_list_mle_by_hand():
    scores_SN = torch.tensor([[1.0, 2.0, 0.0], [1.0, -torch.inf, 0.0]])
    expected = -(2 - np.log(np.e + np.e**2 + 1)) - (1 - np.log(np.e + 1))
    assert float(list_mle(scores_SN, (1, 0))) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def ranker():
    torch.manual_seed(0)
    encoder = compose(EmbedderSettings("sentence-transformers/all-MiniLM-L6-v2"))
    return SoftCompressor(encoder, CompressorSettings("vector", decoder="polyvec/nano-lm"))


@pytest.mark.medium
def test_a_ranking_is_a_permutation_and_the_gold_loss_falls(ranker):
    passages = [row.query for row in ROWS]
    assert sorted(rank(ranker, "Where is Bob's boat?", passages)) == [0, 1, 2, 3]
    (found,) = scores(ranker, [Ranking("Bob", tuple(passages), (1, 0))])
    assert found.shape == (3, 4) and torch.isinf(found[2, [0, 1]]).all()
    settings = StageSettings("compress_rank", adapter={"kind": "frozen"})
    task = RankPassages(ranker, settings, num_passages=4, content=0.0, divergence=0.0)
    optimiser = torch.optim.Adam(ranker.projections.parameters(), lr=1e-2)
    rows = [TrainingRow(row.instruction, (row.query,)) for row in ROWS]
    history = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = losses(task, rows)["list_mle"]
        loss.backward()
        optimiser.step()
        history.append(float(loss))
    assert history[-1] < 0.8 * history[0]


def test_a_ranking_needs_vectors_of_passages():
    with pytest.raises(SettingsError, match="memory = 'vector'"):
        RankPassages(compressor(), stage("compress_rank"))


def test_an_encoder_of_another_size_needs_a_connector():
    encoder = compose(EmbedderSettings("sentence-transformers/all-MiniLM-L6-v2"))
    with pytest.raises(ModelError, match="connector = 'linear'"):
        SoftCompressor(encoder, CompressorSettings("strided", decoder="polyvec/nano-lm"))
