"""The protocol of language models, on a function as the model."""

import pytest

from polyvec.errors import AnswerWarning, GenerationError, InputError, SettingsError
from polyvec.llm.answers import Completion, GenerationSettings
from polyvec.llm.function import FunctionLanguageModel


def test_answers_come_in_the_order_of_the_prompts():
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "b"}]
    found = FunctionLanguageModel(str.upper).generate(["a", chat, "c"])
    assert [each.text for each in found] == ["A", "B", "C"]


def test_cut_and_empty_answers_are_counted():
    model = FunctionLanguageModel({"a": "one two three", "b": " "}.get)
    with pytest.warns(AnswerWarning, match="2 of 2 .* 1 cut by max_new_tokens, 1 empty"):
        found = model.generate(["a", "b"], max_new_tokens=2)
    assert found[0].text == "one two" and found[0].answer.finish == "length"
    assert model.usage.problems == {"cut by max_new_tokens": 1, "empty": 1}


def test_stop_is_not_part_of_the_answer():
    model = FunctionLanguageModel(lambda prompt: "one. two; three")
    assert model.generate(["a"], stop=[";", "."])[0].text == "one"
    assert model.generate(["a"], stop=";")[0].text == "one. two"


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a text", "list of texts"),
        (["a", ""], r"prompts\[1\] is empty"),
        ([3], r"prompts\[0\]"),
        ([[]], r"prompts\[0\]"),
        ([[{"role": "user"}]], "role and content"),
        ([[{"role": "robot", "content": "x"}]], "'robot' is not one of"),
        ([[{"role": "user", "content": None}]], "content must be a text"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_place(prompts, message):
    with pytest.raises(InputError, match=message):
        FunctionLanguageModel(str.upper).generate(prompts)


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {"max_new_tokens": 0},
            {"temperature": -1},
            {"temperature": 1e-300},
            {"top_p": 0},
            {"n": 0},
        ),
        *({"n": 2}, {"stop": [""]}, {"temprature": 1}),
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        FunctionLanguageModel(str.upper).generate(["a"], **settings)


def test_a_completion_without_an_answer_raises_its_error():
    with pytest.raises(GenerationError, match="server is gone"):
        _ = Completion((), error="server is gone").text


def test_usage_counts_tokens_and_money():
    model = FunctionLanguageModel(str.upper)
    model.usage.prompt_price, model.usage.new_price = 1.0, 2.0
    model.generate(["a b", "c"])
    usage = model.usage
    assert (usage.prompts, usage.prompt_tokens, usage.new_tokens) == (2, 3, 3)
    assert usage.cost == pytest.approx(9e-6)


def test_choices_must_differ():
    with pytest.raises(InputError, match="two or more different"):
        FunctionLanguageModel(str.upper).score(["a"], ["yes", "yes"])


def test_a_function_has_no_log_probabilities():
    with pytest.raises(GenerationError, match="no log-probabilities"):
        FunctionLanguageModel(str.upper).logprobs(["a"], [" b"])


def test_defaults_are_greedy():
    assert GenerationSettings().temperature == 0
