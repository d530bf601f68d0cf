"""The inverter: prefixes before both kinds of language model, stages, re-ranking, correction."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from word_victim import SEEN, TEXTS, UNSEEN, Words

from polyvec.data.words import hash64
from polyvec.errors import DataError, InputError, ModelError, SettingsError, ShapeError
from polyvec.invert.inverter import Inverter
from polyvec.invert.settings import InverterSettings
from polyvec.invert.stage import fold_of, surrogate_vectors
from polyvec.invert.writer import VectorWriter, Written
from polyvec.recipe import load_recipe, read_recipe
from polyvec.train.run import Run, dry_run, run
from polyvec.train.sections import STAGES
from polyvec.train.settings import StageSettings

MODELS = ("polyvec/nano-lm", "polyvec/nano-t5")


def untrained(model=MODELS[0], **settings):
    torch.manual_seed(0)
    settings = {"num_tokens": 2, "max_tokens": 12, **settings}
    return Inverter.untrained(InverterSettings(model, **settings), Words())


# nano-t5 at a higher rate learns to ignore its encoder.
RATES = {"polyvec/nano-lm": 3e-3, "polyvec/nano-t5": 1e-3}


def stage(kind, folder, steps, name=None, rate=3e-3, **settings):
    return StageSettings(
        kind,
        name=name,
        data=({"path": str(folder / "texts.jsonl")},),
        batch_size=16,
        learning_rate=rate,
        max_steps=steps,
        settings=settings,
    )


def trained(inverter, folder, *stages):
    lines = [json.dumps({"text": text}) for text in SEEN]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return run(Run(stages, folder / "run"), inverter)


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """Fold writers, the writer and the corrector, a few steps each."""
    folder = tmp_path_factory.mktemp("corrected")
    folds = [stage("invert", folder, 40, f"fold-{n}", fold=n) for n in (0, 1)]
    whole = stage("invert", folder, 40)
    return trained(untrained(corrector=True), folder, *folds, whole, stage("correct", folder, 50))


@pytest.mark.parametrize("model", MODELS)
def test_a_text_has_its_loss_alone_and_among_others_with_and_without_a_hypothesis(model):
    writer = VectorWriter.named(model, 8, num_tokens=3, num_vectors=3)
    vectors = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    texts = [writer.ids(text, 20) for text in ("a cat", "a dog in the long grass")]
    hypotheses = [writer.ids(text, 20, end=False) for text in ("the small cat is here", "dog")]
    with torch.no_grad():
        both = writer.nats(writer.start(vectors, hypotheses), texts)
        for row in range(2):
            start = writer.start(vectors[row : row + 1], hypotheses[row : row + 1])
            alone = writer.nats(start, texts[row : row + 1])
            assert_close(alone[0], both[row], atol=1e-3, rtol=1e-4)
            assert int(alone[0, 1]) == len(texts[row])
    assert texts[0][-1] == writer.end and writer.ids("a dog in the long grass", 3)[-1] != writer.end


@pytest.mark.parametrize("model", MODELS)
def test_beams_come_likeliest_first_and_as_many_texts_are_drawn_as_asked(model):
    writer = VectorWriter.named(model, 8, num_tokens=3)
    start = writer.start(torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(1)))
    (found,) = writer.write(start, beams=3, max_tokens=5)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert len(found) == 3
    drawn = writer.write(start, draws=4, max_tokens=5)
    assert len(drawn[0]) == 4


@pytest.mark.parametrize(
    ("model", "exact", "steps"),
    [
        pytest.param(MODELS[0], 0.5, 120, marks=pytest.mark.medium),
        pytest.param(MODELS[1], 0.1, 200, marks=pytest.mark.slow),
    ],
)
def test_texts_that_no_stage_saw_are_found_by_their_vectors(model, exact, steps, tmp_path):
    new = untrained(model, num_tokens=4)
    inverter = trained(new, tmp_path, stage("invert", tmp_path, steps, rate=RATES[model]))
    vectors = inverter.embed(UNSEEN)
    found = inverter.invert(vectors)
    crossed = inverter.invert(vectors[::-1].copy())
    own, other = (
        np.mean([each.text == text for each, text in zip(some, UNSEEN, strict=True)])
        for some in (found, crossed)
    )
    assert own >= exact and own > other + 0.1
    checked = inverter.check(UNSEEN)
    assert checked.cosine > checked.shuffled + 0.1
    # Re-ranking by the victim is never farther than the language model's order.
    plain = inverter.invert(vectors, rerank=False)
    assert all(a.cosine >= b.cosine - 1e-6 for a, b in zip(found, plain, strict=True))
    inverter.save_pretrained(tmp_path / "saved")
    again = Inverter.from_pretrained(tmp_path / "saved", Words())
    assert [each.text for each in again.invert(vectors)] == [each.text for each in found]
    assert_close(again.mean_E, inverter.mean_E)
    assert again.alone() == inverter.alone() and again.alone()[0]
    without = Inverter.from_pretrained(tmp_path / "saved").invert(vectors[:2])
    assert [each.text for each in without] == [each.text for each in plain[:2]]
    assert without[0].cosine is None
    with pytest.raises(ModelError, match="of another model"):
        Inverter.from_pretrained(tmp_path / "saved", Words(seed=1))


@pytest.mark.medium
def test_correction_never_falls_and_gains_on_the_first_texts(corrected):
    vectors = corrected.embed(UNSEEN)
    start = corrected.invert(vectors, beams=1)
    for options in ({"beams": 2}, {"beams": 2, "sequence_beams": 2}):
        found = corrected.invert(vectors, steps=3, **options)
        assert all(len(each.steps) == 4 for each in found)
        assert all(list(each.steps) == sorted(each.steps) for each in found)
        assert np.mean([e.cosine for e in found]) > np.mean([e.cosine for e in start])
        assert all(each.cosine == pytest.approx(each.steps[-1]) for each in found)


@pytest.mark.medium
def test_a_fold_writer_was_trained_on_none_of_its_fold(corrected):
    """It is likelier to know by heart what it has seen."""
    nats = {True: [], False: []}
    for number, writer in enumerate(corrected.folds):
        for text in SEEN:
            with torch.no_grad():
                start = writer.start(torch.from_numpy(corrected.embed([text]))[:, None])
                found = writer.nats(start, [writer.ids(text, 12)])[0]
            nats[fold_of(text, 2) == number].append(float(found[0]))
    assert np.mean(nats[True]) > 1.3 * np.mean(nats[False])


def test_the_transfer_attack_maps_a_surrogates_vectors():
    """Leaked texts keep the victim's vectors; those of the others are nearest to their own."""
    victim, surrogate = Words(), Words(size=32, seed=5)
    found = surrogate_vectors(TEXTS, 40, victim.encode, surrogate.encode, steps=50)
    true = victim.encode(TEXTS)
    leaked = sorted(range(len(TEXTS)), key=lambda row: hash64(TEXTS[row]))[:40]
    np.testing.assert_allclose(found[leaked], true[leaked], atol=1e-6)
    others = np.setdiff1d(np.arange(len(TEXTS)), leaked)
    nearest = (found @ true.T).argmax(1)
    assert (nearest[others] == others).mean() > 0.7


def test_mistakes_are_one_clear_line(tmp_path):
    inverter = untrained()
    with pytest.raises(ShapeError, match="have 8 dimensions, the inverter takes 24"):
        inverter.invert(np.ones((1, 8)))
    with pytest.raises(InputError, match="steps=2: the inverter has no corrector"):
        inverter.invert(np.ones((1, 24)), steps=2)
    with pytest.raises(InputError, match="beams is 0"):
        inverter.invert(np.ones((1, 24)), beams=0)
    with pytest.raises(InputError, match="at least 2 texts"):
        inverter.check(["one"])
    with pytest.raises(DataError, match="not an inverter"):
        Inverter.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="of another model"):
        inverter.check_model("other")
    with pytest.raises(SettingsError, match="put stages 'invert' with fold = 0"):
        trained(untrained(corrector=True), tmp_path, stage("correct", tmp_path, 1))
    with pytest.raises(SettingsError, match="corrector = true"):
        (tmp_path / "b").mkdir()
        trained(untrained(), tmp_path / "b", stage("correct", tmp_path / "b", 1))


def test_fewer_texts_than_folds_are_told(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "only one"}))
    plan = Run([stage("invert", tmp_path, 1, fold=0, folds=3)], tmp_path / "run")
    with pytest.raises(DataError, match="is 1, so only 1 of 3 folds have one; give more texts"):
        run(plan, untrained())


@pytest.mark.medium
@pytest.mark.parametrize("name", ["geia", "m-vec2text"])
def test_a_dry_run_of_a_recipe_says_what_it_would_train(name, tmp_path):
    """The recipe's own stages on other texts; the second's victim is defended."""
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in SEEN))
    count = len(load_recipe(name).at(STAGES, "nano"))
    data = [f'stage.{n}.data=[{{ path = "{tmp_path}/texts.jsonl" }}]' for n in range(count)]
    said = list(dry_run(load_recipe(name, data), "nano", None))
    assert sum(line.startswith("stage ") for line in said) == count
    assert sum("trains    adapter full" in line for line in said) == count


def test_a_recipe_needs_a_victim(tmp_path):
    raw = {
        "system": {"name": "x", "paper": "-", "tasks": []},
        "inverter": {"model": "polyvec/nano-lm"},
    }
    with pytest.raises(SettingsError, match=r"needs \[victim\]"):
        read_recipe(raw, tmp_path / "x.toml").build()
    raw["inverter"]["num_tokens"] = 0
    with pytest.raises(SettingsError, match="num_tokens is 0, expected at least 1"):
        read_recipe(raw, tmp_path / "x.toml")
    assert load_recipe("all-minilm").key == "all-minilm"


def test_a_damaged_folder_is_one_clear_line(tmp_path):
    untrained().save_pretrained(tmp_path / "a")
    raw = json.loads((tmp_path / "a" / "inverter.json").read_text())
    parts = (tmp_path / "a" / "parts.safetensors").read_bytes()

    def load(size=None, **settings):
        victim = {**raw["victim"], **({} if size is None else {"dimensions": size})}
        changed = {"victim": victim, "settings": {**raw["settings"], **settings}}
        (tmp_path / "a" / "inverter.json").write_text(json.dumps(changed))
        return Inverter.from_pretrained(tmp_path / "a")

    for given in ({"num_tokens": 3}, {"size": 7}):
        with pytest.raises(ModelError, match="its weights do not fit"):
            load(**given)
    with pytest.raises((DataError, SettingsError), match="num_tokens is -3"):
        load(num_tokens=-3)
    for damage in (parts[:300], None):
        (tmp_path / "a" / "parts.safetensors").unlink()
        if damage is not None:
            (tmp_path / "a" / "parts.safetensors").write_bytes(damage)
        with pytest.raises(DataError, match="cannot be read"):
            load()


def test_texts_without_a_word_of_the_victims_are_the_last_that_are_kept():
    class Blank(Words):
        def vector(self, text):
            return super().vector(text) * ("?" not in text)

    inverter = untrained()
    object.__setattr__(inverter, "victim", Blank())
    target = inverter.embed(["a cat"])
    assert inverter._nearest(target, [["?", "a cat", "?!"]], 3)[0] == [
        ("a cat", pytest.approx(1)), ("?", 0), ("?!", 0)]  # fmt: skip
    with pytest.raises(DataError, match="vector 0 is zero"):
        inverter.embed(["?"])
    for given in ({"steps": -1}, {"batch_size": 0}):
        with pytest.raises(InputError, match="expected at least"):
            inverter.invert(target, **given)


def test_a_text_that_another_batch_encodes_a_digit_lower_does_not_fall(monkeypatch):
    inverter, target = untrained(), np.eye(1, 24, dtype=np.float32)
    monkeypatch.setattr(inverter, "correct", lambda *args, **options: [[Written("worse")]])
    monkeypatch.setattr(inverter, "embed_found", lambda texts: target * [[0.899], [0.1]])
    assert inverter._corrected(target, [[("a", 0.9)]], 1, 1, {}) == [[("a", 0.9)]]
