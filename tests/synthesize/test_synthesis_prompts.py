"""Prompts as data: each renders, and those of papers are theirs to the byte."""

import hashlib

import pytest

from polyvec.errors import InputError, SettingsError
from polyvec.synthesize.prompt_files import PromptFile, prompt_file, prompt_names
from polyvec.synthesize.reading import check_target
from polyvec.synthesize.rows import Row
from polyvec.synthesize.steps.generate import Generate


def values(file):
    """Something for each slot."""
    made = {"text": "TEXT", "number": 3.5}
    return {
        n: slot.values[0] if slot.values else made.get(slot.type, "CHOICE")
        for n, slot in file.slots.items()
    }


@pytest.mark.parametrize("name", prompt_names())
def test_every_prompt_renders_and_says_its_source(name):
    file = prompt_file(name)
    assert file.source and file.answer.max_new_tokens > 0
    shown = [dict.fromkeys(_columns(file), "DEMONSTRATION")] * file.num_demonstrations
    found = file.asked(values(file), file.demonstrations or shown)
    text = found if file.plain else found[-1]["content"]
    assert "{" not in text
    for value in values(file).values():
        assert str(value) in text
    for target in file.answer.fields.values() or [file.answer.to]:
        check_target(target, name)


def _columns(file: PromptFile):
    from polyvec.llm.slots import SlotTemplate

    if file.demonstration is None:
        return []
    return [each for each in SlotTemplate.parse(file.demonstration).slots if each != "number"]


# The first half of the sha256 of what the authors' own code renders for the text
# DOC: Promptagator with the demonstrations (D1, Q1) and (D2, Q2), SumCSE with its first five.
RENDERED = {
    "sumcse_summarize": "b143735135aab7635afc4603ce653d81",
    "sumcse_paraphrase": "a9a11459c99e417457fdc910ac1a806f",
    "sumcse_restructure": "505c39dd8d10e50df8c722b922092b04",
    "sumcse_entail": "025db30d2d3a9a911f79dd47f1044446",
    "sumcse_concise": "a29f80ceea9e32e113487f495431f4d4",
    "sumcse_contrast_details": "16ca0aea37683a571585194f7c4ac4a4",
    "sumcse_contrast_elements": "0e7dd9d7cef200ce713ab5666a68dac2",
    "sumcse_contrast_meaning": "e883d7a83fe16093804fa1a7ec00a572",
    "sumcse_contrast_idea": "70a8bdf7ddd533bd000a3bb974fc8738",
    "inpars": "4fa835764b9eb5498fe22dae8604609d",
    "inpars_gbq": "97ad8a3e1f8cf983c642b6be382de7ac",
    "promptagator_arguana": "8e177bdc942a39ddf62ebd96cd7c2613",
    "promptagator_fiqa": "83b9accb612135b0ad07b53e14bc3145",
    "promptagator_hotpotqa": "cc9d4eb0136e543eb382f293e511b798",
    "promptagator_dbpedia_entity": "72dfbd2971550f72321929bee80515e1",
    "promptagator_nfcorpus": "d2f2e6de95183412fb47375bdb74a48a",
    "promptagator_webis_touche2020": "c2c6ed44f6e39d0d1f2acc035e9ee177",
    "promptagator_trec_covid": "bbbde7935ea27842e0e7ff689e707d4d",
    "promptagator_scifact": "0ea6067dd87ce15186503f2d355ef6df",
    "promptagator_scidocs": "47f68208ea4773b59d75dddb66321dd9",
}


@pytest.mark.parametrize("name", RENDERED)
def test_a_papers_prompt_is_its_own_to_the_byte(name):
    file = prompt_file(name)
    shown = [{"document": "D1", "query": "Q1"}, {"document": "D2", "query": "Q2"}]
    shown = file.demonstrations[:5] if "sentence" in file.slots else shown
    found = file.asked({"document": "DOC", "sentence": "DOC"}, shown)
    text = found if file.plain else found[-1]["content"]
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == RENDERED[name]


def test_braces_and_slots_of_a_text_are_data():
    text = "a {query} and {{braces}} {document}"
    step = Generate("inpars")
    assert step.prompt_of(Row(positive=text, meta={"id": "1"})).count(text) == 1


def test_a_long_document_is_cut():
    step = Generate("inpars")
    prompt = step.prompt_of(Row(positive="word " * 500, meta={"id": "1"}))
    assert prompt.split("Document: ")[-1].count("word") == 200


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("a query"), "slot 'document': the row has no 'positive'"),
        (Row(positive="  "), "slot 'document': 'positive' is empty"),
    ],
)
def test_a_row_without_a_value_is_named(row, message):
    with pytest.raises(InputError, match=message):
        Generate("inpars").prompt_of(row)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('template = "{a}"', "key 'source' is missing"),
        ('source = "x"\ntemplate = "{a}"', "slot 'a' of the template is not in"),
        ('source = "x"\ntemplate = "a"\n[slots.a]\n', "slot 'a' is not in the template"),
        ('source = "x"\ntemplate = "{a"', "unmatched"),
        ('source = "x"\ntemplate = "{a}"\n[slots.a]\ntype = "txt"', "is 'txt', not 'text' or"),
        ('source = "x"\ntemplate = "a"\n[answer]\nkind = "json"', "needs fields"),
        ('source = "x"\ntemplate = "a"\n[anwser]\n', "Did you mean 'answer'"),
    ],
)
def test_a_wrong_prompt_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message) as raised:
        prompt_file(str(path))
    assert "\n" not in str(raised.value)
