"""The audit and its page, and what an inverter says of vectors that no text gave."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from word_victim import ANIMALS, COLOURS, SEEN, TEXTS, UNSEEN, Words

from polyvec.cli import main
from polyvec.data.texts import Record
from polyvec.errors import DataError, InputError, SettingsError, ShapeError
from polyvec.index.store import Index
from polyvec.invert.audit.page import hidden, page
from polyvec.invert.audit.run import Attacked, Audit, Auditor, AuditSettings
from polyvec.invert.audit.utility import utility
from polyvec.invert.audit.verdict import defence_rows, verdict
from polyvec.invert.defences import build_defence
from polyvec.invert.defended import Defended
from polyvec.invert.inverter import Inverter
from polyvec.invert.leakage import leakage
from polyvec.invert.settings import InverterSettings
from polyvec.invert.training import retrain_inverter, train_inverter
from polyvec.invert.walks import (
    ConceptEditor,
    counterfactuals,
    decode_vote,
    query_walk,
    reveal,
    suggestions,
)
from polyvec.storage.vector_files import read_vectors, vector_file

DEFENCES = ("none", "rotation", "gaussian:sigma=0.6", "truncate:size=12")


@pytest.fixture(scope="module")
def inverter(tmp_path_factory):
    settings = InverterSettings("polyvec/nano-lm", num_tokens=2, max_tokens=12)
    folder = tmp_path_factory.mktemp("trained")
    return train_inverter(Words(), SEEN, folder, settings=settings, steps=90, batch_size=16)


@pytest.fixture(scope="module")
def audit(inverter, tmp_path_factory):
    texts = [*TEXTS, "Write to ann@example.org in the red house."]
    texts += [f"Bob is in the {colour} house with a {animal} again." for colour in COLOURS
              for animal in ANIMALS]  # fmt: skip
    settings = AuditSettings.quick(defences=DEFENCES, num_test=20, leaked=(40,), beams=2)
    labels = [next((c for c in COLOURS if c in text), "none") for text in texts]
    folder = tmp_path_factory.mktemp("audit")
    return Auditor(inverter.victim, texts, settings, folder, labels=labels).run((), inverter)


@pytest.mark.medium
def test_attacks_find_more_than_is_found_without_the_vector(audit):
    start = max(each.f1 for each in audit.of("none", baselines=True))
    by = {each.attack: each.f1 for each in audit.of("none")}
    frequent = [e for e in audit.of("none", baselines=True) if e.attack == "most frequent words"]
    assert 0.1 < frequent[0].f1 <= start and "trained before" in audit.facts["inverter"]
    assert by["inverter"] > start + 0.1
    assert verdict(audit)[0].startswith("The vectors give away")


@pytest.mark.medium
def test_a_rotation_stops_who_has_no_pairs_and_falls_to_some(audit):
    """Forty pairs of twenty-four dimensions undo it; every similarity stays."""
    by = {each.knows: each.f1 for each in audit.of("rotation") if each.attack == "inverter"}
    assert by["fixed"] < by["leaked 40"] - 0.1 and by["fixed"] < by["adaptive"] - 0.1
    assert audit.utility["rotation"] == pytest.approx(audit.utility["none"])
    assert audit.utility["none"] == pytest.approx(dict.fromkeys(audit.utility["none"], 1.0))
    assert min(audit.utility["gaussian:sigma=0.6"].values()) < 0.9


@pytest.mark.medium
def test_who_trains_on_noised_vectors_reads_more_words_than_who_does_not(audit):
    by = {each.knows: each.f1 for each in audit.of("gaussian:sigma=0.6")
          if each.attack == "keywords"}  # fmt: skip
    assert by["retrained"] > by["fixed"] + 0.02


@pytest.mark.medium
def test_an_inverter_that_trains_on_says_more_of_defended_vectors(inverter, tmp_path):
    """Half of the dimensions; the first inverter stays as it was."""
    plain = inverter.victim
    defended = Defended(plain, build_defence("truncate:size=12"))
    before = {name: each.clone() for name, each in inverter.state_dict().items()}
    found, back = retrain_inverter(inverter, defended, SEEN, tmp_path, steps=30, batch_size=16)
    assert all(torch.equal(each, before[name]) for name, each in inverter.state_dict().items())
    vectors = back.transform(defended.encode(UNSEEN))
    first, second = (
        leakage([each.text for each in one.invert(vectors, beams=1)], UNSEEN).token_f1
        for one in (inverter, found)
    )
    assert second > first + 0.02
    with pytest.raises(ShapeError, match="12 dimensions, the inverter takes 24"):
        inverter.with_victim(defended)


@pytest.mark.medium
def test_truncated_vectors_are_attacked_by_who_maps_them_back(audit):
    knows = {each.knows for each in audit.of("truncate:size=12")}
    assert knows == {"adaptive", "leaked 40", "retrained"}


@pytest.mark.medium
def test_the_page_loads_nothing_and_shows_no_text_that_was_not_found(audit):
    whole = "".join(page("<model>", audit))
    assert "<script" not in whole and "http" not in re.sub(r'http-equiv="', "", whole)
    assert "&lt;model&gt;" in whole and "ann@example.org" not in whole
    for part in ("8.4.1", "8.4.2", "8.4.3", "8.4.4", "What to do"):
        assert part in whole
    assert "".join(page("<model>", audit)) == whole
    assert audit.texts[0] in "".join(page("m", audit, show_texts=True))
    assert "texts" not in audit.as_json()["rows"][0]
    assert audit.attribute["none"].auc > 0.9


def test_words_that_were_not_found_are_dots():
    assert hidden("Ann saw the [email] boat", "The boat") == "··· ··· the [email] boat"
    assert hidden("[secret] [email]/path <[phone]>", "") == "········ [email]····· ·[phone]·"


def table(defended_f1, utility_left):
    """An audit of one defence with these figures."""
    rows = [
        Attacked("language model alone", "nothing", "none", {"token_f1": 0.1}),
        Attacked("inverter", "fixed", "none", {"token_f1": 0.6, "exact_match": 0.0}),
        Attacked("inverter", "fixed", "mask", {"token_f1": 0.1}),
        Attacked("inverter", "adaptive", "mask", {"token_f1": defended_f1}),
    ]
    worth = {"none": {"sts": 0.8}, "mask": {"sts": 0.8 * utility_left}}
    return Audit(tuple(rows), worth, {}, (), {})


@pytest.mark.parametrize(
    ("f1", "left", "protected", "lost", "met"),
    [(0.1, 0.98, 1.0, 0.02, True), (0.35, 0.98, 0.5, 0.02, False), (0.05, 0.9, 1.0, 0.1, False)],
)
def test_a_defence_is_judged_by_its_strongest_attacker(f1, left, protected, lost, met):
    (row,) = [each for each in defence_rows(table(f1, left)) if each.defence == "mask"]
    assert row.protected == pytest.approx(protected) and row.lost == pytest.approx(lost)
    assert row.meets_aisvs is met
    assert any("mask protects 100 %" in line for line in verdict(table(f1, left))) is met


def test_utility_on_own_texts_is_one_for_what_changes_nothing():
    plain = Defended(Words())
    found = utility(plain, (), UNSEEN)
    assert found == pytest.approx(dict.fromkeys(found, 1.0))
    noisy = Defended(Words(), build_defence("gaussian:sigma=1.0"), plain.memo)
    assert max(utility(noisy, (), TEXTS).values()) < 0.7


def test_audits_of_too_few_texts_are_refused(tmp_path):
    with pytest.raises(DataError, match="at least 60 different texts, got 2"):
        Auditor(Words(), ["a", "b", "a", " "], AuditSettings(), tmp_path)
    with pytest.raises(InputError, match="num_test is 2, expected at least 3"):
        Auditor(Words(), TEXTS, dataclasses.replace(AuditSettings(), num_test=2), tmp_path)
    with pytest.raises(DataError, match="64 classes, the smallest"):
        Auditor(Words(), TEXTS, AuditSettings(), tmp_path, labels=range(64))


def test_no_attacked_text_is_known_in_other_case_or_marks(tmp_path):
    every = [*TEXTS, *(text.upper() for text in TEXTS), *(f" {text}" for text in TEXTS)]
    auditor = Auditor(Words(), every, AuditSettings(), tmp_path)
    assert len(auditor.test) + len(auditor.known) == len(TEXTS)
    assert not {t.strip().lower() for t in auditor.test} & {
        t.strip().lower() for t in auditor.known
    }


@pytest.mark.parametrize(
    ("defence", "error", "message"),
    [
        ("truncate:size=25", ShapeError, "truncate: size 25"),
        ("mask:count=24", ShapeError, "mask: 24 masked of 24"),
        ("product:parts=7", ShapeError, "product: 24 dimensions cannot be cut in 7"),
        ("projection:remove=24", ShapeError, "projection: 24 removed of 24"),
    ],
)
def test_a_defence_that_does_not_fit_is_told_before_an_inverter_is_trained(
    defence, error, message, tmp_path
):
    settings = AuditSettings.quick(defences=("none", defence))
    with pytest.raises(error, match=message):
        Auditor(Words(), TEXTS, settings, tmp_path, say=pytest.fail).run()


def test_a_text_without_a_vector_is_named_before_an_inverter_is_trained(tmp_path):
    class Blank(Words):
        def vector(self, text):
            return super().vector(text) * ("?" not in text)

    auditor = Auditor(Blank(), [*TEXTS, "?! 5"], AuditSettings(), tmp_path, say=pytest.fail)
    with pytest.raises(DataError, match=r"'\?! 5': the model knows no word of it"):
        auditor.run()


def test_default_defences_fit_small_vectors_of_any_size(tmp_path):
    auditor = Auditor(Words(33), TEXTS, AuditSettings(), tmp_path)
    assert "truncate:size=16" in auditor.built and "truncate:size=64" not in auditor.built
    known = auditor.plain.encode(auditor.known)
    fitted = auditor._fitted("product", auditor.built["product"], known)
    assert fitted.settings()["parts"] == 11 and fitted.apply(known).shape == known.shape
    assert "truncate:size=64" in Auditor(Words(65), TEXTS, AuditSettings(), tmp_path).built


def test_where_nothing_leaks_nothing_is_protected():
    """Of a gain of 0 any share is lost; a defence has no credit for it."""
    quiet = table(0.1, 0.98)
    rows = (*quiet.rows, Attacked("most frequent words", "nothing", "none", words=0.58))
    quiet = dataclasses.replace(quiet, rows=rows)
    assert {each.protected for each in defence_rows(quiet)} == {None}
    assert not any(each.meets_aisvs for each in defence_rows(quiet))
    assert verdict(quiet)[0].startswith("No attack found more than chance")
    assert not any("protects" in line for line in verdict(quiet))


def test_utility_that_was_not_measured_or_is_no_number_is_not_kept():
    whole = table(0.1, 1.0)
    for plain, defended, lost in ((-0.1, -0.1, None), (0.8, float("nan"), 1.0)):
        worth = {"none": {"sts": plain}, "mask": {"sts": defended}}
        found = defence_rows(dataclasses.replace(whole, utility=worth))
        (row,) = [each for each in found if each.defence == "mask"]
        assert row.lost == lost and not row.meets_aisvs


def test_neighbours_of_few_texts_are_not_all_the_others():
    plain = Defended(Words())
    noisy = Defended(Words(), build_defence("gaussian:sigma=5.0"), plain.memo)
    assert utility(noisy, (), TEXTS[:9])["neighbours overlap@4"] < 0.9


@pytest.mark.medium
def test_a_folder_of_another_split_or_length_is_not_gone_on_with(tmp_path):
    """An inverter that has seen what is attacked now would find it."""
    settings = InverterSettings("polyvec/nano-lm", num_tokens=1, max_tokens=4)
    call = {"settings": settings, "steps": 1, "batch_size": 2}
    first = train_inverter(Words(), TEXTS[:4], tmp_path, **call)
    again = train_inverter(Words(), TEXTS[:4], tmp_path, **call)
    assert torch.equal(first.writer.prefixes[0].gain, again.writer.prefixes[0].gain)
    for texts, changes, name in (
        (TEXTS[1:5], {}, "texts"),
        (TEXTS[:4], {"steps": 2}, "steps"),
        (TEXTS[:4], {"seed": 1}, "seed"),
        (TEXTS[:4], {"noise": 0.1}, "noise"),
        (TEXTS[:4], {"start": first}, "start"),
    ):
        with pytest.raises(SettingsError, match=f"other settings than this recipe: .*{name}"):
            train_inverter(Words(), texts, tmp_path, **{**call, **changes})


@pytest.mark.medium
def test_a_walk_goes_from_the_query_to_the_document(inverter):
    query, document = UNSEEN[0], UNSEEN[3]
    steps = query_walk(inverter, query, document, documents=UNSEEN)
    near = inverter.embed([each.text for each in steps]) @ inverter.embed([query, document]).T
    assert near[0, 0] > near[0, 1] and near[-1, 1] > near[-1, 0]
    assert steps[-1].rank <= steps[0].rank and steps[-1].rank == 1
    with pytest.raises(InputError, match="not among the documents"):
        query_walk(inverter, query, document, documents=[query])


@pytest.mark.medium
def test_a_suggester_writes_what_ranks_a_document_higher(inverter, tmp_path):
    """Each query's document is the text with a green animal in the same place."""
    pairs = [(text, text.replace(text.split()[1], "green")) for text in SEEN if "green" not in text]
    found = suggestions(inverter, pairs, TEXTS)
    assert len(found) > 20 and all(each.after < each.before for each in found)
    rows = [(each.query, each.suggested) for each in found]
    start = inverter.with_victim(inverter.victim)
    suggester = train_inverter(
        inverter.victim, rows, tmp_path, start=start, steps=40, batch_size=16
    )
    queries = [text for text in UNSEEN if "green" not in text]
    written = suggester.invert(inverter.embed(queries), rerank=False)
    assert np.mean(["green" in each.text for each in written]) > 0.6
    assert suggestions(inverter, [(TEXTS[0], TEXTS[0])], TEXTS) == []  # ranks first already
    with pytest.raises(InputError, match="not among the documents"):
        suggestions(inverter, pairs, TEXTS[:2])


@pytest.mark.medium
def test_led_generation_raises_the_score_of_the_wanted_class(inverter):
    """A classifier by words: how many of the wanted ones a text has."""

    def score(texts):
        return [sum(word in text for word in ("green", "bird")) / 2 for text in texts]

    start = inverter.embed(["The red dog is in the house."])[0]
    found = reveal(inverter, score, start, rounds=8, spread=0.9)
    scores = [score for _, score in found]
    assert scores == sorted(scores) and scores[-1] > scores[0] == 0.0


@pytest.mark.medium
def test_votes_of_drawn_texts_name_the_words(inverter):
    found = decode_vote(inverter, inverter.embed(UNSEEN), draws=6, k=3)
    wanted = [{w for w in (*COLOURS, *ANIMALS) if w in text} for text in UNSEEN]
    own = np.mean([len(a & set(b)) / 2 for a, b in zip(wanted, found, strict=True)])
    other = np.mean(
        [len(a & set(b)) / 2 for a, b in zip(wanted, found[1:] + found[:1], strict=True)]
    )
    assert own > other + 0.3


@pytest.mark.medium
def test_a_counterfactual_has_the_other_colour_and_the_same_animal(inverter):
    texts = [text for text in SEEN if "red" in text or "blue" in text]
    labels = ["red" if "red" in text else "blue" for text in texts]
    editor = ConceptEditor(inverter.embed(texts), labels)
    red = [text for text in texts if "red" in text]
    vectors = editor.edit(inverter.embed(red), "red", "blue")
    assert np.mean([each == "blue" for each in editor.predict(vectors)]) > 0.9
    found = counterfactuals(inverter, editor, red, "red", "blue")
    animal = [next(a for a in ANIMALS if a in text) for text in red]
    assert np.mean([a in each.text for a, each in zip(animal, found, strict=True)]) > 0.6
    assert np.mean(["blue" in each.text for each in found]) > 0.6
    with pytest.raises(InputError, match="class 'pink' is none of blue, red"):
        editor.edit(vectors, "red", "pink")


@pytest.mark.parametrize("kind", ["npy", "jsonl", "parquet", "safetensors"])
def test_vectors_are_read_as_they_were_written(kind, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    path = tmp_path / f"v.{kind}"
    with vector_file(path) as write:
        write(["a", "b", "c"], vectors)
    np.testing.assert_array_equal(read_vectors(path), vectors)


def test_files_that_are_no_vectors_are_told(tmp_path):
    (tmp_path / "a.npy").write_text("text")
    (tmp_path / "empty.npy").write_text("")
    np.save(tmp_path / "b.npy", np.ones((2, 3), np.int8))
    np.save(tmp_path / "c.npy", np.ones(3))
    (tmp_path / "d.jsonl").write_text('{"id": 1}\n')
    for name, message in (
        ("a.npy", "not a file of vectors"),
        ("empty.npy", "not a file of vectors"),
        ("b.npy", "int8, quantised"),
        ("c.npy", r"expected vectors \[N, E\]"),
        ("d.jsonl", "not a file of vectors"),
        ("e.npy", "cannot be read"),
        ("f.txt", "vector format 'txt' is not known"),
    ):
        with pytest.raises(DataError, match=message):
            read_vectors(tmp_path / name)


@pytest.mark.medium
def test_the_verb_inverts_files_and_refuses_indexes_of_other_models(
    inverter, tmp_path, capsys, minilm
):
    inverter.save_pretrained(tmp_path / "inverter")
    np.save(tmp_path / "v.npy", inverter.embed(UNSEEN[:2]))
    call = ["invert", str(tmp_path / "v.npy"), "--inverter", str(tmp_path / "inverter")]
    assert main([*call, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and lines[0]["cosine"] is None and lines[0]["text"]
    assert main([*call, "-o", str(tmp_path / "found.txt")]) == 0
    assert len((tmp_path / "found.txt").read_text().splitlines()) == 2
    np.save(tmp_path / "w.npy", np.ones((1, 7), np.float32))
    call[1] = str(tmp_path / "w.npy")
    assert main(call) == 2
    assert "have 7 dimensions, the inverter takes 24" in capsys.readouterr().err
    Index.build(tmp_path / "index", [Record("1", "a cat")], minilm)
    call[1] = str(tmp_path / "index")
    assert main(call) == 2
    assert "of another model" in capsys.readouterr().err
    assert isinstance(Inverter.from_pretrained(tmp_path / "inverter"), Inverter)


@pytest.mark.medium
def test_the_verb_audits_a_model_and_goes_on_with_its_inverter(tmp_path, tiny_bert, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    call = ["audit", str(tiny_bert), "--texts", str(tmp_path / "texts.txt"), "--quick"]
    call += ["-o", str(tmp_path / "out"), "--steps", "3", "--num-test", "4"]
    call += ["--defence", "rotation:seed=3", "--retrain", "2"]
    assert main(call) == 0
    captured = capsys.readouterr()
    assert "No personal data stands in the attacked texts" in captured.out
    figures = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert set(figures["utility"]) == {"none", "rotation:seed=3"}
    assert figures["model"] == "tiny-bert"
    retrained = [row["attack"] for row in figures["rows"] if row["knows"] == "retrained"]
    assert sorted(retrained) == ["inverter", "keywords", "nearest known text"]
    assert (tmp_path / "out" / "audit.html").read_text().startswith("<!doctype html>")
    assert main([*call, "--defence", "gaussain"]) == 2
    assert "Did you mean 'gaussian'" in capsys.readouterr().err
