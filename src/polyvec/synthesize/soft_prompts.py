"""Soft prompts that are tuned on pairs of a prompt and what should be written after it.

SPTAR (Peng et al. 2025, arXiv:2307.08303). P tokens of the soft prompt, D state size, B examples
of a batch, T tokens of the longest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.embed.backbone.modes import evaluating
from polyvec.errors import DataError, SettingsError
from polyvec.llm.local import LocalLanguageModel
from polyvec.synthesize.tuned import Checkpoint, optimizer_tensors, restore_optimizer


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of a prompt, and those that should come after it, the end of the text too."""

    ids: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a soft prompt is tuned; the defaults are SPTAR's.

    The rate falls linearly to 0 over `epochs`; tuning ends when the loss of the held-out examples
    has not fallen for more than `patience` epochs.
    """

    learning_rate: float = 3e-2
    epochs: int = 100
    patience: int = 5
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or min(self.epochs, self.batch_size) < 1 or self.patience < 0:
            raise SettingsError(
                f"tuning: learning_rate {self.learning_rate}, epochs {self.epochs}, batch_size "
                f"{self.batch_size} and patience {self.patience} must be above 0, 1 or more, 1 or "
                "more, 0 or more"
            )


@dataclass(frozen=True, slots=True)
class Tuned:
    """The vectors with the least held-out loss, and the curve: (training, held out) by epoch."""

    prompt_PD: Tensor
    curve: tuple[tuple[float, float], ...]


class Reader:
    """The losses of a frozen model with a soft prompt before the text, after BOS."""

    def __init__(self, model: LocalLanguageModel) -> None:
        self.lm, self.context = model.model.lm, model.model.context
        self.device, self.num_before = model.model.device, model.tokens.num_before
        self.table = self.lm.get_input_embeddings()

    def losses(self, prompt_PD: Tensor | None, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy of each example's target, in nats a token, float32 [B]."""
        texts = [each.ids + each.target for each in examples]
        extra = 0 if prompt_PD is None else len(prompt_PD)
        longest = max(map(len, texts))
        if self.context is not None and longest + extra > self.context:
            raise DataError(
                f"an example with its soft prompt has {longest + extra} tokens, the model reads "
                f"{self.context}; lower max_words or num_demonstrations"
            )
        ids_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, text in enumerate(texts):
            ids_BT[row, : len(text)] = torch.tensor(text)
        lengths_B = torch.tensor([len(text) for text in texts]) + extra
        mask_BT = torch.arange(longest + extra) < lengths_B[:, None]
        read_BTD = self.table(ids_BT.to(self.device))
        if prompt_PD is not None:
            own_BPD = prompt_PD.to(read_BTD.dtype).expand(len(texts), -1, -1)
            before, after = read_BTD.split([self.num_before, longest - self.num_before], dim=1)
            read_BTD = torch.cat([before, own_BPD, after], dim=1)
        out = self.lm(
            inputs_embeds=read_BTD, attention_mask=mask_BT.long().to(self.device), use_cache=False
        )
        found = []
        for row, each in enumerate(examples):
            start = extra + len(each.ids)
            logits = out.logits[row, start - 1 : start - 1 + len(each.target)].float()
            found.append(F.cross_entropy(logits, torch.tensor(each.target, device=self.device)))
        return torch.stack(found)

    @torch.no_grad()
    def mean_loss(
        self, prompt_PD: Tensor | None, examples: Sequence[Example], batch_size: int
    ) -> float:
        """The mean over examples, in nats a token."""
        with evaluating(self.lm):
            parts = [
                self.losses(prompt_PD, examples[i : i + batch_size])
                for i in range(0, len(examples), batch_size)
            ]
        return float(torch.cat(parts).mean())


def tune(
    reader: Reader,
    begun_PD: Tensor,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    settings: Tuning,
    checkpoint: Checkpoint,
    *,
    take: Callable[[int], None] = lambda num: None,
    say: Callable[[int, float, float], None] = lambda epoch, train, held_out: None,
) -> Tuned:
    """Tune the vectors alone, by AdamW; a call that was interrupted goes on at its epoch.

    take: called with the number of examples before an epoch reads them; it may raise. say: called
    after each epoch, with the mean losses of both; of those of a checkpoint, too.
    """
    prompt = nn.Parameter(begun_PD.to(reader.device).clone())
    optimizer = torch.optim.AdamW([prompt], lr=settings.learning_rate)
    best_PD, curve = begun_PD, list[tuple[float, float]]()
    if (found := checkpoint.load()) is not None:
        tensors, values = found
        with torch.no_grad():
            prompt.copy_(tensors["prompt"])
        restore_optimizer(optimizer, tensors)
        best_PD, curve = tensors["best"], [(a, b) for a, b in values["curve"]]
        for epoch, losses in enumerate(curve, 1):
            say(epoch, *losses)
    frozen = [each for each in reader.lm.parameters() if each.requires_grad]
    try:
        for each in frozen:
            each.requires_grad_(False)
        with evaluating(reader.lm):
            while not _is_done(curve, settings):
                take(len(examples) + len(held_out))
                trained = _epoch(reader, prompt, optimizer, examples, settings, len(curve))
                loss = reader.mean_loss(prompt.detach(), held_out, settings.batch_size)
                if not np.isfinite(loss):
                    raise DataError(
                        f"the soft prompt's loss is {loss} after epoch {len(curve) + 1}; lower "
                        "learning_rate"
                    )
                if loss < min((b for _, b in curve), default=np.inf):
                    best_PD = prompt.detach().clone()
                curve.append((trained, loss))
                tensors = {"prompt": prompt, "best": best_PD, **optimizer_tensors(optimizer)}
                checkpoint.save(tensors, {"curve": curve})
                say(len(curve), trained, loss)
    finally:
        for each in frozen:
            each.requires_grad_(True)
    return Tuned(best_PD.cpu(), tuple(curve))


def _is_done(curve: Sequence[tuple[float, float]], settings: Tuning) -> bool:
    if len(curve) >= settings.epochs:
        return True
    losses = [loss for _, loss in curve]
    return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) > settings.patience


def _epoch(
    reader: Reader,
    prompt: nn.Parameter,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    settings: Tuning,
    epoch: int,
) -> float:
    """One pass over the examples in an order of its own; their mean loss before each step."""
    order = np.random.default_rng([settings.seed, epoch]).permutation(len(examples))
    batches = list(_parts([examples[place] for place in order], settings.batch_size))
    losses = []
    for number, batch in enumerate(batches):
        done = (epoch * len(batches) + number) / (settings.epochs * len(batches))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - done)
        found_B = reader.losses(prompt, batch)
        optimizer.zero_grad()
        found_B.mean().backward()
        optimizer.step()
        losses += found_B.tolist()
    return float(np.mean(losses))


def _parts(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
