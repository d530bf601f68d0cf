"""Stage "diffcse": contrastive, and a discriminator that finds a sentence's replaced tokens.

DiffCSE (Chuang et al. 2022, arXiv:2204.10298). Each text is its own positive under dropout, as in
SimCSE. A generator that is not trained rewrites it; the discriminator reads the rewritten text
with the sentence's vector as the input of its first token, and says of each token whether it was
replaced. So the vector must tell what the sentence said.

B texts, T tokens of the longest, D state size, E vector size.
"""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.hooks import Arguments, changing, install
from polyvec.embed.encoding import BATCH_TOKENS
from polyvec.embed.inputs.tokens import TokenBatch, budget_batches
from polyvec.embed.part import wide
from polyvec.errors import ModelError, SettingsError
from polyvec.train.compared import Compared
from polyvec.train.engine import Rows, Terms
from polyvec.train.task import Share, Work
from polyvec.train.tasks.contrastive import Contrastive, Model, Stage
from polyvec.train.tasks.encode import JOB
from polyvec.train.tasks.facts import Facts
from polyvec.train.tasks.generator import Edit, Edited, Generator

STD = 0.02  # of new linear layers, BERT's
EDITS, DROPOUT = range(2)  # first numbers of the random streams


@dataclass(frozen=True, slots=True)
class EditedFacts(Facts):
    """A batch with its texts as the generator rewrote them: queries, then documents."""

    edited: tuple[Edited, ...] = ()


class DiffCSE(Contrastive):
    """-log softmax of SimCSE + weight * cross-entropy of "was this token replaced", in nats.

    The first term is the stage's `losses`, by default InfoNCE with temperature 0.05, of vectors
    after the projector; the second is the mean over all tokens of the rewritten texts.

    generator: a folder or hub id of a masked language model with the embedder's vocabulary; "self":
        the embedder itself as the stage begins. probability: of a token to be masked (80 % mask
        token, 10 % random, 10 % as it is). mask, edit: see Generator.
    projector: what the vectors go through before both terms, while training only: "batchnorm"
        (linear, batch norm, ReLU, linear, batch norm without weights), "tanh", or "none".
    discriminator: "copy" of the backbone, which learns beside it and is dropped; "shared": the
        backbone itself, as ESCL (arXiv:2303.05143) has no second encoder.
    """

    def __init__(
        self,
        embedder: Model,
        stage: Stage,
        generator: str = "self",
        weight: float = 0.005,
        probability: float = 0.3,
        projector: Literal["batchnorm", "tanh", "none"] = "batchnorm",
        discriminator: Literal["copy", "shared"] = "copy",
        mask: str | None = None,
        edit: Edit | None = None,
    ) -> None:
        super().__init__(embedder, stage, own_positive=True)
        where = stage.where
        if not weight > 0:
            raise SettingsError(f"{where}: weight is {weight}, expected more than 0; or kind 'ucl'")
        if self.layers or embedder.routes or embedder.variants is not None:
            raise SettingsError(
                f"{where}: takes one vector a text, not matryoshka layers, routes or variants"
            )
        if not embedder.text_tokenizer.contract.prefix:
            raise ModelError(
                f"{where}: the tokenizer puts no token before a text, whose place the sentence's "
                "vector would take"
            )
        self.weight, self.seed = weight, stage.seed
        self.half = torch.bfloat16 if stage.bf16 else torch.float16 if stage.fp16 else None
        measured = embedder.backbone.measured  # a dry run's model has no weights
        self.generator = None
        if measured:
            self.generator = Generator(
                embedder, generator, probability=probability, mask=mask, edit=edit, where=where
            )
        size, width = embedder.full_dimension, embedder.backbone.hidden_size
        if projector == "none" and size != width:
            raise SettingsError(
                f"{where}: vectors have {size} dimensions and the discriminator's states {width}; "
                "set projector"
            )
        self.projector = projector_of(projector, size, width)
        self.discriminator = Discriminator(embedder.backbone, shared=discriminator == "shared")
        self.heads = nn.ModuleDict(
            {
                "objective": self.objective,
                "projector": self.projector,
                "discriminator": self.discriminator,
            }
        )

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        found = super().work(rows, shares, mine)
        facts = {each.name: getattr(found.facts, each.name) for each in fields(Facts)}
        return replace(found, facts=EditedFacts(**facts, edited=tuple(self._edited(rows))))

    def _edited(self, rows: Sequence[TrainingRow]) -> Sequence[Edited]:
        """Both readings of each text rewritten, each with masks of its own."""
        texts = [read.inputs[0] for read in self._read(rows, [(row.query,) for row in rows])]
        if self.generator is None:
            return [Edited(text, np.zeros(len(text), bool)) for text in texts]
        draws = [
            np.random.default_rng([self.seed, EDITS, self.batch_number, place])
            for place in range(len(texts))
        ]
        return self.generator.edited(texts, draws, self._budget)

    @property
    def _budget(self) -> int:
        return self.budget or BATCH_TOKENS.get(self.embedder.device.type, 8192)

    def compared(self, rows: Rows, facts: Facts) -> Compared:
        """What the losses see: vectors after the projector."""
        vectors = self.projector(wide(rows[JOB]))
        return super().compared({**rows, JOB: vectors}, facts)

    def loss(self, rows: Rows, facts: Any) -> Terms:
        """The terms of the losses, and "rtd"."""
        batch = self.compared(rows, facts)
        terms: Terms = self.objective(batch)
        vectors_BE = torch.cat([batch.query_BE, batch.document_NE])
        return {**terms, "rtd": self.weight * self.detection(vectors_BE, facts.edited)}

    def detection(self, vectors_BE: Tensor, edited: Sequence[Edited]) -> Tensor:
        """Mean over tokens of the cross-entropy of whether each was replaced, in nats.

        Each process computes it of the whole batch, so dropout is drawn by the batch's number.
        With a gradient cache pieces of its budget are computed again in the backward pass.
        """
        device = vectors_BE.device
        sums, count = [], 0
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(self.seed, self.batch_number))
            for place in budget_batches([len(e.tokens) for e in edited], batch_tokens=self._budget):
                batch = TokenBatch.of(range(len(place)), [edited[row].tokens for row in place])
                labels = np.concatenate([edited[row].replaced for row in place])
                arguments = vectors_BE[place], batch, torch.from_numpy(labels).to(device).long()
                if self.budget and torch.is_grad_enabled():
                    sums.append(checkpoint(self._summed, *arguments, use_reentrant=False))
                else:
                    sums.append(self._summed(*arguments))
                count += len(labels)
        return torch.stack(sums).sum() / count

    def _summed(self, vectors_BE: Tensor, batch: TokenBatch, labels_T: Tensor) -> Tensor:
        context: Any = contextlib.nullcontext()
        if self.half is not None:
            context = torch.autocast(vectors_BE.device.type, self.half)
        with context:
            logits_T2 = self.discriminator(vectors_BE, batch)
        return F.cross_entropy(logits_T2.float(), labels_T, reduction="sum")


class Discriminator(nn.Module):
    """Two logits a token: as it was, replaced. The first token's input is the sentence's vector."""

    def __init__(self, backbone: Backbone, *, shared: bool = False) -> None:
        super().__init__()
        if shared:
            object.__setattr__(self, "backbone", backbone)  # trained as the embedder's own
        else:
            copied = copy.deepcopy(backbone)
            copied.lm_head = None
            object.__setattr__(copied, "lm", None)
            copied.requires_grad_(True)
            module: Any
            for module in copied.model.modules():
                if getattr(module, "gradient_checkpointing", False):
                    module.gradient_checkpointing = False
            self.backbone = copied
        install(backbone.model if shared else self.backbone.model)
        self.head = nn.Linear(backbone.hidden_size, 2)

    def forward(self, vectors_BE: Tensor, batch: TokenBatch) -> Tensor:
        """Logits of all tokens, one text after another, [T, 2]."""
        model = self.backbone.model
        if any(hasattr(each, "full_tensor") for each in model.parameters()):
            raise SettingsError("discriminator = 'shared' does not work under FSDP; train with DDP")
        with changing(model, Conditioned(vectors_BE, batch)):
            states = self.backbone(batch)
        found: Tensor = self.head(states.last_BTD[states.attention_mask_BT].to(self._dtype))
        return found

    @property
    def _dtype(self) -> torch.dtype:
        return self.head.weight.dtype


class Conditioned:
    """Puts a vector in the place of each text's first token, before the first layer."""

    def __init__(self, vectors_BE: Tensor, batch: TokenBatch) -> None:
        lengths = np.array(batch.lengths)
        self.vectors_BE, self.num_tokens = vectors_BE, len(batch.ids_T)
        self.starts = torch.from_numpy(np.cumsum(lengths) - lengths)

    def __call__(self, number: int, layer: nn.Module, arguments: Arguments) -> Arguments:
        if number:
            return arguments
        args, kwargs = arguments
        states: Tensor = (args[0] if args else kwargs["hidden_states"]).clone()
        vectors = self.vectors_BE.to(states.dtype)
        if states.shape[0] == 1 and states.shape[1] == self.num_tokens:  # packed
            states[0, self.starts.to(states.device)] = vectors
        else:
            states[:, 0] = vectors
        if args:
            return (states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states}


def projector_of(kind: str, size: int, width: int) -> nn.Module:
    """The map of vectors while training, E to D; linear layers begin as BERT's do."""
    if kind == "none":
        return nn.Identity()
    if kind == "tanh":
        layers = nn.Sequential(nn.Linear(size, width), nn.Tanh())
    else:
        layers = nn.Sequential(
            nn.Linear(size, 2 * width, bias=False),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width, bias=False),
            nn.BatchNorm1d(width, affine=False),
        )
    for each in layers.modules():
        if isinstance(each, nn.Linear):
            nn.init.normal_(each.weight, std=STD)
            if each.bias is not None:
                nn.init.zeros_(each.bias)
    return layers


def seed_of(*numbers: int) -> int:
    """A seed for torch, of several numbers."""
    return int(np.random.SeedSequence([DROPOUT, *numbers]).generate_state(1, np.uint64)[0] >> 1)
