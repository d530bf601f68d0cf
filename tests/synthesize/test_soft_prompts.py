"""The step "soft_prompt": what it tunes, chooses and writes."""

import json

import numpy as np
import pytest
import torch

from polyvec.errors import DataError, ModelError, SettingsError
from polyvec.llm.local import LocalLanguageModel
from polyvec.llm.soft_prompt import NAME, begun_as, with_soft_prompt
from polyvec.synthesize.run import build_steps
from polyvec.synthesize.sections import StepSettings
from polyvec.synthesize.soft_prompts import Example, Reader, Tuning, tune
from polyvec.synthesize.tuned import Checkpoint

WORDS = ["river", "house", "cat", "road", "cloud", "stone", "bread", "lamp"]
SENTENCE = "The old {} is near the market place."


def nano():
    return LocalLanguageModel.load("polyvec/nano-lm")


def examples(model, words):
    end = model.tokens.tokenizer.eos_token_id
    return [
        Example(
            model.tokens.of_prompt(SENTENCE.format(word) + " \n Relevant Query: ", "test"),
            (*model.tokens.of_text("where is it now"), end),
        )
        for word in words
    ]


@pytest.mark.medium
def test_only_the_soft_prompt_changes_and_its_loss_falls(tmp_path):
    model = nano()
    before = {name: each.clone() for name, each in model.model.lm.state_dict().items()}
    reader, begun = Reader(model), begun_as(model, "please generate", 4)
    held_out = examples(model, WORDS[6:])
    settings = Tuning(learning_rate=0.1, epochs=4, batch_size=3)
    checkpoint = Checkpoint(tmp_path / "c", "k")
    tuned = tune(reader, begun, examples(model, WORDS[:6]), held_out, settings, checkpoint)
    assert all(torch.equal(before[n], each) for n, each in model.model.lm.state_dict().items())
    assert all(each.requires_grad for each in model.model.lm.parameters())
    assert tuned.curve[-1][1] < 0.8 * reader.mean_loss(begun, held_out, 2)
    assert reader.mean_loss(tuned.prompt_PD, held_out, 2) == pytest.approx(
        min(b for _, b in tuned.curve), abs=1e-5
    )


@pytest.mark.medium
def test_a_tuning_that_was_interrupted_ends_with_the_same_vectors(tmp_path):
    model = nano()
    reader, begun = Reader(model), begun_as(model, "please", 3)
    asked = examples(model, WORDS[:4]), examples(model, WORDS[4:6])
    settings = Tuning(learning_rate=0.05, epochs=3, batch_size=2)
    whole = tune(reader, begun, *asked, settings, Checkpoint(tmp_path / "whole", "k"))

    def stop(epoch, *losses):
        if epoch == 2:
            raise KeyboardInterrupt

    checkpoint = Checkpoint(tmp_path / "cut", "k")
    with pytest.raises(KeyboardInterrupt):
        tune(reader, begun, *asked, settings, checkpoint, say=stop)
    again = tune(reader, begun, *asked, settings, checkpoint)
    assert torch.equal(whole.prompt_PD, again.prompt_PD) and whole.curve == again.curve
    assert Checkpoint(tmp_path / "cut", "other settings").load() is None
    (tmp_path / "cut").write_bytes(b"damaged")
    with pytest.raises(DataError, match="cut is damaged; remove it"):
        checkpoint.load()


def test_the_model_reads_the_soft_prompt_as_it_was_tuned():
    """Its log-probabilities, by another path (kept keys, tokens of their own), are the tuner's."""
    model, torch_seed = nano(), torch.Generator().manual_seed(0)
    size = model.model.lm.get_input_embeddings().weight.shape[1]
    prompt_PD = 0.1 * torch.randn(3, size, generator=torch_seed)
    (example,) = examples(model, ["river"])
    target = model.tokens.of_text(" where is it now")
    expected = Reader(model).mean_loss(prompt_PD, [Example(example.ids, target)], 1)
    identity, num_logits = model.identity, model.model.num_logits
    made = with_soft_prompt(model, prompt_PD)
    asked = SENTENCE.format("river") + " \n Relevant Query: "
    (found,) = made.logprobs([asked], [" where is it now"])
    assert -float(np.mean(found)) == pytest.approx(expected, abs=1e-4)
    assert made.identity != identity and made.model.num_logits == num_logits
    assert NAME.format(0) not in made.generate([asked], max_new_tokens=4)[0].text
    with pytest.raises(ModelError, match="does not fit"):
        with_soft_prompt(nano(), torch.zeros(2, 7))


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"query": f"where is the {w}?", "pos": [SENTENCE.format(w)]} for w in WORDS]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"path": str(path)}


def step(data, **more):
    tuning = {"learning_rate": 0.05, "epochs": 1, "batch_size": 4}
    base = {"num_tokens": 3, "num_pairs": 5, "num_held_out": 3, "num_demonstrations": 1}
    return {"kind": "soft_prompt", "data": data, "groups": 3, "tuning": tuning, **base, **more}


@pytest.mark.medium
def test_the_steps_behind_it_write_with_the_tuned_model(runs, pairs):
    texts = ["The bridge is made of iron.", "Snow falls on the mountain."]
    ask = {"kind": "generate", "prompt": "sptar", "model": "run:soft-prompt", "stop": []}
    steps = [{"kind": "texts"}, step(pairs), {**ask, "keep_cut": True, "max_new_tokens": 4}]
    made = runs(steps, texts, nano())
    (note,) = [r.notes for r in made.reports if r.kind == "soft_prompt"]
    assert "without a soft prompt" in note["held-out loss, nats a token"]
    shown = {row.meta["shown"] for row in made.rows}
    assert len(shown) == 1 and "Relevant Query: where is the" in shown.pop()
    assert not list((runs.folder / "out/models").glob("*.ckpt"))
    # What is there is not made again; a model that is gone is.
    folder = runs.folder / "out/models/soft-prompt"
    before = (folder / "soft_prompt.safetensors").stat().st_mtime_ns
    runs(steps, texts, nano())
    assert (folder / "soft_prompt.safetensors").stat().st_mtime_ns == before
    (folder / "made.json").unlink()
    (folder / "soft_prompt.safetensors").unlink()
    assert runs(steps, texts, nano()).rows == made.rows
    assert (folder / "made.json").is_file()


def test_mistakes_are_one_line(runs, pairs, tmp_path):
    texts = [{"kind": "texts"}]
    with pytest.raises(SettingsError, match=r"tunes a model of this machine, not function:rule"):
        runs([*texts, step(pairs)], ["A text."])
    with pytest.raises(SettingsError, match="num_demonstrations 5 less than num_pairs 5"):
        runs([*texts, step(pairs, num_demonstrations=5)], ["A text."])
    with pytest.raises(SettingsError, match="needs the slots 'shown' and 'document'"):
        runs([*texts, step(pairs, prompt="inpars")], ["A text."])
    with pytest.raises(SettingsError, match=r"name '\.\./x' is not letters"):
        runs([*texts, step(pairs, name="../x")], ["A text."])
    (tmp_path / "few.jsonl").write_text('{"query": "a", "pos": ["b"]}')
    with pytest.raises(DataError, match="1 gold pairs, 3 are needed"):
        runs([*texts, step({"path": str(tmp_path / "few.jsonl")})], ["A text."], nano())
    unknown = {"kind": "generate", "prompt": "inpars", "model": "run:soft"}
    with pytest.raises(SettingsError, match="no step before makes 'run:soft'"):
        runs([*texts, unknown], ["A text."], output="other")
    settings = [StepSettings(each.pop("kind"), each) for each in (step(pairs), step(pairs))]
    with pytest.raises(SettingsError, match="two steps make run:soft-prompt"):
        build_steps(settings, "r")
