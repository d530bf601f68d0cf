"""Rerankers that say true or false: their scores are transformers' own, whatever stands beside."""

import json

import numpy as np
import pytest
import torch
import transformers as tf
from checkpoints import checkpoint

from polyvec.errors import InputError, ModelError, SettingsError
from polyvec.nano import nano_lm, nano_t5
from polyvec.rerank.prompts import PROMPTS, rerank_prompt
from polyvec.rerank.true_false import TrueFalse, is_true_false
from polyvec.synthesize.judges import CrossEncoderJudge, LanguageModelJudge, Pair
from polyvec.synthesize.prompt_files import prompt_file
from polyvec.synthesize.step import Tools
from polyvec.train.mining.rescoring import pair_scores

PAIRS = [
    ("where is Paris?", "Paris is in France."),
    ("who wrote it", "a longer text about something else, which goes on for a while"),
    ("a", "b"),
]
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def monot5():
    return TrueFalse.load("polyvec/nano-t5")


@pytest.fixture(scope="module")
def decoder():
    return TrueFalse.load("polyvec/nano-lm")


def two_way(logits_V, words, tokenizer):
    ids = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words]
    return float(logits_V[ids].log_softmax(0)[0])


def test_an_encoder_decoders_score_is_its_first_tokens(monot5):
    model, words = nano_t5()
    for pair, score in zip(PAIRS, monot5.scores(PAIRS), strict=True):
        text = "Query: {} Document: {} Relevant:".format(*pair)
        inputs = words(text, return_tensors="pt")
        start = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.no_grad():
            logits = model(input_ids=inputs.input_ids, decoder_input_ids=start).logits[0, 0]
        assert score == pytest.approx(two_way(logits, (" true", " false"), words), abs=1e-5)


def test_a_decoders_score_is_its_next_tokens(decoder):
    """Alone without padding, as transformers computes it."""
    model, words = nano_lm()
    for pair, score in zip(PAIRS, decoder.scores(PAIRS), strict=True):
        ids = words("Query: {} Document: {} Relevant:".format(*pair), return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        assert score == pytest.approx(two_way(logits, (" true", " false"), words), abs=1e-5)


def test_documents_come_in_order_and_instructions_stand_behind_the_query(decoder):
    documents = [text for _, text in PAIRS]
    found = decoder.rank("who wrote it", documents, "Only novels.")
    scores = decoder.scores([("who wrote it Only novels.", text) for text in documents])
    assert [place for place, _ in found] == np.argsort(-scores).tolist()
    assert [score for _, score in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    with pytest.raises(InputError, match="list"):
        decoder.rank("a", "b")


@pytest.mark.parametrize("fixture", ["monot5", "decoder"])
def test_a_long_document_is_cut_and_the_prompt_is_not(fixture, request):
    reranker = request.getfixturevalue(fixture)
    (found,) = reranker.tokens([("a question", "word " * 2000)])
    text = reranker.words.hf.decode(found.ids, skip_special_tokens=True)
    assert found.truncated and len(found) <= reranker.max_length
    assert text.startswith("Query: a question Document: word") and text.endswith("Relevant:")


def test_special_tokens_in_a_document_are_characters(decoder):
    words = decoder.words.hf
    (found,) = decoder.tokens([("a", f"b {words.eos_token} c")])
    assert words.eos_token_id not in found.ids.tolist()


def test_a_chat_is_the_models_turn(tmp_path):
    """One BOS, the template's words around the prompt, and the answer without a space."""
    model, words = nano_lm()
    words.chat_template = CHAT
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    reranker = TrueFalse.load(tmp_path, prompt="followir")
    (found,) = reranker.tokens(PAIRS[:1])
    prompt = PROMPTS["followir"].template.format(query=PAIRS[0][0], document=PAIRS[0][1])
    expected = f"{words.bos_token}[user] {prompt} [end][assistant]"
    assert words.decode(found.ids) == expected
    assert found.ids.tolist() == words(expected, add_special_tokens=False).input_ids
    first = [words(word, add_special_tokens=False).input_ids[0] for word in ("true", "false")]
    assert reranker.answer_ids == first


def test_the_prompt_followir_is_that_of_synthesize():
    file = prompt_file("followir")
    assert file.template.strip("\n") == PROMPTS["followir"].template and not file.plain
    assert PROMPTS["followir"].chat and file.answer.choices == ("true", "false")


def test_what_is_saved_is_loaded_and_judges(tmp_path, decoder):
    """The judge's and the miner's scores are the reranker's, instructions behind the anchor."""
    reranker = TrueFalse.load("polyvec/nano-lm", prompt="followir", max_length=200)
    reranker.save_pretrained(tmp_path / "kept")
    again = TrueFalse.load(tmp_path / "kept")
    assert (again.prompt_name, again.max_length) == ("followir", 200)
    expected = reranker.scores(PAIRS, ["Be brief."] * 3)
    assert again.scores(PAIRS, ["Be brief."] * 3).tolist() == expected.tolist()
    assert is_true_false(tmp_path / "kept")
    tools = Tools(cross_encoder=lambda name: pair_scores(name))
    pairs = [Pair(query, text, text, "Be brief.") for query, text in PAIRS]
    judge = CrossEncoderJudge(str(tmp_path / "kept"), threshold=-0.5)
    assert judge.verdicts(pairs, tools).scores_P == pytest.approx(expected, abs=1e-6)


def test_a_monot5_without_a_file_of_ours_is_none_of_sentence_transformers():
    """Its library would put a random classifier on it."""
    score = pair_scores("polyvec/nano-t5")
    assert score(PAIRS).tolist() == TrueFalse.load("polyvec/nano-t5").scores(PAIRS).tolist()


def test_the_llm_judge_reads_the_instruction():
    class Model:
        takes_chats = False

        def score(self, prompts, choices):
            self.prompts = prompts
            return np.full((len(prompts), 2), 0.5)

    model = Model()
    tools = Tools(language_model=lambda name: model)
    LanguageModelJudge().verdicts([Pair("a query", "a text", "a text", "Only novels.")], tools)
    assert "Query: a query Only novels.\n" in str(model.prompts[0])


def test_what_cannot_rank_says_why(tmp_path):
    with pytest.raises(SettingsError, match="no template"):
        rerank_prompt("Query: {query}")
    with pytest.raises(SettingsError, match="monot5"):
        rerank_prompt("monot")
    with pytest.raises(SettingsError, match="tell them apart"):
        TrueFalse.load("polyvec/nano-lm", answers=("yes", "yes"))
    with pytest.raises(InputError, match="1 instructions for 3 pairs"):
        TrueFalse.load("polyvec/nano-lm").scores(PAIRS, ["a"])
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    config = tf.BertConfig(**sizes, num_attention_heads=2)
    tf.BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="masked"):
        TrueFalse.load(tmp_path)
    assert not is_true_false(tmp_path)
    assert not is_true_false(checkpoint("meta-llama/"))
    assert json.loads((tmp_path / "config.json").read_text())["architectures"]
