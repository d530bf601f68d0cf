"""Training of token classifiers: on labels, or by a reward. B windows, T tokens."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyvec.compress.text.document import Document
from polyvec.compress.text.joining import Joiner
from polyvec.compress.text.labels import Labelled
from polyvec.compress.text.scorers.classifier import TokenClassifier, Window
from polyvec.errors import InputError
from polyvec.evaluate.measures.text import token_overlap
from polyvec.settings import check_seed

IGNORED = -100


def new_classifier(backbone: str | None = None, *, with_question: bool = False) -> TokenClassifier:
    """A classifier with a new head on an encoder; default: all-MiniLM-L6-v2."""
    from transformers import AutoModelForTokenClassification

    from polyvec.embed.backbone.quiet import quiet_transformers
    from polyvec.embed.formats.devices import best_device
    from polyvec.embed.formats.sources import DEFAULT_MODEL, model_folder
    from polyvec.embed.formats.tokenizer import load_tokenizer

    root = model_folder(backbone or DEFAULT_MODEL)
    names = {0: "drop", 1: "keep"}
    with quiet_transformers():
        model = AutoModelForTokenClassification.from_pretrained(
            root, id2label=names, label2id={name: i for i, name in names.items()}
        )
    tokenizer = load_tokenizer(root)
    return TokenClassifier(model.to(best_device()), tokenizer, keep=1, with_question=with_question)


def fit_token_classifier(
    rows: Sequence[Labelled],
    classifier: TokenClassifier,
    *,
    epochs: float = 2.0,
    learning_rate: float = 5e-5,
    batch_size: int = 16,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """The losses of the steps; the classifier is trained in place.

    Cross-entropy of keep and drop over all tokens: LLMLingua-2 (Pan et al. 2024, arXiv:2403.12968;
    there 10 epochs at 1e-5 in batches of 10). Rows with a question need a classifier that reads it.
    """
    check_seed(seed)
    if not rows:
        raise InputError("fit_token_classifier: no rows")
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    pieces = [piece for row in rows for piece in _labelled(classifier, row)]
    steps = max(1, math.ceil(epochs * len(pieces) / batch_size))
    model = classifier.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for step, batch in zip(range(steps), _batches(pieces, batch_size, draw), strict=False):
        logits_BTC = classifier.logits([window for window, _ in batch])
        labels_BT = torch.full(logits_BTC.shape[:2], IGNORED)
        for row, (window, kept_T) in enumerate(batch):
            labels_BT[row, window.place : window.place + len(kept_T)] = torch.tensor(kept_T)
        labels_BT = labels_BT.to(logits_BTC.device)
        if classifier.keep == 0:
            labels_BT = torch.where(labels_BT >= 0, 1 - labels_BT, labels_BT)
        loss = F.cross_entropy(logits_BTC.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        on_step(step, losses[-1])
    model.eval()
    return losses


def _labelled(classifier: TokenClassifier, row: Labelled) -> Iterator[tuple[Window, list[int]]]:
    kept = np.zeros(len(row.text) + 1, bool)
    for start, end in row.keep:
        kept[start:end] = True
    for window in classifier.windows(row.text, row.question):
        yield window, [int(kept[start:end].any()) for start, end in window.spans]


def _batches(pieces: Sequence[Any], size: int, draw: np.random.Generator) -> Iterator[list[Any]]:
    """Without end; each epoch in another order, with neighbours of like length in a batch."""
    while True:
        order = draw.permutation(len(pieces))
        groups = [order[i : i + 32 * size] for i in range(0, len(order), 32 * size)]
        sets = []
        for group in groups:
            ranked = sorted(group.tolist(), key=lambda i: len(pieces[i][0].ids))
            sets += [ranked[i : i + size] for i in range(0, len(ranked), size)]
        for place in draw.permutation(len(sets)):
            yield [pieces[i] for i in sets[place]]


# ---- by a reward --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """Means over the prompts of a step, of what the greedy policy does."""

    reward: float
    rate: float
    similarity: float


def fit_policy(
    prompts: Sequence[str],
    respond: Callable[[Sequence[str]], Sequence[str]],
    classifier: TokenClassifier,
    *,
    steps: int = 100,
    batch_size: int = 8,
    samples: int = 4,
    learning_rate: float = 5e-3,
    min_similarity: float = 0.9,
    penalty: float = 0.2,
    entropy: float = 1e-3,
    seed: int = 0,
    on_step: Callable[[int, PolicyStep], None] = lambda step, found: None,
) -> list[PolicyStep]:
    """What each step's greedy policy reached; the classifier's head is trained in place.

    The policy keeps or drops each token of a prompt by what the classifier says; its encoder is
    frozen. The reward is the share of tokens that are dropped if the response to what is left has
    at least `min_similarity` (F1 of words) with that to the whole prompt, else -`penalty`.
    REINFORCE with the greedy choice as its baseline: PCRL (Jung and Kim 2023, arXiv:2308.08758),
    for any model behind `respond`.
    """
    check_seed(seed)
    if not prompts:
        raise InputError("fit_policy: no prompts")
    draw, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    head = classifier.model.get_submodule("classifier")
    for parameter in classifier.model.parameters():
        parameter.requires_grad_(False)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), learning_rate)
    whole = dict(zip(prompts, respond(list(prompts)), strict=True))
    found = []
    for step in range(steps):
        texts = [prompts[i] for i in draw.integers(len(prompts), size=batch_size)]
        logits = [_keep_logits(classifier, text) for text in texts]
        greedy = [(each_T > 0).float() for each_T, _ in logits]
        drawn = [
            torch.bernoulli(each_T.detach().sigmoid().cpu(), generator=generator)
            for _ in range(samples)
            for each_T, _ in logits
        ]
        spans = [each for _, each in logits]
        rewards, similar = _rewards(
            texts * (1 + samples),
            spans * (1 + samples),
            [*greedy, *drawn],
            whole,
            respond,
            min_similarity,
            penalty,
        )
        loss = torch.zeros(())
        for number, actions_T in enumerate(drawn):
            row = number % batch_size
            gain = rewards[batch_size + number] - rewards[row]
            each_T = logits[row][0]
            picked = F.binary_cross_entropy_with_logits(each_T, actions_T.to(each_T.device))
            loss = loss + gain * picked.cpu() / len(drawn)
        for each_T, _ in logits:
            kept_T = each_T.sigmoid()
            spread = F.binary_cross_entropy(kept_T, kept_T.detach())
            loss = loss - entropy * spread.cpu() / batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate = float(np.mean([float(each.mean()) for each in greedy]))
        now = PolicyStep(
            float(np.mean(rewards[:batch_size])), rate, float(np.mean(similar[:batch_size]))
        )
        found.append(now)
        on_step(step, now)
    return found


def _keep_logits(classifier: TokenClassifier, text: str) -> tuple[Tensor, list[tuple[int, int]]]:
    """The logit of keeping each token, [T], and the tokens' places."""
    windows = classifier.windows(text)
    logits_BTC = classifier.logits(windows).float()
    keep, drop = classifier.keep, 1 - classifier.keep
    parts = [
        logits_BTC[row, w.place : w.place + len(w.spans), keep]
        - logits_BTC[row, w.place : w.place + len(w.spans), drop]
        for row, w in enumerate(windows)
    ]
    return torch.cat(parts), [span for window in windows for span in window.spans]


def _rewards(
    texts: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int]]],
    actions: Sequence[Tensor],
    whole: dict[str, str],
    respond: Callable[[Sequence[str]], Sequence[str]],
    least: float,
    penalty: float,
) -> tuple[list[float], list[float]]:
    """Rewards of what each row of actions leaves, and the similarity of its response."""
    shorter = []
    for text, own, kept_T in zip(texts, spans, actions, strict=True):
        joiner = Joiner(Document(text, ((0, len(text)),), tuple(own)))
        shorter.append(joiner.join(kept_T.cpu().numpy().astype(bool)))
    rewards, similar = [], []
    said = respond(shorter)
    for text, answer, kept_T in zip(texts, said, actions, strict=True):
        near = token_overlap([answer], [whole[text]]).f
        similar.append(near)
        rewards.append(1 - float(kept_T.float().mean()) if near >= least else -penalty)
    return rewards, similar
