"""Steps that score by a model: log-probabilities, the best rows, fused ranks, self-training."""

import numpy as np
import pytest

from polyvec.data.texts import Record
from polyvec.errors import SettingsError
from polyvec.llm.language_model import LanguageModel
from polyvec.synthesize.rows import Row
from polyvec.synthesize.run import parts
from polyvec.synthesize.step import Tools
from polyvec.synthesize.steps.ranking import fused


class SharedWords(LanguageModel):
    """Finds tokens likely that stand in the prompt: log-probability -1, others -3."""

    identity = "shared words"

    def stream_checked(self, prompts, settings):
        raise AssertionError("nothing is to be written")

    def logprobs_checked(self, prompts, continuations):
        def of(prompt, text):
            own = prompt.rsplit("Document:", 1)[-1].lower()
            return np.array([-1.0 if w in own else -3.0 for w in text.lower().split()], np.float32)

        return [of(*pair) for pair in zip(prompts, continuations, strict=True)]


def one(kind, rows, tools=None, **settings):
    return parts().build(kind, settings, where="test").run(rows, tools or Tools())


TOOLS = Tools(language_model=lambda name: SharedWords())
GOOD = [f"flow of river{i}" for i in range(6)]
ROWS = [
    Row(
        GOOD[i] if i % 2 else "unrelated words entirely",
        f"the flow of river{i}",
        meta={"id": str(i)},
    )
    for i in range(6)
]


def test_log_probability_keeps_exactly_the_likeliest_in_their_order():
    found = one("log_probability", ROWS, TOOLS, prompt="inpars", keep=3)
    assert [row.id for row in found.kept] == ["1", "3", "5"]
    assert found.kept[0].meta["log_probability"] == -1.0
    assert found.rejected[0].reason == "log-probability not among the 3 highest: -3.000"
    # Ties are kept first come.
    assert [r.id for r in one("log_probability", ROWS, TOOLS, prompt="inpars", keep=0.34).kept] == [
        "1",
        "3",
    ]
    assert len(one("log_probability", ROWS, TOOLS, prompt="inpars", at_least=-2.0).kept) == 3


def test_planted_bad_pairs_are_ordered_below_good_ones():
    """AUC of the mean log-probability."""
    kept = one("log_probability", ROWS, TOOLS, prompt="inpars", at_least=-99.0).kept
    scores = {row.id: row.meta["log_probability"] for row in kept}
    good, bad = ([s for i, s in scores.items() if int(i) % 2 == odd] for odd in (1, 0))
    assert all(g > b for g in good for b in bad)


def overlap(pairs):
    """A reranker: words in common."""
    return [len(set(query.split()) & set(text.split())) for query, text in pairs]


@pytest.fixture
def reranker():
    return Tools(language_model=lambda name: SharedWords(), cross_encoder=lambda name: overlap)


def test_the_best_rows_by_a_reranker(reranker):
    judge = {"kind": "cross_encoder", "name": "mine"}
    found = one("best", ROWS, reranker, judge=judge, keep=3)
    assert [row.id for row in found.kept] == ["1", "3", "5"]
    assert one("best", ROWS, reranker, judge=judge, keep=0.5).kept == found.kept


def test_reciprocal_rank_fusion_by_hand():
    # Ranks (1, 3), (2, 1), (3, 2): 1/61 + 1/63, 1/62 + 1/61, 1/63 + 1/62.
    assert fused([np.array([3.0, 2.0, 1.0]), np.array([1.0, 3.0, 2.0])]) == [1, 0, 2]


def test_a_better_passage_than_the_seed_becomes_the_positive(reranker):
    """Gecko: one is planted; the last of the ranking is the hard negative."""
    better, worse = "the long flow of river1", "the snow"
    row = Row("long flow of river1", "the flow", meta={"id": "1", "retrieved": [better, worse]})
    signals = [{"kind": "likelihood", "prompt": "inpars"}, {"kind": "cross_encoder", "name": "x"}]
    (made,) = one("rerank", [row], reranker, signals=signals).kept
    assert (made.positive, made.negatives) == (better, (worse,))
    assert made.meta["seed_positive"] == "the flow"
    (made,) = one("rerank", [row], reranker, signals=signals, negative=2).kept
    assert made.negatives == ("the flow",)
    found = one("rerank", [Row("a", "b")], reranker, signals=signals)
    assert "put a step 'retrieve' before" in found.rejected[0].reason
    with pytest.raises(SettingsError, match="a rank from 2"):
        one("rerank", [], signals=signals, negative=1)


def test_retrieved_documents_and_mined_negatives_by_shared_words():
    rows = [
        Row(f"where is town{i}", f"town{i} is where a river ends", meta={"id": str(i)})
        for i in range(4)
    ]
    tools = Tools(texts=[Record("x", "town2 is here"), Record("y", "nothing")])
    found = one("retrieve", rows, tools, by="bm25", k=2).kept[2]
    assert set(found.meta["retrieved"]) == {"town2 is here", "town2 is where a river ends"}
    mining = {"candidates": "bm25", "num_negatives": 1}
    mined = one("mine", rows, tools, mining=mining).kept[2]
    assert mined.negatives == ("town2 is here",)


def test_masked_words():
    row = Row("one two three four five", meta={"id": "7"})
    kept = one("mask_words", [row], rates=[0.2, 1.0], merge=0.0).kept
    assert kept[0].meta["masked"].split().count("<mask>") == 1
    assert kept[1].meta["masked"] == " ".join(["<mask>"] * 5)
    assert one("mask_words", [row], rates=[1.0], merge=1.0).kept[0].meta["masked"] == "<mask>"
    assert [each.id for each in kept] == ["7.0.2", "7.1"]


@pytest.mark.medium
def test_a_retriever_trained_on_the_rows_finds_more_of_them():
    """Arbitrary names for documents: only training on the rows can tell which is which."""
    from polyvec import load_recipe

    names = ["apple", "bridge", "candle", "desert", "engine", "forest", "garden", "harbor"]
    others = ["seven", "music", "paper", "silver", "winter", "doctor", "yellow", "castle"]
    rows = [Row(a, f"{b} {b}", meta={"id": a}) for a, b in zip(names, others, strict=True)]
    embedder = load_recipe("causal-mean").build("nano")
    before = embedder.encode(["apple"])
    tools = Tools(embedder=lambda name: embedder)
    plain = one("round_trip", rows, tools)
    training = {"max_steps": 60, "batch_size": 8, "learning_rate": 1e-3}
    trained = one("round_trip", rows, tools, train=training)
    assert len(trained.kept) > len(plain.kept) + 2
    np.testing.assert_array_equal(embedder.encode(["apple"]), before)  # it was a copy


def test_a_server_that_fails_every_seventh_call_loses_and_doubles_nothing(tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="needs the extra 'llm'")
    from openai_server import OpenAIServer

    from polyvec.llm.server import ServerLanguageModel
    from polyvec.synthesize.models import Models
    from polyvec.synthesize.run import build_steps, run_steps
    from polyvec.synthesize.sections import StepSettings

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    prompt = 'source = "ours"\ntemplate = "{text}"\n[slots.text]\nfield = "positive"\n'
    (tmp_path / "ask.toml").write_text(prompt)
    texts = [f"text {i}{' ! 500' if i % 7 == 6 else ''}" for i in range(28)]
    generate = StepSettings("generate", {"prompt": str(tmp_path / "ask.toml")})
    steps = build_steps([StepSettings("texts"), generate], "test")
    records = [Record(str(i), text) for i, text in enumerate(texts)]
    kept = []
    with OpenAIServer() as server:
        for _ in range(3):
            models = Models(tmp_path / "out", "m", lambda name: None)
            model = ServerLanguageModel(server.url, max_retries=0, timeout_s=5)
            models.loaded["m"] = models.wrapped(model)
            kept.append(run_steps(steps, models.tools(records), tmp_path / "out").rows)
        asked = dict(server.attempts)
    assert [len(rows) for rows in kept] == [24, 28, 28]
    assert [row.id for row in kept[1]] == [str(i) for i in range(28)]
    assert asked == {text: 2 if "!" in text else 1 for text in texts}
