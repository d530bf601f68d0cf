"""SmolLM2-135M-Instruct as a language model: its chat template, against transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from polyvec.llm.local import LocalLanguageModel

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore::polyvec.errors.AnswerWarning"),
]
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "2 + 2?"}],
    [
        {"role": "user", "content": "Name a large animal, and say where it lives. " * 6},
        {"role": "assistant", "content": "The elephant"},
    ],
]


@pytest.fixture(scope="module")
def small(smollm2):
    return LocalLanguageModel.load(smollm2)


@pytest.fixture(scope="module")
def plain(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(smollm2)


def ids_of(tokenizer, chat):
    goes_on = chat[-1]["role"] == "assistant"
    found = tokenizer.apply_chat_template(
        chat, add_generation_prompt=not goes_on, continue_final_message=goes_on, return_dict=True
    )
    return found["input_ids"]


def test_chats_are_written_and_answered_as_in_transformers(small, plain):
    model, tokenizer = plain
    found = small.generate(CHATS, max_new_tokens=16)
    assert found[0].text == "The capital of France is Paris."
    assert (found[0].answer.finish, found[0].answer.new_tokens) == ("stop", 8)
    for chat, completion in zip(CHATS, found, strict=True):
        ids = ids_of(tokenizer, chat)
        assert list(small.tokens.of_prompt(chat, "")) == ids
        assert completion.prompt_tokens == len(ids)
        ids = torch.tensor([ids])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
        assert completion.text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_template_written_by_hand_is_the_chat_and_begins_once(small):
    text = small.tokens.chat_text(CHATS[0])
    assert text.startswith("<|im_start|>system")
    ids = small.tokens.of_prompt(text, "")
    assert ids == small.tokens.of_prompt(CHATS[0], "") and ids[0] == 1 != ids[1]


def test_answers_do_not_depend_on_the_batch(small):
    prompts = [*CHATS[:2], "The capital of France is", "Water"]
    for settings in ({}, {"temperature": 0.8, "top_p": 0.9}):
        together = small.generate(prompts, max_new_tokens=5, **settings)
        alone = [small.generate([each], max_new_tokens=5, **settings)[0] for each in prompts]
        assert together == alone


def test_log_probabilities_are_those_of_a_forward_pass(small, plain):
    model, tokenizer = plain
    answers = ["Paris.", "4", " lives in Africa"]
    found = small.logprobs(CHATS, answers)
    for chat, answer, values in zip(CHATS, answers, found, strict=True):
        before = ids_of(tokenizer, chat)
        after = tokenizer(answer, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(after)), after]
        np.testing.assert_allclose(values, expected, atol=1e-4)


def test_scores_say_yes_to_what_is_true(small):
    scores = small.score(["Is Paris in France? Answer:"], [" Yes", " No"])
    assert scores.shape == (1, 2) and scores.sum() == pytest.approx(1)
