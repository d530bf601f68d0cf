"""Scores of choices from a server's list of likeliest tokens."""

import math

import numpy as np
import pytest
from openai_server import OpenAIServer

from polyvec.errors import GenerationError, InputError
from polyvec.llm.cache import CachedLanguageModel
from polyvec.llm.server import ServerLanguageModel

pytest.importorskip("openai", reason="needs the extra 'llm'")


def logs(**probabilities):
    return {token: math.log(value) for token, value in probabilities.items()}


def chats(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


@pytest.mark.parametrize("prompts", [chats("a ! length", "b ! 429"), ["a", "b ! 429"]])
def test_scores_are_shares_of_the_first_token(prompts):
    with OpenAIServer(top_logprobs=logs(Yes=0.6, No=0.2, Well=0.1)) as server:
        model = ServerLanguageModel(server.url)
        scores_NC = model.score(prompts, ["No", "Yes"])
        np.testing.assert_allclose(scores_NC, [[0.25, 0.75]] * 2, rtol=1e-6)
        assert scores_NC.dtype == np.float32
        body = server.posts()[-1]["body"]
        assert body["max_tokens"] == 1
        assert (body["logprobs"], body.get("top_logprobs")) in [(True, 20), (20, None)]
        assert model.usage.prompts == 2 and not model.usage.problems
        assert model.score([], ["No", "Yes"]).shape == (0, 2)


def test_openais_completions_are_asked_for_five(monkeypatch):
    """The most that its reference allows; the drawn token may be a sixth, which is no bound."""
    monkeypatch.setattr("polyvec.llm.server.bodies.OPENAI_HOST", "127.0.0.1")
    likely = logs(Yes=0.5, No=0.2, Well=0.1, So=0.1, Oh=0.09, Zebra=1e-9)
    with OpenAIServer(top_logprobs=likely) as server:
        model = ServerLanguageModel(server.url)
        np.testing.assert_allclose(model.score(["a"], ["Yes", "No"]), [[5 / 7, 2 / 7]], rtol=1e-6)
        assert server.posts()[-1]["body"]["logprobs"] == 5
        with pytest.raises(GenerationError, match="'Maybe' is not among"):
            model.score(["a"], ["Yes", "Maybe"])
        model.score(chats("a"), ["Yes", "No"])
        assert server.posts()[-1]["body"]["top_logprobs"] == 20


def test_a_choice_that_is_not_listed():
    """Counts as 0 where that is wrong by less than a hundredth, else is an error."""
    with OpenAIServer(top_logprobs=logs(Yes=0.99, Well=0.009, So=0.001)) as server:
        model = ServerLanguageModel(server.url)
        np.testing.assert_allclose(model.score(chats("a"), ["Yes", "No"]), [[1, 0]])
        with pytest.raises(GenerationError, match=r"prompts\[0\].*'irrelevant' is not among the 3"):
            model.score(chats("a"), ["relevant", "irrelevant"][::-1])
        server.top_logprobs = logs(Yes=0.5, Well=0.1)
        with pytest.raises(GenerationError, match="'No' is not among the 2 likeliest"):
            model.score(chats("a"), ["Yes", "No"])


def test_servers_without_probabilities():
    with OpenAIServer() as server:
        model = ServerLanguageModel(server.url)
        with pytest.raises(GenerationError, match="lists no probabilities"):
            model.score(chats("a"), ["Yes", "No"])
        with pytest.raises(GenerationError, match="no log-probabilities of a given text"):
            model.logprobs(["a"], [" b"])
        with pytest.raises(InputError, match=r"choices\[1\]"):
            model.score(["a"], ["Yes", ""])


def test_scores_are_kept(tmp_path):
    with OpenAIServer(top_logprobs=logs(Yes=0.6, No=0.2)) as server:
        model = CachedLanguageModel(ServerLanguageModel(server.url), tmp_path)
        first_NC = model.score(["a", "b", "a"], ["Yes", "No"])
        assert len(server.posts()) == 2
        again_NC = model.score(["b", "a", "c"], ["Yes", "No"])
        assert len(server.posts()) == 3
        np.testing.assert_array_equal(first_NC, again_NC)


def test_scores_of_a_model_that_is_not_there():
    with OpenAIServer() as server:
        model = ServerLanguageModel(server.url, "other")
        with pytest.raises(GenerationError, match="check the model's name"):
            model.score(["a"], ["Yes", "No"])
