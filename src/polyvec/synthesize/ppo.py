"""Proximal policy optimisation of a language model by a reward of what it writes.

Schulman et al. 2017 (arXiv:1707.06347), as Ziegler et al. 2019 (arXiv:1909.08593) and trl's first
PPOTrainer have it for texts. B texts of a batch, S tokens of the longest answer, T of the longest
text, D state size, V vocabulary.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.embed.backbone.decoding import Decoder, Request
from polyvec.embed.backbone.drawing import Drawing
from polyvec.embed.backbone.heads import own_logits
from polyvec.embed.backbone.modes import evaluating
from polyvec.embed.formats.adapters import NAME, merge_adapter
from polyvec.errors import DataError, PolyvecError, SettingsError
from polyvec.llm.local import LocalLanguageModel
from polyvec.synthesize.ppo_losses import gae_advantages, ppo_loss, value_loss, whitened
from polyvec.synthesize.tuned import Checkpoint, optimizer_tensors, restore_optimizer

# Takes the numbers of a batch's prompts and the answers to them; a reward each.
Judge = Callable[[Sequence[int], Sequence[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class PPOSettings:
    """How a model is optimised; the defaults are AdaptCL's, or trl's where it sets nothing.

    steps: batches of answers, each learnt from in `epochs` passes. mini_batch_size: texts that are
    read at a time; the gradients of `accumulate` such are averaged for a step of AdamW. kl: the
    weight of the divergence from the model as it was, which moves towards `target_kl` nats an
    answer (`horizon` answers; 0 keeps the weight). clip: of ratios and of changes of values.
    warmup_steps: then the rate falls as a cosine over 4 * steps. rank, alpha, dropout, targets:
    of the LoRA adapter that is trained. save_steps: batches between two checkpoints.
    """

    steps: int = 625
    batch_size: int = 32
    mini_batch_size: int = 8
    accumulate: int = 4
    epochs: int = 4
    learning_rate: float = 1.41e-5
    warmup_steps: int = 20
    kl: float = 0.2
    target_kl: float = 6.0
    horizon: int = 10000
    clip: float = 0.2
    value_weight: float = 0.1
    discount: float = 1.0
    gae: float = 0.95
    max_new_tokens: int = 48
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    save_steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "mini_batch_size", "epochs", "max_new_tokens", "rank")
        for name in (*counts, "accumulate", "save_steps"):
            if getattr(self, name) < 1:
                raise SettingsError(f"ppo: {name} {getattr(self, name)} must be 1 or more")
        for name in ("learning_rate", "clip", "target_kl"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"ppo: {name} {getattr(self, name)} must be above 0")
        if self.kl < 0 or self.horizon < 0 or not 0 <= self.dropout < 1:
            raise SettingsError("ppo: kl, horizon and dropout must be 0 or more, dropout below 1")


@dataclass(frozen=True, slots=True)
class Point:
    """Of a batch: the mean reward, the mean divergence from the reference in nats an answer."""

    reward: float
    kl: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts with their answers, and what the policy and its reference gave them."""

    texts: list[tuple[int, ...]]
    num_prompt: list[int]
    mask_BS: Tensor
    old_BS: Tensor
    values_BS: Tensor
    advantages_BS: Tensor
    returns_BS: Tensor


class Policy:
    """A model with a LoRA adapter and a head of values; without the adapter it is its reference.

    The model is changed in place: give one that nothing else uses.
    """

    def __init__(self, model: LocalLanguageModel, settings: PPOSettings) -> None:
        import peft

        from polyvec.train.adapter_kinds import linear_targets

        self.model, self.settings = model, settings
        lm: Any = model.model.lm
        self.lm = lm
        self.device = model.model.device
        self.lm.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            config = peft.LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=linear_targets(self.lm, settings.targets),
            )
            self.lm.add_adapter(config, adapter_name=NAME)
        size = int(self.lm.get_input_embeddings().weight.shape[1])
        self.head = nn.Linear(size, 1, device=self.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        named = [(n, p) for n, p in self.lm.named_parameters() if NAME in n.split(".")]
        self.named = {**dict(named), **{f"head.{n}": p for n, p in self.head.named_parameters()}}
        for each in self.named.values():
            each.requires_grad_(True)

    def write(self, prompts: Sequence[tuple[int, ...]], seed: str) -> list[tuple[int, ...]]:
        """An answer to each prompt, drawn at temperature 1, with the end of the text if drawn."""
        decoder = Decoder(
            self.model.model,
            self.model.ends,
            batch_size=self.model.batch_size,
            batch_tokens=self.model.batch_tokens,
        )
        places = {}
        for number, ids in enumerate(prompts):
            digest = hashlib.sha256(f"{seed} {number} {ids}".encode()).digest()
            drawing = Drawing(1.0, seed=int.from_bytes(digest[:8], "big") >> 1)
            places[Request(ids, self.settings.max_new_tokens, drawing)] = number
        found: dict[int, tuple[int, ...]] = {}
        with evaluating(self.lm):
            for request in decoder.decode(places):
                if request.error is not None:
                    raise DataError(f"ppo: {request.error}")
                end = () if request.end is None else (request.end,)
                found[places[request]] = (*request.new_ids, *end)
        return [found[number] for number in range(len(prompts))]

    def read(
        self, texts: Sequence[tuple[int, ...]], num_prompt: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and values of the answers' tokens, and which are real: [B, S] each."""
        longest = max(map(len, texts))
        ids_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, text in enumerate(texts):
            ids_BT[row, : len(text)] = torch.tensor(text)
            mask_BT[row, : len(text)] = 1
        ids_BT, mask_BT = ids_BT.to(self.device), mask_BT.to(self.device)
        counts = [len(text) - num for text, num in zip(texts, num_prompt, strict=True)]
        steps_S = torch.arange(max(counts), device=self.device)
        starts_B = torch.tensor(num_prompt, device=self.device)
        mask_BS = steps_S < torch.tensor(counts, device=self.device)[:, None]
        # A token is predicted by the state before it.
        places_BS = (starts_B[:, None] - 1 + steps_S).clamp(max=longest - 2)
        rows_B1 = torch.arange(len(texts), device=self.device)[:, None]
        states_BSD, logits_BSV = self._states(ids_BT, mask_BT, rows_B1, places_BS)
        chosen_BS = ids_BT[rows_B1, places_BS + 1]
        logp_BS = logits_BSV.log_softmax(-1).gather(-1, chosen_BS[..., None])[..., 0]
        return logp_BS * mask_BS, self.head(states_BSD)[..., 0] * mask_BS, mask_BS.float()

    def _states(
        self, ids_BT: Tensor, mask_BT: Tensor, rows_B1: Tensor, places_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States and logits at these places, in float32: [B, S, D] and [B, S, V]."""
        given = {"input_ids": ids_BT, "attention_mask": mask_BT, "use_cache": False}
        if self.model.model.own_head:  # logits of the prompts are not needed
            states_BSD = self.lm.base_model(**given).last_hidden_state[rows_B1, places_BS]
            return states_BSD.float(), own_logits(self.lm, states_BSD).float()
        out = self.lm(**given, output_hidden_states=True)
        states_BSD = out.hidden_states[-1][rows_B1, places_BS]
        return states_BSD.float(), out.logits[rows_B1, places_BS].float()

    def merged(self) -> Any:
        """The language model with the adapter added to its weights."""
        merge_adapter(self.lm)
        return self.lm


def optimise(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    judge: Judge,
    checkpoint: Checkpoint,
    *,
    take: Callable[[int], None] = lambda num: None,
    say: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Optimise the policy on prompts drawn in order of the seed; the curve, a point a batch.

    A call that was interrupted goes on at its last checkpoint, with the same result. take: called
    with the number of answers before a batch is written; if it raises, a checkpoint is saved
    first. say: called after each batch, and for those of a checkpoint. Raises DataError for a
    reward that is not finite.
    """
    settings = policy.settings
    optimizer = torch.optim.AdamW(list(policy.named.values()), lr=settings.learning_rate)
    weight, curve = settings.kl, list[Point]()
    if (found := checkpoint.load()) is not None:
        tensors, values = found
        with torch.no_grad():
            for name, weights in policy.named.items():
                weights.copy_(tensors[name])
        restore_optimizer(optimizer, tensors)
        weight, curve = values["kl"], [Point(*each) for each in values["curve"]]
        for each in curve:
            say(each)

    def save() -> None:
        told = {"kl": weight, "curve": [(each.reward, each.kl) for each in curve]}
        checkpoint.save({**policy.named, **optimizer_tensors(optimizer)}, told)

    while len(curve) < settings.steps:
        step = len(curve)
        try:
            take(settings.batch_size)
        except PolyvecError:
            save()
            raise
        numbers = drawn(len(prompts), settings, step)
        batch, point = _rollout(policy, [prompts[i] for i in numbers], numbers, judge, weight, step)
        for group in optimizer.param_groups:
            group["lr"] = _rate(settings, step)
        with torch.random.fork_rng(devices=_devices(policy.device)):
            torch.manual_seed(settings.seed * 1_000_003 + step)
            _learn(policy, batch, optimizer, step)
        if settings.horizon:
            error = min(max(point.kl / settings.target_kl - 1, -0.2), 0.2)
            weight *= 1 + error * len(numbers) / settings.horizon
        curve.append(point)
        if len(curve) % settings.save_steps == 0 or len(curve) == settings.steps:
            save()
        say(point)
    return curve


def _devices(device: torch.device) -> list[torch.device]:
    return [] if device.type == "cpu" else [device]


def _rate(settings: PPOSettings, step: int) -> float:
    """Linear warmup, then a cosine over four times the steps, as AdaptCL's code counts them."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    total = max(1, 4 * settings.steps - settings.warmup_steps)
    done = (step - settings.warmup_steps) / total
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def drawn(num: int, settings: PPOSettings, step: int) -> list[int]:
    """Numbers of a batch's prompts: all in an order of the seed, then all in another one."""
    found: list[int] = []
    for place in range(step * settings.batch_size, (step + 1) * settings.batch_size):
        epoch, within = divmod(place, num)
        order = np.random.default_rng([settings.seed, epoch]).permutation(num)
        found.append(int(order[within]))
    return found


@torch.no_grad()
def _rollout(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    numbers: Sequence[int],
    judge: Judge,
    weight: float,
    step: int,
) -> tuple[Batch, Point]:
    """Answers to the prompts, their rewards, and the advantages of their tokens."""
    settings, tokens = policy.settings, policy.model.tokens
    answers = policy.write(prompts, f"{settings.seed} {step}")
    rewards = np.asarray(judge(numbers, [tokens.text(each) for each in answers]), np.float64)
    if rewards.shape != (len(prompts),) or not np.isfinite(rewards).all():
        raise DataError(
            f"ppo: the reward gave {rewards.shape} values, finite ones: "
            f"{int(np.isfinite(rewards).sum())}; expected {len(prompts)} finite numbers"
        )
    texts = [(*p, *a) for p, a in zip(prompts, answers, strict=True)]
    num_prompt = [len(each) for each in prompts]
    with evaluating(policy.lm):
        old_BS, values_BS, mask_BS = _read_all(policy, texts, num_prompt)
        policy.lm.disable_adapters()
        try:
            reference_BS, _, _ = _read_all(policy, texts, num_prompt)
        finally:
            policy.lm.enable_adapters()
            for each in policy.named.values():  # disabling them also froze them
                each.requires_grad_(True)
    difference_BS = old_BS - reference_BS
    rewards_BS = -weight * difference_BS
    last_B = mask_BS.sum(1).long() - 1
    rewards_BS[torch.arange(len(texts)), last_B] += torch.tensor(rewards).to(rewards_BS)
    advantages_BS, returns_BS = gae_advantages(
        rewards_BS, values_BS, mask_BS, discount=settings.discount, gae=settings.gae
    )
    batch = Batch(
        texts,
        num_prompt,
        mask_BS,
        old_BS,
        values_BS,
        whitened(advantages_BS, mask_BS),
        returns_BS,
    )
    return batch, Point(float(rewards.mean()), float(difference_BS.sum(1).mean()))


def _read_all(
    policy: Policy, texts: Sequence[tuple[int, ...]], num_prompt: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Policy.read`, some texts at a time."""
    longest = max(len(t) - n for t, n in zip(texts, num_prompt, strict=True))
    parts = []
    for places in _parts(range(len(texts)), policy.settings.mini_batch_size):
        read = policy.read([texts[i] for i in places], [num_prompt[i] for i in places])
        parts.append([nn.functional.pad(x, (0, longest - x.shape[1])) for x in read])
    logp, values, mask = (torch.cat(each) for each in zip(*parts, strict=True))
    return logp, values, mask


def _learn(policy: Policy, batch: Batch, optimizer: torch.optim.Optimizer, step: int) -> None:
    settings = policy.settings
    policy.lm.train()
    try:
        for epoch in range(settings.epochs):
            draw = np.random.default_rng([settings.seed, step, epoch])
            order = draw.permutation(len(batch.texts)).tolist()
            parts = list(_parts(order, settings.mini_batch_size))
            for start in range(0, len(parts), settings.accumulate):
                together = parts[start : start + settings.accumulate]
                optimizer.zero_grad()
                for places in together:
                    loss = _loss(policy, batch, places) / len(together)
                    if not torch.isfinite(loss):
                        raise DataError(
                            f"ppo: the loss is {loss.item()} in batch {step + 1}; lower "
                            "learning_rate, or raise kl"
                        )
                    loss.backward()
                optimizer.step()
    finally:
        policy.lm.eval()


def _loss(policy: Policy, batch: Batch, places: Sequence[int]) -> Tensor:
    """The policy's loss and the weighted one of its values, for some of the batch's texts."""
    settings = policy.settings
    new_BS, values_BS, mask_BS = policy.read(
        [batch.texts[i] for i in places], [batch.num_prompt[i] for i in places]
    )
    size = mask_BS.shape[1]
    before = (batch.old_BS, batch.values_BS, batch.advantages_BS, batch.returns_BS)
    old_BS, was_BS, advantages_BS, returns_BS = (each[places, :size] for each in before)
    loss = ppo_loss(new_BS, old_BS, advantages_BS, mask_BS, settings.clip)
    return loss + settings.value_weight * value_loss(
        values_BS, was_BS, returns_BS, mask_BS, settings.clip
    )


def _parts(places: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(places), size):
        yield list(places[start : start + size])
