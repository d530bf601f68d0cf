"""Proximal policy optimisation, AdaptCL's reward, and the steps that use them."""

import math
from typing import Annotated

import numpy as np
import pytest
import torch

from polyvec.errors import DataError, GenerationError, SettingsError
from polyvec.llm.local import LocalLanguageModel
from polyvec.llm.server.model import ServerLanguageModel
from polyvec.registry import Fact
from polyvec.synthesize import ppo_losses, rewards
from polyvec.synthesize.ppo import Policy, PPOSettings, _learn, _rollout, optimise
from polyvec.synthesize.spending import Budget
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
    found = ppo_losses.gae_advantages(
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
        found = ppo_losses.ppo_loss(new, old, torch.full((1, 1), advantage), mask, 0.2)
        assert float(found) == pytest.approx(loss)
    moved = ppo_losses.value_loss(torch.full((1, 1), 1.0), old, torch.full((1, 1), 1.0), mask, 0.2)
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


@pytest.mark.medium
def test_a_rate_that_is_too_high_says_so(tmp_path):
    with pytest.raises(DataError, match=r"the loss is (nan|inf) in batch \d; lower learning_rate"):
        run(tmp_path / "c", steps=4, batch_size=2, learning_rate=1e9, max_new_tokens=2)


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
    assert rewards.cleaned("\nIt is so.\n") == ("It is so.", 0.5)  # a line break around it is none
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
    ready = {**asked, "reward": {"kind": f"{__name__}:Longer"}}
    with pytest.raises(SettingsError, match="tunes a model of this machine, not server:http"):
        runs([texts, ready], ["A text."], ServerLanguageModel("http://127.0.0.1:9/v1", "m"))
    later = {**asked, "reward": {"kind": "adaptcl", "embedder": "run:encoder"}}
    with pytest.raises(SettingsError, match=r"\[step 2\]: no step before makes 'run:encoder'"):
        runs([texts, later], ["A text."])
    near = {"kind": "generate", "prompt": "adaptcl_positive", "model": "run:generater"}
    with pytest.raises(SettingsError, match="Did you mean 'generator'"):
        runs([texts, ready, near], ["A text."])
    for wrong in ({"max_steps": 0}, {"max_steps": 1, "learning_rate": -1.0}):
        with pytest.raises(SettingsError, match="must be above 0"):
            runs([texts, {"kind": "train_embedder", "train": wrong}], ["A text."])
    with pytest.raises(SettingsError, match="clear has 'anchor'"):
        runs([texts, {"kind": "train_embedder", "train": {"max_steps": 1}, "clear": ["anchor"]}])


@pytest.mark.medium
def test_a_budget_that_ends_keeps_what_was_learnt(tmp_path):
    """The checkpoint is saved where the next batch is refused, and the next call goes on there."""
    short = {"steps": 3, "learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "mini_batch_size": 2}
    whole, curve = run(tmp_path / "whole", **short)
    left = [10]

    def take(num):
        left[0] -= num
        if left[0] < 0:
            raise GenerationError("spent")

    policy = Policy(nano(), PPOSettings(**{**QUICK, **short}))
    prompts = [policy.model.tokens.of_prompt(text, "test") for text in STARTS]
    with pytest.raises(GenerationError, match="spent"):
        optimise(policy, prompts, says_the, Checkpoint(tmp_path / "cut", "k"), take=take)
    again, resumed = run(tmp_path / "cut", **short)
    assert resumed == curve
    assert all(torch.equal(each, again.named[name]) for name, each in whole.named.items())


@pytest.mark.medium
def test_the_step_counts_its_answers_and_goes_on_with_a_higher_budget(runs):
    ppo = {"steps": 2, "batch_size": 2, "mini_batch_size": 2, "epochs": 1, "max_new_tokens": 3}
    asked = {
        "kind": "ppo",
        "prompts": {"positive": "adaptcl_positive"},
        "reward": {"kind": f"{__name__}:Longer"},
        "ppo": ppo,
    }
    steps, texts = [{"kind": "texts", "to": "anchor"}, asked], ["A cat sat.", "One. " * 500]
    part = runs(steps, texts, nano(), budget=Budget.parse("3"))
    assert part.unfinished == "step 2 (ppo) was not done, the budget does not suffice for it"
    assert runs.models.spent.prompts == 2
    assert (runs.folder / "out/models/generator.ckpt").is_file()
    whole = runs(steps, texts, nano(), budget=Budget.parse("2"))
    assert whole.unfinished is None and whole.reports[1].asked == 2
    # A text that does not fit is left out; if none does, nothing can be learnt.
    with pytest.raises(DataError, match="all 1 prompts have more than 509 tokens"):
        runs(steps, texts[1:], nano(), output="long")
    with pytest.raises(SettingsError, match="give --budget in calls"):
        money = {"prompt_price": 1.0, "new_price": 1.0}
        runs(steps, texts, nano(), Budget.parse("2.5"), "money", **money)


class Longer:
    """A reward of the step's user: how long an answer is."""

    def __init__(self, tools: Annotated[Tools, Fact("tools")]) -> None:
        pass

    def __call__(self, anchors, wanted, answers):
        return np.array([len(each) for each in answers], float)


def test_an_answer_ends_with_the_token_that_was_drawn():
    """Of a model with several ends each is itself: the one that was drawn is learnt from."""
    policy = Policy(nano(), PPOSettings(**QUICK))
    policy.model.ends = frozenset(range(policy.model.model.num_logits))
    prompts = [policy.model.tokens.of_prompt(text, "test") for text in STARTS]
    found = policy.write(prompts, "seed")
    assert {len(each) for each in found} == {1} and len(set(found)) > 1


@pytest.mark.parametrize(("accumulate", "num_steps"), [(1, 6), (2, 4), (4, 2)])
def test_gradients_of_so_many_parts_are_averaged_for_a_step(accumulate, num_steps):
    """Three parts a pass, two passes: AdaptCL's 4 parts of 8 make one step a pass."""
    quick = {"batch_size": 3, "mini_batch_size": 1, "epochs": 2, "max_new_tokens": 2, "rank": 2}
    policy = Policy(nano(), PPOSettings(accumulate=accumulate, **quick))
    steps = []

    class Counted(torch.optim.SGD):
        def step(self):
            steps.append(1)

    prompts = [policy.model.tokens.of_prompt(text, "test") for text in STARTS[:3]]
    batch, _ = _rollout(policy, prompts, [0, 1, 2], says_the, 0.0, 0)
    _learn(policy, batch, Counted(list(policy.named.values()), lr=0.1), 0)
    assert len(steps) == num_steps


@pytest.mark.medium
def test_the_relation_is_what_a_real_classifier_finds(tmp_path):
    """A classifier of three classes, by its own logits: what its reward adds is label_reward."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers", reason="needs the extra 'train'")
    tokens = nano().tokens.tokenizer
    tokens.pad_token = tokens.eos_token
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokens.pad_token_id,
        id2label={0: "contradiction", 1: "entailment", 2: "neutral"},
        initializer_range=1.0,
    )
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    anchors = ["A man plays a flute in the park.", "A dog runs on the beach today."] * 2
    answers = ["In parks, some men play flutes.", "A dog sleeps.", "No.", "\nThe dog is there."]
    wanted = ["positive", "negative", "negative", "positive"]
    made = [
        rewards.build_reward({"kind": "adaptcl", **more}, Tools(embedder=lambda n: Rule()), "test")
        for more in ({}, {"nli": str(tmp_path)})
    ]
    plain, judged = (each(anchors, wanted, answers) for each in made)
    expected = []
    for anchor, label, answer in zip(anchors, wanted, answers, strict=True):
        inputs = tokens(anchor, answer.strip(), return_tensors="pt")
        logits = model(**inputs).logits[0].tolist()
        named = dict(zip(("contradict", "entail", "neutral"), logits, strict=True))
        expected.append(0.0 if len(answer) < 5 else rewards.label_reward(named, label))
    assert judged - plain == pytest.approx(np.array(expected), abs=1e-3)
    assert made[1].depends == ["rule", str(tmp_path)]
