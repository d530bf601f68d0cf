"""Subjects under instructions that ask for one aspect, and the negatives of an instruction."""

import pytest

from polyvec.data.training.aspects import ASPECTS, UNSEEN_WORDINGS, WORDINGS, instruction
from polyvec.data.training.sources import rows_of, training_sets
from polyvec.errors import DataError

ROWS = [
    {"subject": "Asthma", "aspect": "symptoms", "answer": "You cough."},
    {"subject": "asthma", "aspect": "treatment", "answer": "With an inhaler."},
    {"subject": "Gout", "aspect": "information", "answer": "A form of arthritis."},
    {"subject": "Asthma", "aspect": "symptoms", "answer": "You wheeze."},
    {"subject": "Asthma", "aspect": "causes", "answer": "You cough."},
]


def test_answers_about_other_aspects_are_negatives_of_an_instruction():
    found = rows_of(ROWS, format="aspects").rows
    assert [row.query for row in found] == ["asthma"] * 3  # Gout has one aspect only
    symptoms, treatment, causes = found
    assert symptoms.positives == ("You cough.", "You wheeze.")
    assert symptoms.negatives == ("With an inhaler.",)
    assert treatment.negatives == ("You cough.", "You wheeze.")
    assert causes.negatives == ("You wheeze.", "With an inhaler.")
    for row, name in zip(found, ("symptoms", "treatment", "causes"), strict=True):
        assert row.instruction in {instruction(name, wording) for wording in WORDINGS}
        assert list(ASPECTS)[row.label] == name


def test_an_instruction_has_the_aspect_in_several_wordings():
    assert instruction("causes", WORDINGS[0]) == "Find a passage that says what causes it."
    assert instruction(0, WORDINGS[1]) == "I want to know what causes it."
    assert not set(WORDINGS) & set(UNSEEN_WORDINGS)
    seeds = [rows_of(ROWS, format="aspects", seed=seed).rows[0].instruction for seed in range(20)]
    assert len(set(seeds)) > 3


def test_an_unknown_aspect_is_named():
    rows = [{"subject": "Gout", "aspect": "symptom", "answer": "Pain."}]
    with pytest.raises(DataError, match=r"row 0: aspect 'symptom' is not known. Did you mean"):
        rows_of(rows, name="row", format="aspects")


@pytest.mark.medium
def test_medquads_subjects_are_held_out_whole(shared_data):
    (train,) = training_sets({"name": "medquad_instructions"}, shared_data)
    (kept,) = training_sets({"name": "medquad_instructions", "part": "held_out"}, shared_data)
    subjects = [{row.query for row in each.rows} for each in (train, kept)]
    assert not subjects[0] & subjects[1]
    assert [len(each) for each in subjects] == [2253, 243]
    assert all(row.negatives for row in (*train.rows, *kept.rows))
