"""Proximal policy optimisation, AdaptCL's reward, and the steps that use them."""

import math

import numpy as np
import pytest
import torch

from polyvec.errors import DataError, SettingsError
from polyvec.llm.local import LocalLanguageModel
from polyvec.synthesize import ppo, rewards
from polyvec.synthesize.ppo import Policy, PPOSettings, optimise
from polyvec.synthesize.step import Tools
from polyvec.synthesize.tuned import Checkpoint

STARTS = ["The cat", "A river", "In the", "My house", "He went", "She saw"]
QUICK = {"batch_size": 12, "mini_batch_size": 6, "max_new_tokens": 6, "rank": 8, "horizon": 0}


def nano():
    return LocalLanguageModel.load("polyvec/nano-lm")


def says_the(numbers, answers):
    """A reward that is easy to learn: how often "the" occurs."""
    return np.array([answer.count(" the") for answer in answers], float)


def run(path, judge=says_the, **settings):
    policy = Policy(nano(), PPOSettings(**{**QUICK, **settings}))
    prompts = [policy.model.tokens.of_prompt(text, "test") for text in STARTS]
    return policy, optimise(policy, prompts, judge, Checkpoint(path, "k"))


def test_advantages_by_hand():
    """Two tokens, a reward of 1 at the end, values 0.5 and 0.25, gae 0.5, discount 1."""
    found = ppo.gae_advantages(
        torch.tensor([[0.0, 1.0, 9.0]]),
        torch.tensor([[0.5, 0.25, 9.0]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
        discount=1.0,
        gae=0.5,
    )
    assert found[0].tolist() == [[-0.25 + 0.5 * 0.75, 0.75, 0.0]]
    assert found[1].tolist() == [[0.625, 1.0, 0.0]]


def test_the_objective_is_clipped_where_it_would_gain():
    old, mask = torch.zeros(1, 1), torch.ones(1, 1)
    for ratio, advantage, loss in ((1.5, 1.0, -1.2), (0.5, 1.0, -0.5), (0.5, -1.0, 0.8)):
        new = torch.full((1, 1), math.log(ratio))
        found = ppo.ppo_loss(new, old, torch.full((1, 1), advantage), mask, 0.2)
        assert float(found) == pytest.approx(loss)
    moved = ppo.value_loss(torch.full((1, 1), 1.0), old, torch.full((1, 1), 1.0), mask, 0.2)
    assert float(moved) == pytest.approx(0.5 * 0.8**2)


@pytest.mark.medium
def test_the_reward_rises_and_the_divergence_is_bounded_by_its_weight(tmp_path):
    quick = {"steps": 9, "learning_rate": 5e-3, "warmup_steps": 1, "epochs": 3}
    free = run(tmp_path / "a", **quick, kl=0.0)[1]
    held = run(tmp_path / "b", **quick, kl=2.0)[1]
    first, last = (np.mean([p.reward for p in part]) for part in (free[:3], free[-3:]))
    assert last > first + 0.5
    drift = [np.mean([p.kl for p in curve[-3:]]) for curve in (free, held)]
    assert drift[1] < drift[0] / 3


@pytest.mark.medium
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    short = {"steps": 3, "save_steps": 1, "learning_rate": 1e-3, "epochs": 1, "batch_size": 4}
    whole, curve = run(tmp_path / "whole", **short)
    calls = []

    def cut(numbers, answers):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return says_the(numbers, answers)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", cut, **short)
    again, resumed = run(tmp_path / "cut", **short)
    assert resumed == curve
    assert all(torch.equal(each, again.named[name]) for name, each in whole.named.items())
    with pytest.raises(DataError, match="expected 4 finite numbers"):
        run(tmp_path / "nan", lambda numbers, answers: np.full(len(answers), np.nan), **short)


def test_without_its_adapter_the_policy_is_its_reference(tmp_path):
    """At the start both are the same; the first batch then has no divergence."""
    policy, curve = run(tmp_path / "c", steps=1, epochs=1, batch_size=4)
    assert curve[0].kl == 0.0
    texts = [policy.model.tokens.of_prompt("The cat sat on the mat", "test")]
    with torch.no_grad():
        before = policy.read(texts, [2])[0]
        policy.merged()
        assert torch.allclose(before, policy.read(texts, [2])[0], atol=1e-5)


def test_the_reward_of_similarity_is_the_papers():
    for cosine, wanted, value in (
        (0.85, "positive", 0.0),
        (0.75, "positive", 1.5),
        (0.95, "positive", -1.5),
        (0.5, "positive", -5.25),
        (0.75, "negative", 1.5),
    ):
        assert rewards.similarity_reward(cosine, wanted) == pytest.approx(value)
    sure = {"contradict": -9.0, "entail": 9.0, "neutral": 0.0}
    assert rewards.label_reward(sure, "positive") == pytest.approx(30 * 0.07, abs=0.01)
    assert rewards.label_reward(sure, "negative") == pytest.approx(1.5 * -9.0)
    unsure = {"contradict": 0.0, "entail": -1.0, "neutral": 1.0}
    assert rewards.label_reward(unsure, "negative") == -1.0


def test_the_reward_of_form_is_the_papers():
    anchor = "A man is playing a flute in the park."
    assert rewards.cleaned("It is so.\nNote: x") == ("It is so.", -1.5)
    assert rewards.cleaned("It is so. Note: x") == ("It is so.", -1.0)
    assert rewards.form_reward("Hm", anchor, 9.0) == -7.0
    assert rewards.form_reward("Ein Männchen spielt Flöte.", anchor, 9.0) == -8.0
    assert rewards.form_reward(anchor, anchor, 9.0) == -5.0 + 1.0  # a copy
    other = "In the park a man plays the flute today."
    assert rewards.form_reward(other, anchor, 2.0) == 3.0
    assert rewards.form_reward(other[:-1], anchor, 2.0) == 2.0 - 3.5


class Rule:
    """An embedder of letters' counts."""

    def encode_iter(self, texts, options):
        yield np.array([[text.lower().count(c) for c in "aeiourstn"] for text in texts], float)

    def fingerprint(self):
        return "rule"


def test_a_paraphrase_is_worth_more_than_a_copy():
    made = rewards.build_reward({"kind": "adaptcl"}, Tools(embedder=lambda name: Rule()), "test")
    anchor = "A man is playing a large flute in the park."
    found = made([anchor] * 2, ["positive"] * 2, ["In parks, some men play big flutes.", anchor])
    assert found[0] > found[1]
    assert made.depends == ["rule", ""]
    with pytest.raises(SettingsError, match="reward has no kind"):
        rewards.build_reward({}, Tools(), "test")


def test_mistakes_are_one_line(runs):
    asked = {"kind": "ppo", "prompts": {"positive": "adaptcl_positive"}}
    texts = {"kind": "texts", "to": "anchor"}
    for more, match in (
        ({"reward": {"kind": "adaptcl"}, "ppo": {"steps": 0}}, "steps 0 must be 1 or more"),
        ({"reward": {}}, "reward has no kind"),
        ({"reward": {"kind": "adaptc"}}, "Did you mean 'adaptcl'"),
        ({"reward": {"kind": "adaptcl"}, "prompts": {"other": "x"}}, "expected 'positive'"),
        ({"reward": {"kind": "adaptcl"}, "ppo": {"stepz": 1}}, "Did you mean 'steps'"),
    ):
        with pytest.raises(SettingsError, match=match):
            runs([texts, {**asked, **more}], ["A text."])
    with pytest.raises(SettingsError, match="clear has 'anchor'"):
        runs([texts, {"kind": "train_embedder", "train": {"max_steps": 1}, "clear": ["anchor"]}])
