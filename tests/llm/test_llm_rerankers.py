"""Language models as rerankers: likelihoods are the model's, and no answer loses a document."""

import re

import pytest

from polyvec.errors import (
    AnswerWarning,
    GenerationError,
    ModelError,
    SettingsError,
    TruncationWarning,
)
from polyvec.llm.function import FunctionLanguageModel
from polyvec.llm.loading import load_language_model
from polyvec.llm.rerankers import Listwise, QueryLikelihood, listwise_prompt


def test_the_likelihood_of_a_query_is_the_models_mean():
    model = load_language_model("polyvec/nano-lm")
    found = QueryLikelihood(model).scores([("a cat", "cats purr"), ("a cat", "")])
    asked = "Passage: cats purr\nPlease write a question based on this passage."
    chat = [{"role": "user", "content": asked}] if model.takes_chats else asked
    query = "a cat" if model.takes_chats else " a cat"
    assert found[0] == pytest.approx(model.logprobs([chat], [query])[0].mean(), abs=1e-4)
    assert (found < 0).all() and found.shape == (2,)
    with pytest.warns(TruncationWarning, match="1 of 1 texts are longer than the 2 words"):
        cut = QueryLikelihood(model, max_words=2).scores([("a cat", "cats purr all day")])
    assert cut[0] == pytest.approx(found[0], abs=1e-4)
    with pytest.raises(GenerationError, match="no log-probabilities"):
        QueryLikelihood(FunctionLanguageModel(str.upper)).rank("a", ["b"])
    with pytest.raises(SettingsError, match="prompt"):
        QueryLikelihood(model, prompt="write")


class Passages(FunctionLanguageModel):
    """Sorts the numbers in the passages of a chat, the largest first."""

    def __init__(self, write):
        super().__init__(lambda text: text)
        self.write, self.sizes = write, []

    def stream_checked(self, prompts, settings):
        for number, chat in enumerate(prompts):
            passages = [
                m["content"] for m in chat if re.match(r"\[\d+\] ", m["content"])
            ]  # fmt: skip
            self.sizes.append(len(passages))
            self.function = lambda _, passages=passages: self.write(passages)
            yield from ((number, each) for _, each in super().stream_checked([chat], settings))


def by_number(passages):
    values = [int(each.split()[-1]) for each in passages]
    order = sorted(range(len(values)), key=lambda place: -values[place])
    return " > ".join(f"[{place + 1}]" for place in order)


def test_windows_slide_from_the_end_so_that_the_best_comes_first():
    documents = [f"number {n}" for n in range(45)]
    model = Passages(by_number)
    reranker = Listwise(model)
    found = reranker.rank("large", documents)
    assert model.sizes == [20, 20, 20, 15]
    # Ten a window move on: the ten largest reach the top, in order.
    assert [place for place, _ in found[:10]] == [*range(44, 34, -1)]
    assert sorted(place for place, _ in found) == [*range(45)]
    assert [score for _, score in found] == [*range(45, 0, -1)]
    assert reranker.report.num_windows == 4 and reranker.report.num_missing == 0
    assert Listwise(Passages(by_number)).rank("large", ["number 1", "number 3"])[0][0] == 1
    assert Listwise(Passages(by_number)).rank("large", ["number 1"]) == [(0, 1.0)]


@pytest.mark.parametrize(
    ("answer", "order", "counts"),
    [
        ("[3] > [1]", [2, 0, 1, 3], (2, 0, 0, 0)),
        ("[2] > [2] > [9] > [0] > [1]", [1, 0, 2, 3], (2, 1, 2, 0)),
        ("4 3 2 1", [3, 2, 1, 0], (0, 0, 0, 0)),
        ("[99999999999999999999] > [4]", [3, 0, 1, 2], (3, 0, 1, 0)),
        ("I cannot rank these.", [0, 1, 2, 3], (4, 0, 0, 1)),
    ],
)
@pytest.mark.filterwarnings("ignore::polyvec.errors.AnswerWarning")
def test_what_an_answer_lacks_is_made_up_for_and_counted(answer, order, counts):
    reranker = Listwise(Passages(lambda passages: answer))
    found = reranker.rank("q", [f"d{n}" for n in range(4)])
    assert [place for place, _ in found] == order
    report = reranker.report
    assert (
        report.num_missing, report.num_repeated, report.num_unknown, report.num_failed
    ) == counts  # fmt: skip


def test_windows_without_an_answer_are_told():
    with pytest.warns(AnswerWarning, match="1 of 1 windows have no answer"):
        Listwise(Passages(lambda passages: "")).rank("q", ["a", "b"])
    with pytest.raises(SettingsError, match="window is 1"):
        Listwise(Passages(by_number), window=1)
    with pytest.raises(SettingsError, match="step 30"):
        Listwise(Passages(by_number), step=30)


def test_the_prompt_is_rankgpts():
    chat = listwise_prompt("cats", ["one", " two "])
    assert [turn["role"] for turn in chat] == ["system", *["user", "assistant"] * 3, "user"]
    assert chat[3]["content"] == "[1] one" and chat[5]["content"] == "[2] two"


def test_a_model_without_chats_is_refused():
    with pytest.raises(ModelError, match="polyvec/nano-lm has no chat template"):
        Listwise(load_language_model("polyvec/nano-lm"))
