"""What came back: measures beside sacrebleu and rouge-score, baselines, personal data by kind."""

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from polyvec.errors import DataError, InputError
from polyvec.invert.leakage import leakage, nearest_texts, shuffled, unit_or_zero
from polyvec.invert.personal import (
    Entity,
    Recall,
    personal_data,
    personal_recall,
    redacted,
)

TEXTS = ["a man rides a red bike", "two dogs play in the snow", "the cat sleeps"]
FOUND = ["a man rides a blue bike", "two dogs in snow", "the cat sleeps"]


def test_measures_are_those_of_their_packages():
    got = leakage(FOUND, TEXTS)
    scorer = RougeScorer(["rougeL"])
    pairs = list(zip(FOUND, TEXTS, strict=True))
    bleu = [sacrebleu.sentence_bleu(a, [b]).score / 100 for a, b in pairs]
    rouge = [scorer.score(b, a)["rougeL"].fmeasure for a, b in pairs]
    assert got.bleu == pytest.approx(np.mean(bleu))
    assert got.rouge_l == pytest.approx(np.mean(rouge))
    assert got.exact_match == pytest.approx(1 / 3)
    assert got.cosine is None


def test_cosine_is_of_the_found_texts_with_the_attacked_vectors():
    lengths = {text: [1.0, len(text)] for text in (*TEXTS, *FOUND)}

    def encode(texts):
        return np.array([lengths[text] for text in texts])

    assert leakage(TEXTS, TEXTS, encode).cosine == pytest.approx(1)
    assert leakage(TEXTS, TEXTS, encode, -encode(TEXTS)).cosine == pytest.approx(-1)


def test_texts_without_latin_letters_are_compared_by_their_words():
    got = leakage(["это дом"], ["это мой дом"])
    assert got.rouge_l == pytest.approx(0.8)


def test_nearest_texts_and_their_mistakes():
    known = np.eye(3)
    assert nearest_texts(known[[2, 0]] + 0.1, known, TEXTS) == [TEXTS[2], TEXTS[0]]
    with pytest.raises(InputError, match="3 known vectors, 2 known texts"):
        nearest_texts(known, known, TEXTS[:2])
    with pytest.raises(InputError, match="no known text"):
        nearest_texts(known, known[:0], [])


@pytest.mark.parametrize("count", [2, 3, 50])
def test_no_shuffled_vector_is_in_its_own_place(count):
    vectors = np.arange(count)[:, None]
    moved = shuffled(vectors)
    assert sorted(moved[:, 0]) == list(range(count))
    assert not (moved == vectors).any()


def test_one_vector_cannot_be_shuffled():
    with pytest.raises(DataError, match="1 vectors cannot be shuffled"):
        shuffled(np.ones((1, 2)))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("mail me at ann.b+c@mail.example.org.", "email", "ann.b+c@mail.example.org"),
        ("the card 4111 1111 1111 1111 is mine", "card", "4111 1111 1111 1111"),
        ("pay to GB82 WEST 1234 5698 7654 32 now", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("my ssn is 078-05-1120", "ssn", "078-05-1120"),
        ("born 12/03/1984", "date", "12/03/1984"),
        ("call +44 20 7946 0958", "phone", "+44 20 7946 0958"),
        ("from 192.168.0.17 again", "ip", "192.168.0.17"),
        ("see https://example.org/a?b", "url", "https://example.org/a?b"),
    ],
)
def test_personal_data_by_kind(text, kind, value):
    assert personal_data(text) == [Entity(kind, value)]


@pytest.mark.parametrize("text", ["4111 1111 1111 1112", "GB82 WEST 1234 5698 7654 33", "in 1984"])
def test_numbers_that_are_no_personal_data(text):
    """Check digits of cards and bank accounts are checked."""
    assert not {"card", "iban"} & {each.kind for each in personal_data(text)}


def test_recall_of_personal_data_counts_whole_values_and_words():
    entities = [[Entity("name", "Ann Lee")], [Entity("name", "Bo Cruz"), Entity("city", "Rome")]]
    got = personal_recall(["Hello, ann lee!", "Bo lives in Paris"], entities)
    assert got == {"city": Recall(1, 0.0, 0.0), "name": Recall(2, 0.5, 0.75)}


def test_texts_without_personal_data_are_told():
    with pytest.raises(DataError, match="no text has personal data"):
        personal_recall(["a"], [[]])


def test_redaction_leaves_nothing_of_what_is_known():
    text = "Ann Lee <ann@example.org>"
    assert redacted(text) == "Ann Lee <[email]>"
    marked = [*personal_data(text), Entity("name", "Ann Lee")]
    assert redacted(text, marked) == "[name] <[email]>"


def test_a_year_in_a_text_of_another_script_is_not_all_of_it():
    assert leakage(["2020"], ["В 2020 году кошка"]).rouge_l == pytest.approx(0.4)


def test_letters_of_scripts_without_spaces_are_words():
    got = leakage(["猫坐在垫子下"], ["猫坐在垫子上"])
    assert got.token_f1 == pytest.approx(5 / 6) and got.bleu > 0.5


def test_nothing_written_and_words_that_the_model_does_not_know_have_no_cosine():
    def encode(texts):
        assert "" not in texts
        return np.array([[0.0, 0.0] if text == "?" else [1.0, 0.0] for text in texts])

    gold = ["a", "b", "c", "d"]
    assert leakage(["a", "", "?", "d"], gold, encode).cosine == pytest.approx(0.5)
    assert leakage(["", "", "", ""], gold, encode).cosine == 0
    found = unit_or_zero(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert found == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
