"""Scorers that read a model's probabilities or attention, and models that write."""

import numpy as np
import pytest
import torch

from polyvec.compress.text.compressor import TextCompressor
from polyvec.compress.text.document import Asked, Document
from polyvec.compress.text.scorer import as_scorer, per_unit
from polyvec.compress.text.units import sentences, words
from polyvec.compress.text.writers import Blocks, Capsule, Snippet, Summary, fitting
from polyvec.errors import GenerationError, InputError, SettingsError
from polyvec.llm.function import FunctionLanguageModel
from polyvec.llm.loading import load_language_model

NANO = "polyvec/nano-lm"
TEXT = (
    "Once upon a time there was a little girl who lived in a house by the sea. Every day she went "
    "down to the water and looked at the ships. One morning an old man gave her 4711 coins."
)


@pytest.fixture(scope="module")
def lm():
    return load_language_model(NANO)


def document(text=TEXT, unit=words):
    return Document(text, ((0, len(text)),), tuple(unit(text)))


def plain(lm, before, ids):
    """-log p of each token, from one pass of the model over everything."""
    with torch.inference_mode():
        logits = lm.model.lm(torch.tensor([[*before, *ids]])).logits[0].float()
    found = -logits.log_softmax(-1)[len(before) - 1 : -1]
    return found.gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()


def test_surprisals_are_those_of_a_plain_pass(lm):
    from polyvec.compress.text.scorers.likelihood import _start, surprisals

    ids, spans = lm.tokens.with_offsets(TEXT)
    before = lm.tokens.of_text("What did she get?\n")
    found_spans, found = surprisals(lm, TEXT, before=before)
    assert found_spans == spans
    np.testing.assert_allclose(found, plain(lm, (*_start(lm), *before), ids), atol=1e-3)


def test_a_sentence_alone_is_conditioned_on_nothing_before_it(lm):
    from polyvec.compress.text.scorers.likelihood import surprisals

    _, whole = surprisals(lm, TEXT, parts=sentences(TEXT))
    first, *_, last = sentences(TEXT)
    _, alone = surprisals(lm, TEXT[slice(*first)])
    np.testing.assert_allclose(whole[: len(alone)], alone, atol=1e-3)
    # The last one has the space before it in its first token.
    _, alone = surprisals(lm, " " + TEXT[slice(*last)])
    np.testing.assert_allclose(whole[-len(alone) :], alone, atol=1e-3)


def test_long_texts_are_read_in_windows(lm):
    from polyvec.compress.text.scorers.likelihood import surprisals

    text = f"{TEXT} " * 60
    spans, found = surprisals(lm, text)
    assert len(found) == len(spans) > (lm.model.context or 0) // 2
    assert np.isfinite(found).all()


def test_runs_are_read_after_what_the_runs_before_them_kept(lm):
    from polyvec.compress.text.scorers.likelihood import _start, iterative

    ids, _ = lm.tokens.with_offsets(TEXT)
    _, ranks = iterative(lm, TEXT, 0.5, 16)
    kept = list(_start(lm))
    for start in range(0, 48, 16):
        run = ids[start : start + 16]
        values = plain(lm, kept, run)
        order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        np.testing.assert_allclose(ranks[start : start + 16], (order + 1) / len(run))
        chosen = np.sort(np.argsort(-values, kind="stable")[: round(len(run) / 2)])
        kept += [run[place] for place in chosen]


def test_what_is_kept_has_more_information_than_what_is_dropped(lm):
    scorer = as_scorer({"kind": "self_information", "model": NANO})
    found = TextCompressor(scorer, tokenizer=NANO).compress(TEXT, rate=0.5)
    scores = scorer.scores(document(), Asked())
    kept = np.array([any(a <= s < b for a, b in found.kept) for s, _ in document().units])
    assert scores[kept].mean() > 2 * scores[~kept].mean()
    assert np.median(scores[kept]) > scores[~kept].max()


def test_half_of_the_units_are_those_above_the_median_as_selective_context_keeps_them(lm):
    """The code keeps units of at least the percentile; so do we where each unit is a token."""
    text = "Once upon a time there was a little girl who lived in a small house by the sea"
    scorer = as_scorer({"kind": "self_information", "model": NANO, "condition": "sentence"})
    scores = scorer.scores(document(text), Asked())
    compressor = TextCompressor(scorer, tokenizer=lambda text: len(text.split()))
    found = compressor.compress(text, tokens=len(scores) // 2)
    wanted = [text[a:b] for (a, b), x in zip(words(text), scores, strict=True)
              if x >= np.percentile(scores, 50)]  # fmt: skip
    assert found.text.split() == wanted


@pytest.mark.medium
def test_sentences_by_vectors_are_ranked_as_sentence_transformers_does(minilm_folder):
    """RECOMP's extractive compressor keeps the sentences nearest to the question."""
    from sentence_transformers import SentenceTransformer, util

    model, question = SentenceTransformer(str(minilm_folder), device="cpu"), "Who gave her money?"
    pieces = document(unit=sentences).pieces()
    theirs = util.cos_sim(model.encode([question]), model.encode(pieces))[0].numpy()
    scorer = as_scorer({"kind": "dense", "model": str(minilm_folder)})
    ours = scorer.scores(document(unit=sentences), Asked(question))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_contrast_is_the_difference_of_two_readings(lm):
    from polyvec.compress.text.scorers.likelihood import surprisals

    scorer = as_scorer({"kind": "contrastive", "model": NANO})
    found = scorer.scores(document(), Asked("How many coins?"))
    spans, without = surprisals(lm, TEXT)
    _, given = surprisals(lm, TEXT, before=lm.tokens.of_text("How many coins?\n"))
    np.testing.assert_allclose(found, per_unit(spans, without - given, document().units))


def test_likelihoods_of_question_and_answer_are_the_models(lm):
    asked = Asked("How many coins?", "4711")
    units = document(unit=sentences)
    scorer = as_scorer({"kind": "question_likelihood", "model": NANO, "restriction": ""})
    found = scorer.scores(units, asked)
    pieces = units.pieces()
    theirs = lm.logprobs(pieces, ["\n\nHow many coins?"] * len(pieces))
    if lm.tokens.before:  # a plain prompt begins as the scorer's does
        np.testing.assert_allclose(found, [each.mean() for each in theirs], atol=1e-3)
    gain = as_scorer({"kind": "cxmi", "model": NANO}).scores(units, asked)
    assert gain.shape == (3,) and int(gain.argmax()) == 2


def test_a_question_longer_than_the_model_reads_is_told(lm):
    with pytest.raises(InputError, match="shorten it"):
        as_scorer({"kind": "contrastive", "model": NANO}).scores(document(), Asked("why " * 5000))


def test_a_servers_probabilities_cannot_be_read():
    def answer(prompt):
        return prompt

    scorer = as_scorer("random")
    assert scorer.scores(document(), Asked()).shape == (len(document().units),)
    from polyvec.compress.text.scorers.likelihood import SelfInformation

    with pytest.raises(SettingsError, match="does not give; name a folder"):
        SelfInformation(FunctionLanguageModel(answer)).scores(document(), Asked())


@pytest.mark.medium
@pytest.mark.parametrize("model", ["polyvec/nano-t5", NANO])
def test_a_readers_attention_is_a_share(model):
    scorer = as_scorer({"kind": "cross_attention", "model": model, "how": "sum"})
    found = scorer.scores(document(), Asked("Who gave her coins?"))
    assert (found >= 0).all() and 0.05 < found.sum() < 1.0


class Says(FunctionLanguageModel):
    """Says yes to texts with a number."""

    def score_checked(self, prompts, choices):
        yes = np.array([0.9 if any(map(str.isdigit, each)) else 0.2 for each in prompts])
        return np.stack([yes, 1 - yes], 1)


def test_a_judge_keeps_what_it_says_yes_to():
    scorer = {"kind": "llm", "model": NANO}
    from polyvec.compress.text.scorers.judge import Judge

    made = TextCompressor(Judge(Says(str.upper)), unit="sentence", tokenizer=NANO)
    assert "4711" in made.compress(TEXT, "How many coins?", rate=0.5).text
    assert as_scorer(scorer).needs_question


# ---- models that write --------------------------------------------------------------------------


def writer(kind, function, **settings):
    return kind(FunctionLanguageModel(function, name="t"), tokenizer=NANO, **settings)


def test_a_summary_stays_within_the_budget_and_may_be_empty():
    made = writer(Summary, lambda prompt: "A girl got coins. Then she left the house by the sea.")
    found = made.compress(TEXT, tokens=8)
    assert found.text == "A girl got coins." and found.written and found.num_tokens <= 8
    made = writer(Summary, lambda prompt: "NONE" if "volcano" in prompt else "4711 coins")
    assert made.compress(TEXT, "Where is the volcano?", tokens=20).text == ""
    assert made.compress(TEXT, "How many coins?", tokens=20).text == "4711 coins"


@pytest.mark.medium
def test_a_capsule_is_near_to_the_text_or_refused(minilm):
    good = "A little girl by the sea looked at ships and got coins from an old man."
    made = writer(Capsule, lambda prompt: good, tries=1, min_similarity=0.7, embedder=minilm)
    assert made.compress(TEXT, tokens=30).text == good
    made = writer(Capsule, lambda prompt: "Taxes.", tries=1, min_similarity=0.7, embedder=minilm)
    with pytest.raises(GenerationError, match=r"reached the similarity 0\.7, the best has"):
        made.compress(TEXT, tokens=30)


@pytest.mark.medium
def test_blocks_are_of_like_sentences_in_the_order_of_the_text(minilm):
    cats = ["Cats sleep all day.", "A cat hunts mice.", "My cat purrs."]
    money = ["Banks lend money.", "The bank raised its rates.", "Loans cost interest."]
    text = " ".join(s for pair in zip(cats, money, strict=True) for s in pair)
    made = writer(Blocks, lambda prompt: prompt, size=3, embedder=minilm)
    assert made.blocks([text[a:b] for a, b in sentences(text)]) == [[0, 2, 4], [1, 3, 5]]
    told = writer(
        Blocks,
        lambda prompt: "cats" if "Cats sleep" in prompt else "banks",
        size=3,
        embedder=minilm,
    )
    assert told.compress(text, tokens=10).text == "cats\nbanks"


def test_a_snippet_is_a_piece_of_the_text_whatever_the_model_says():
    made = writer(Snippet, lambda prompt: "the old man gave 4711 gold coins to her")
    found = made.compress(TEXT, "How many coins?", tokens=25)
    assert found.text.startswith("One morning an old man gave her 4711 coins")
    assert found.original[slice(*found.kept[0])] == found.text and not found.written


def test_what_does_not_fit_is_cut_at_a_sentence_or_a_word():
    from polyvec.compress.text.tokens import TokenCounter

    counter = TokenCounter(lambda text: len(text.split()))
    assert fitting("One two. Three four five. Six.", 5, counter) == "One two. Three four five."
    assert fitting("One two three four.", 2, counter) == "One two"
    assert fitting("One", 0, counter) == ""


@pytest.mark.slow
def test_contrast_keeps_the_answer_of_key_value_contexts(smollm2):
    """Above 90 % at a quarter of the tokens; chance keeps about a quarter."""
    import random

    draw = random.Random(5)
    names = ["Ann", "Bob", "Cleo", "Dan", "Eve", "Finn"]
    filler = "Ships came and went over the bay. The streets were quiet, and cats slept. "
    made = TextCompressor(
        {"kind": "contrastive", "condition": "sentence", "how": "sum", "model": str(smollm2)},
        unit="sentence",
        exact=True,
    )
    kept = 0
    for number in range(20):
        codes = {name: str(draw.randrange(1000, 10000)) for name in names}
        text = " ".join(f"The code of {n} is {c}. {filler}" for n, c in codes.items())
        name = names[number % 6]
        kept += codes[name] in made.compress(text, f"What is the code of {name}?", rate=0.25).text
    assert kept > 18
