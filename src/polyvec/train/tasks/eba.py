"""Stage "eba": Llama2Vec's EBAE and EBAR (Li et al. 2023, arXiv:2312.15503).

One input is a passage with two suffixes of eight slots: the states of the first slots must hold
the words of the passage (auto-encoding), those of the second the words of the next passage
(auto-regression). The second suffix does not see the first, and has its positions, so each reads
the passage as it does alone. The passage itself is predicted token by token.

B rows, S slots, D state size, V vocabulary, W words of a bag.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.embedder import Embedder
from polyvec.embed.encoding import BATCH_TOKENS
from polyvec.embed.inputs.content_words import STOP_WORDS
from polyvec.embed.inputs.named_templates import TEMPLATES
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.tokens import TokenBatch, Tokens
from polyvec.errors import ModelError, SettingsError
from polyvec.registry import Fact
from polyvec.train import language_head
from polyvec.train.engine import Piece, Rows, Terms
from polyvec.train.language_head import attach_head, log_probabilities
from polyvec.train.predicting import limited, split
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share, Work

JOB = "eba"
SAME, NEXT = 1, 2  # segments of the two suffixes
# The second suffix does not see the first, which is before it and sees nothing of it either.
ATTENTION = AttentionSpec("causal", blocked=((NEXT, SAME),))


@dataclass(frozen=True, slots=True)
class Example:
    """A row: its input, and the words that each suffix's slots must hold, as token ids."""

    tokens: Tokens
    same_W: np.ndarray
    next_W: np.ndarray


@dataclass(frozen=True, slots=True)
class Payload:
    """Several rows: their inputs, and their bags."""

    batch: TokenBatch
    examples: tuple[Example, ...]


def eba(embedder: Embedder, payload: Payload) -> Tensor:
    """For each row what its loss is made of, float32 [B, 4].

    Sum of log-probabilities of the passage's tokens; their number; minus the mean log-probability
    of the passage's words by the first slots, and of the next passage's by the second: zero
    where there are no words. In nats.
    """
    backbone = embedder.backbone
    states = backbone(payload.batch, attention=ATTENTION)
    states_TD = states.last_BTD[states.attention_mask_BT]
    device = states_TD.device
    batch = payload.batch
    owners_T = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    places = np.flatnonzero(batch.text_T)
    places = places[places > 0]
    targets = torch.from_numpy(batch.ids_T[places].astype(np.int64)).to(device)
    found_N = log_probabilities(backbone, states_TD[torch.from_numpy(places - 1)], targets)
    rows_N = torch.from_numpy(owners_T[places]).to(device)
    sums_B = found_N.new_zeros(len(batch.lengths)).index_add(0, rows_N, found_N)
    counts_B = torch.zeros_like(sums_B).index_add(0, rows_N, torch.ones_like(found_N))
    columns = [sums_B, counts_B.detach()]
    for segment in (SAME, NEXT):
        slots = np.flatnonzero(batch.pooled_T & (batch.segments_T == segment))
        states_BSD = states_TD[torch.from_numpy(slots)].unflatten(0, (len(batch.lengths), -1))
        bags = [each.same_W if segment == SAME else each.next_W for each in payload.examples]
        columns.append(bag_losses(backbone, states_BSD, bags))
    return torch.stack(columns, dim=1)


def bag_losses(backbone: Any, states_BSD: Tensor, bags: Sequence[np.ndarray]) -> Tensor:
    """-mean over the bag of log softmax(max over slots of logits), [B]; zero for an empty bag."""

    def of(state_SD: Tensor, bag_W: Tensor) -> Tensor:
        logits_V = backbone.logits(state_SD).float().max(dim=0).values
        return -(logits_V[bag_W] - logits_V.logsumexp(0)).mean()

    many = states_BSD[..., 0].numel() * (backbone.num_rows or 1) > language_head.NUM_LOGITS
    again = many and torch.is_grad_enabled()
    found = []
    for state_SD, bag in zip(states_BSD, bags, strict=True):
        if not len(bag):
            found.append(0 * state_SD.float().sum())
            continue
        bag_W = torch.from_numpy(bag).to(state_SD.device)
        each = (
            checkpoint(of, state_SD, bag_W, use_reentrant=False) if again else of(state_SD, bag_W)
        )
        found.append(cast(Tensor, each))
    return torch.stack(found)


class EmbeddingBased:
    """Rows are passages (`query`), and the next passage (the first positive), where there is one.

    weight: of both bag losses' mean; the released code has 1/10 beside the language model's loss.
    remove_stop_words: leave punctuation and English stop words out of the bags, as it does.
    """

    jobs = {JOB: eba}  # noqa: RUF012 - part of the protocol, never changed
    needs_head = True

    def __init__(
        self,
        embedder: Annotated[Embedder, Fact("embedder")],
        stage: Annotated[StageSettings, Fact("stage")],
        template: str = "llama2vec_pretrain",
        weight: float = 0.1,
        remove_stop_words: bool = True,
    ) -> None:
        attach_head(embedder)
        if embedder.backbone.measured and embedder.backbone.mechanism != "plan":
            raise ModelError(
                f"stage 'eba': {type(embedder.backbone.model).__name__} takes no masks between "
                f"segments ({embedder.backbone.layout_reason})"
            )
        self.heads: nn.Module = nn.Module()
        self.embedder, self.weight = embedder, weight
        self.tokenizer = limited(embedder.text_tokenizer, stage.max_length)
        self.remove_stop_words = remove_stop_words
        self.budget = stage.gradient_cache or BATCH_TOKENS.get(embedder.device.type, 8192)
        self.template = TEMPLATES.find(template, where="[[stage]] 'eba'")
        vocabulary = embedder.tokenizer.get_vocab()
        missing = [each for each in self.template.added_tokens if each not in vocabulary]
        if missing:
            raise SettingsError(
                f"stage 'eba': the tokenizer has no {missing[0]!r}; set [embedder] template = "
                "'llama2vec', which adds it"
            )

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        share = shares[mine]
        examples = [self.example(row) for row in rows[share.start : share.stop]]
        order = sorted(range(len(examples)), key=lambda place: -len(examples[place].tokens))
        chosen = [examples[place] for place in order]
        lengths = [len(each.tokens) for each in chosen]
        found = [
            Piece(JOB, _payload(chosen[start:stop]), stop - start)
            for start, stop in split(lengths, self.budget)
        ]
        sizes = tuple(each.stop - each.start for each in shares)
        has_next = torch.tensor([bool(row.positives) for row in rows])
        order_B = {JOB: torch.tensor(order)}
        return Work(
            tuple(found),
            order_B,
            {JOB: sizes},
            has_next,
            sum(lengths),
            sum(lengths),
            num_texts=len(examples),
            num_cut=sum(each.tokens.truncated for each in examples),
        )

    def loss(self, rows: Rows, facts: Tensor) -> Terms:
        """The language model's loss, and the two bags'."""
        sums_B, counts_B, same_B, next_B = rows[JOB].unbind(1)
        terms = {"ar": -sums_B.sum() / counts_B.sum().clamp(min=1)}
        # The mean of both, or the one there is.
        share = self.weight / (2 if bool(facts.any()) else 1)
        terms["ebae"] = share * same_B.mean()
        if bool(facts.any()):
            terms["ebar"] = share * next_B[facts.to(next_B.device)].mean()
        return terms

    def example(self, row: TrainingRow) -> Example:
        (spans,) = self.template.render(
            row.query, "document", **cast(Any, self.embedder.text_tokenizer.special_tokens())
        )
        (tokens,) = self.tokenizer.encode([spans], text_mask=True)
        following = self.bag(row.positives[0]) if row.positives else np.empty(0, np.int64)
        return Example(tokens, self.bag(row.query), following)

    def bag(self, text: str) -> np.ndarray:
        """Ids of a text's tokens, each once."""
        if self.remove_stop_words:
            words = re.sub(r"[\W_]+", " ", text).split()
            text = " ".join(word for word in words if word.lower() not in STOP_WORDS)
        (tokens,) = self.tokenizer.encode([(Span(text),)])
        ids = np.setdiff1d(tokens.ids, self.embedder.tokenizer.all_special_ids)
        return ids.astype(np.int64)


def _payload(examples: Sequence[Example]) -> Payload:
    batch = TokenBatch.of(range(len(examples)), [each.tokens for each in examples])
    positions = np.concatenate([parallel_positions(each.tokens.segments) for each in examples])
    return Payload(dataclasses.replace(batch, positions_T=positions), tuple(examples))


def parallel_positions(segments: np.ndarray) -> np.ndarray:
    """Positions of a text's tokens, the second suffix beginning where the first does."""
    found = np.arange(len(segments), dtype=np.int64)
    first = np.flatnonzero(segments == SAME)[0]
    second = segments == NEXT
    found[second] = first + np.arange(second.sum())
    return found
