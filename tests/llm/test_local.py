"""A Hugging Face model as a language model, against transformers' own generate and forward."""

import shutil

import numpy as np
import pytest
import torch

from polyvec.errors import AnswerWarning, GenerationError, InputError, ModelError
from polyvec.llm.local import LocalLanguageModel
from polyvec.nano import nano_lm, nano_lm_path

pytestmark = pytest.mark.filterwarnings("ignore::polyvec.errors.AnswerWarning")
STORY = "Once upon a time there was a little girl who lived in a house by the sea. "
PROMPTS = [
    "It was a dark and stormy",
    "Once",
    "The capital of France is",
    STORY * 8 + "One day",
    "A recipe for a cake: take two eggs,",
    STORY + "She",
    STORY + "Her brother",
]


@pytest.fixture(scope="module")
def nano():
    return LocalLanguageModel.load("polyvec/nano-lm")


@pytest.fixture(scope="module")
def plain():
    """The same model and tokenizer, as transformers loads and runs them."""
    return nano_lm()


def written(plain, prompt, **settings):
    """What transformers writes after one prompt."""
    model, tokenizer = plain
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, do_sample=False, **settings)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True)


def test_greedy_answers_are_those_of_transformers(nano, plain):
    found = nano.generate(PROMPTS, max_new_tokens=24)
    assert [each.text for each in found] == [written(plain, p, max_new_tokens=24) for p in PROMPTS]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "n": 3, "top_p": 0.9, "seed": 5}])
def test_answers_do_not_depend_on_the_batch(nano, settings):
    together = nano.generate(PROMPTS, max_new_tokens=12, **settings)
    for sizes in ({"batch_size": 3}, {"batch_tokens": 300}):
        other = LocalLanguageModel.load("polyvec/nano-lm", **sizes)
        assert other.generate(PROMPTS[::-1], max_new_tokens=12, **settings)[::-1] == together
    assert [nano.generate([p], max_new_tokens=12, **settings)[0] for p in PROMPTS] == together


def test_seed_and_number_decide_what_is_drawn(nano):
    settings = {"max_new_tokens": 12, "temperature": 1.0}
    first = nano.generate(PROMPTS[:1], n=3, **settings)[0]
    assert len({each.text for each in first.answers}) == 3
    assert nano.generate(PROMPTS[:1], n=2, **settings)[0].answers == first.answers[:2]
    assert nano.generate(PROMPTS[:1], n=3, seed=1, **settings)[0] != first


def test_the_end_of_a_text_is_not_part_of_the_answer(nano):
    found = nano.generate(["The capital of France is"], max_new_tokens=64)[0]
    assert found.answer.finish == "stop" and "</s>" not in found.text
    assert found.answer.new_tokens == len(nano.tokens.of_text(found.text)) + 1


def test_several_ends_are_known(nano, plain):
    model, tokenizer = plain
    other = LocalLanguageModel(model, tokenizer, name="nano", identity="nano")
    text = other.generate(PROMPTS[:1], max_new_tokens=8)[0].text
    second = other.tokens.of_text(text)[1]
    model.generation_config.eos_token_id = [2, second]
    try:
        again = LocalLanguageModel(model, tokenizer, name="nano", identity="nano")
        found = again.generate(PROMPTS[:1], max_new_tokens=8)[0].answer
    finally:
        model.generation_config.eos_token_id = 2
    assert (found.finish, found.new_tokens) == ("stop", 2) and text.startswith(found.text)


def test_stop_is_found_across_tokens(nano):
    whole = nano.generate(PROMPTS[:1], max_new_tokens=24)[0].text
    assert nano.tokens.tokenizer.tokenize(" little more, and")[-2:] != ["e, and"]
    found = nano.generate(PROMPTS[:1], max_new_tokens=24, stop=["xyz", "re, an"])[0].answer
    assert found.text == whole[: whole.index("re, an")] and found.finish == "stop"
    assert found.new_tokens < 24


def test_a_limit_cuts_and_is_counted(nano):
    with pytest.warns(AnswerWarning, match="cut by max_new_tokens"):
        found = nano.generate(PROMPTS[:1], max_new_tokens=3)[0].answer
    assert (found.finish, found.new_tokens) == ("length", 3)


def test_a_prompt_beyond_the_context_is_an_error_of_its_row(nano):
    found = nano.generate([STORY * 60, "Once"], max_new_tokens=3)
    assert "512 together" in found[0].error and found[1].error is None
    # It was not read, so it cost nothing.
    assert found[0].prompt_tokens == 0 and found[1].prompt_tokens > 0
    with pytest.raises(GenerationError, match=r"prompts\[1\] and its continuation have"):
        nano.logprobs(["Once", STORY * 60], [" a", " b"])


def test_an_answer_ends_with_the_context(nano, plain):
    prompt = STORY * 27
    length = len(nano.tokens.of_prompt(prompt, ""))
    assert 480 < length < 512
    found = nano.generate([prompt, "Once"], max_new_tokens=100)[0].answer
    assert found.finish == "length" and found.new_tokens == 512 - length
    assert found.text == written(plain, prompt, max_new_tokens=512 - length)


def test_results_come_as_they_are_done(nano):
    numbers = [number for number, _ in nano.stream(PROMPTS, max_new_tokens=40)]
    assert sorted(numbers) == list(range(len(PROMPTS))) and numbers != sorted(numbers)


def test_tokens_of_prompts_are_counted_without_asking(nano, plain):
    assert not nano.takes_chats
    before = nano.usage.prompts
    expected = [len(plain[1](prompt).input_ids) for prompt in PROMPTS]
    assert nano.count_tokens(PROMPTS) == sum(expected)
    assert nano.usage.prompts == before


def test_a_chat_needs_a_template(nano):
    with pytest.raises(InputError, match=r"prompts\[1\] is a chat, and polyvec/nano-lm has no"):
        nano.generate(["Once", [{"role": "user", "content": "hello"}]])


def test_log_probabilities_are_those_of_a_forward_pass(nano, plain):
    model, tokenizer = plain
    prompts = [*PROMPTS, "Once", "Once", STORY + "She"]
    more = [" upon a time", " b", " Paris, of course", " she", " and", " was", " said"]
    more += [" upon a hill there was a king", " upon", " lived"]
    found = nano.logprobs(prompts, more)
    for prompt, text, values in zip(prompts, more, found, strict=True):
        before = tokenizer(prompt).input_ids
        after = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(after)), after]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, atol=1e-4)


def test_scores_are_the_shares_of_the_choices(nano):
    choices = [" upon a time", " upon a hill", " again"]
    scores = nano.score(["Once", STORY + "She lived"], choices)
    for prompt, row in zip(["Once", STORY + "She lived"], scores, strict=True):
        sums = [nano.logprobs([prompt], [choice])[0].sum() for choice in choices]
        expected = np.exp(sums) / np.exp(sums).sum()
        np.testing.assert_allclose(row, expected, rtol=1e-4)


def test_identity_is_stable_and_names_no_place(nano, tmp_path):
    copy = tmp_path / "secret-place"
    shutil.copytree(nano_lm_path(), copy)
    found = LocalLanguageModel.load(str(copy))
    assert found.identity == nano.identity and "secret" not in found.identity
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert LocalLanguageModel.load(str(copy)).identity != nano.identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("polyvec/nano-t5", "encoder-decoder"),
        ("sentence-transformers/all-MiniLM-L6-v2", "no head that writes"),
        ("./nothing-here", "no such folder"),
    ],
)
def test_what_does_not_write_is_refused(name, message):
    with pytest.raises(ModelError, match=message):
        LocalLanguageModel.load(name)


def test_a_lone_surrogate_is_refused(nano):
    """The tokenizer raised a TypeError."""
    with pytest.raises(InputError, match="a prompt has a lone surrogate at character 2"):
        nano.generate(["a \ud800"], max_new_tokens=1)
