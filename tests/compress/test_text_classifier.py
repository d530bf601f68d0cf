"""Token classifiers: labels, training, folders, and a policy trained by its reward."""

import random
import re

import numpy as np
import pytest

from polyvec.compress.text.compressor import TextCompressor
from polyvec.compress.text.labels import Labelled, by_deletion, by_questions, trusted
from polyvec.errors import ModelError, SettingsError

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")
FILLER = (
    "the weather was mild and nobody minded",
    "ships came and went over the bay",
    "cats slept on the old wall all day",
)


def rows(count, seed):
    """Texts in which only a name and its code matter."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        name, code = draw.choice(NAMES), str(draw.randrange(1000, 9999))
        parts = [draw.choice(FILLER), f"the code of {name} is {code}", draw.choice(FILLER)]
        text = ". ".join(parts) + "."
        keep = [text.index(name), text.index(code)]
        spans = ((keep[0], keep[0] + len(name)), (keep[1], keep[1] + 4))
        found.append((Labelled(text, spans), name, code))
    return found


def test_labels_of_questions_are_their_words_and_their_answers():
    text = "Ada King wrote the first program in 1843, in London."
    found = by_questions(text, ["Who wrote the first program?"], ["Ada King"])
    kept = {text[a:b] for a, b in found.keep}
    assert kept == {"Ada King", "Ada", "King", "wrote", "first", "program"}


def test_deleted_words_are_aligned_in_order_and_made_up_ones_are_counted():
    text = "the cat saw the dog and the dog ran to the old house"
    found = by_deletion(text, "cat saw dog dog ran house")
    kept = [text[a:b] for a, b in found.labelled.keep]
    assert kept == ["cat", "saw", "dog", "dog", "ran", "house"]
    assert (found.variation, found.gap) == (0.0, 0.0)
    odd = by_deletion(text, "cat met dog dog dog")
    assert odd.variation == pytest.approx(1 / 5) and odd.gap == pytest.approx(1 / 5)
    good = [found] * 18
    assert len(trusted([*good, odd, odd])) == 17
    assert all(len(each.keep) == 6 for each in trusted([*good, odd, odd]))


@pytest.fixture(scope="module")
def trained(minilm_folder):
    from polyvec.compress.text.fitting import fit_token_classifier, new_classifier

    classifier = new_classifier()
    data = [row for row, _, _ in rows(112, 0)]
    losses = fit_token_classifier(data, classifier, epochs=3, learning_rate=3e-4, seed=0)
    return classifier, losses


@pytest.mark.medium
def test_a_classifier_learns_which_words_matter(trained):
    classifier, losses = trained
    assert np.mean(losses[-3:]) < 0.3 * losses[0]
    from polyvec.compress.text.scorers.classifier import Classifier

    made = TextCompressor(Classifier(classifier), tokenizer="polyvec/nano-lm")
    kept = 0
    for row, name, code in rows(30, 1):
        found = made.compress(row.text, rate=0.3).text
        kept += name in found and code in found
    assert kept >= 27


@pytest.mark.medium
@pytest.mark.equality
def test_a_folder_gives_the_same_probabilities_and_transformers_reads_it(trained, tmp_path):
    from transformers import AutoModelForTokenClassification

    from polyvec.compress.text.scorers.classifier import TokenClassifier

    classifier, _ = trained
    classifier.save(tmp_path / "folder")
    text = "the code of Ann is 4711. " * 80  # more than a window
    spans, kept = classifier.probabilities(text)
    again = TokenClassifier.load(tmp_path / "folder")
    other_spans, other = again.probabilities(text)
    assert spans == other_spans and len(spans) > 512
    np.testing.assert_array_equal(kept, other)
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path / "folder")
    assert theirs.config.id2label == {0: "drop", 1: "keep"}
    with pytest.raises(SettingsError, match="label 'yes' is not known"):
        TokenClassifier.load(tmp_path / "folder", label="yes")


@pytest.mark.medium
def test_windows_cover_the_text_and_end_with_sentences(trained):
    classifier, _ = trained
    text = "The code of Ann is 4711, and nobody knows. " * 90
    windows = classifier.windows(text)
    assert len(windows) > 1
    assert all(len(each.ids) <= classifier.max_length for each in windows)
    assert [s for each in windows for s in each.spans] == sorted(
        s for each in windows for s in each.spans
    )
    for each in windows[:-1]:
        assert text[slice(*each.spans[-1])] == "."


@pytest.mark.slow
def test_a_classifier_with_a_question_keeps_what_was_asked(minilm_folder):
    from polyvec.compress.text.fitting import fit_token_classifier, new_classifier
    from polyvec.compress.text.scorers.classifier import Classifier

    draw = random.Random(0)

    def example():
        first, second = draw.sample(NAMES, 2)
        text = f"{first} lives in a red house. {second} lives in a blue house."
        asked = draw.choice((first, second))
        part = text.split(". ")[asked == second]
        start = text.index(part)
        row = Labelled(text, ((start, start + len(part)),), f"Where does {asked} live?")
        return row, part.rstrip(".")

    classifier = new_classifier(with_question=True)
    data = [example()[0] for _ in range(320)]
    fit_token_classifier(data, classifier, epochs=4, learning_rate=3e-4)
    made = TextCompressor(
        Classifier(classifier), unit="sentence", tokenizer=lambda text: len(text.split())
    )
    hits = 0
    for _ in range(20):
        row, part = example()
        hits += part in made.compress(row.text, row.question, tokens=6).text
    assert hits >= 18


@pytest.mark.medium
def test_a_policy_learns_to_drop_what_the_response_does_not_need(minilm_folder):
    """The reward rises and the rate falls, on prompts of a model that answers with the number."""
    from polyvec.compress.text.fitting import fit_policy, new_classifier

    def respond(texts):
        return [" ".join(re.findall(r"\d{4}", text)) for text in texts]

    prompts = [row.text for row, _, _ in rows(32, 2)]
    import torch

    torch.manual_seed(0)
    classifier = new_classifier()
    with torch.no_grad():  # it begins with keeping nearly all
        classifier.model.classifier.bias.copy_(torch.tensor([-1.0, 1.0]))
    found = fit_policy(prompts, respond, classifier, steps=40, learning_rate=2e-2)
    first = np.mean([each.reward for each in found[:5]])
    last = np.mean([each.reward for each in found[-5:]])
    rates = [each.rate for each in found]
    assert last > first + 0.2
    assert np.mean(rates[-5:]) < np.mean(rates[:5]) - 0.2
    assert np.mean([each.similarity for each in found[-5:]]) > 0.9


def test_a_folder_that_is_no_token_classifier_is_refused(minilm_folder):
    from polyvec.compress.text.scorers.classifier import TokenClassifier

    with pytest.raises(ModelError, match="is no token classifier"):
        TokenClassifier.load(minilm_folder)
    with pytest.raises(ModelError, match="no such folder; train a token classifier first"):
        TokenClassifier.load("./nowhere")
