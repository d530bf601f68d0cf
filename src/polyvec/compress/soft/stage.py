"""Stage "compress": a compressor learns to keep what its decoder needs.

Each row is a context (`query`), a question (`instruction`) and an answer (the first positive). The
objectives, each with its weight in `objectives`:

autoencode: the context itself, token by token, from its memory (ICAE's and RCC's first stage).
continue: what follows the context; the text is cut at a drawn place (AutoCompressor, ICAE).
answer: the answer to the question.
distil: the divergence from what the decoder predicts of the answer (or continuation) when it reads
    the text itself: KL(text || memory) (Gist, xRAG, QGC, PC).
select: InfoNCE between the mean vectors of the context and of a positive (UniICL).

B rows, K objectives, N predicted tokens, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.decoder import Asked, Predicted, token_ids
from polyvec.compress.soft.encoding import NOTHING, Context
from polyvec.compress.soft.reading import adapter_off
from polyvec.compress.soft.settings import ANSWER, AUTOENCODE, CONTINUE, FROZEN
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.formats.adapters import is_adapted
from polyvec.errors import DataError, ModelError, SettingsError, known
from polyvec.registry import Fact
from polyvec.train.adapters import adapter_parameters, carrier
from polyvec.train.engine import Piece, Rows, Terms
from polyvec.train.predicting import split
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share, Work

JOB, MEANS = "compress", "means"
DISTIL, SELECT = "distil", "select"
AS_THEY_ARE = (
    "memory 'vector' takes an embedder's vectors as they are; set adapter = { kind = 'frozen' }"
)
SHARED = (
    "the weights that decoder 'frozen' shares with the encoder. Use an adapter of its own (lora), "
    "or name the decoder's model, which is then loaded a second time"
)
OBJECTIVES = (AUTOENCODE, CONTINUE, ANSWER, DISTIL, SELECT)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A row: its context, what is asked of its memory by objective, and the text for a teacher."""

    context: Context
    asked: Mapping[str, Asked]
    text: np.ndarray


def compress(compressor: SoftCompressor, payload: tuple[Sequence[Example], "Compress"]) -> Tensor:
    """For each row and objective the sum of its tokens' losses and their weight, [B, 2 K]."""
    examples, task = payload
    count = len(examples)
    memory = compressor.read([each.context for each in examples])
    names = list(task.predicted)
    asked = [each.asked[name] for name in names for each in examples]
    repeated = memory.select([row for _ in names for row in range(count)])
    decoder = compressor.decoder
    found = decoder.predict(asked, repeated)
    chosen_N = decoder.log_probabilities(found)
    weight_N = torch.ones_like(chosen_N)
    if task.importance:
        weight_N = importance(compressor, asked, [each.text for each in examples] * len(names))
    sums = found.per_row(-chosen_N * weight_N, len(asked)).view(len(names), count)
    weights = found.per_row(weight_N, len(asked)).view(len(names), count)
    columns = {name: (sums[at], weights[at]) for at, name in enumerate(names)}
    if DISTIL in task.objectives:
        at = names.index(task.distilled)
        mine_N = (found.rows_N >= at * count) & (found.rows_N < (at + 1) * count)
        student = Predicted(
            found.states_ND[mine_N], found.targets_N[mine_N], found.rows_N[mine_N] - at * count
        )
        teacher = [
            Asked(each.asked[task.distilled].parts, each.asked[task.distilled].target, each.text)
            for each in examples
        ]
        gaps_N = divergence(compressor, teacher, student, task.temperature)
        columns[DISTIL] = (
            student.per_row(gaps_N, count),
            student.per_row(torch.ones_like(gaps_N), count),
        )
    parts = [each for name in task.columns for each in columns[name]]
    return torch.stack([*parts[::2], *(each.detach() for each in parts[1::2])], dim=1)


def divergence(
    compressor: SoftCompressor, teacher: Sequence[Asked], student: Predicted, temperature: float
) -> Tensor:
    """KL(decoder with the text || decoder with the memory) at each predicted token, [N], nats."""
    decoder = compressor.decoder
    with torch.no_grad():
        read = decoder.predict(teacher, None, teacher=True)
        target_NV = (decoder.logits(read.states_ND, teacher=True) / temperature).log_softmax(-1)
    own_NV = (decoder.logits(student.states_ND) / temperature).log_softmax(-1)
    return F.kl_div(own_NV, target_NV, log_target=True, reduction="none").sum(-1)


@torch.no_grad()
def importance(
    compressor: SoftCompressor, asked: Sequence[Asked], texts: Sequence[np.ndarray]
) -> Tensor:
    """A weight for each predicted token, of mean 1: 1 + how much the text lowers its loss, in nats.

    Fine-grained autoencoding with segment-wise token importance (arXiv:2412.17483).
    """
    decoder = compressor.decoder

    def likely(given: Sequence[np.ndarray]) -> Tensor:
        pairs = zip(asked, given, strict=True)
        read = [Asked(each.parts, each.target, text) for each, text in pairs]
        found = decoder.predict(read, None, teacher=True)
        return decoder.log_probabilities(found, teacher=True)

    with_text, without = likely(texts), likely([np.zeros(0, np.int64)] * len(asked))
    weight_N = 1 + (with_text - without).clamp(min=0)
    return weight_N / weight_N.mean()


def means(compressor: SoftCompressor, payload: Sequence[Context]) -> Tensor:
    """Mean vector of each context's memory, [B, D]."""
    return compressor.read(payload).means()


class Compress:
    """objectives: weights by name. temperature: of distillation and selection.

    importance: tokens count by how much the text lowers their loss. continuation: least and most
    share of a text that is the context where the rest is predicted. max_continuation: tokens of
    the rest. end: whether the end token is predicted, too. prompt: one hard prompt that stands in
    place of every context; what a row's text is then follows it, as its answer (PC).
    """

    def __init__(
        self,
        embedder: Annotated[Any, Fact("embedder")],
        stage: Annotated[StageSettings, Fact("stage")],
        objectives: Mapping[str, float],
        temperature: float = 1.0,
        importance: bool = False,
        continuation: tuple[float, float] = (0.4, 0.7),
        max_continuation: int = 128,
        end: bool = True,
        prompt: str = "",
    ) -> None:
        if not isinstance(embedder, SoftCompressor):
            raise SettingsError(f"stage {stage.kind!r} needs a recipe with [compressor]")
        for name, weight in objectives.items():
            if name not in OBJECTIVES:
                raise SettingsError(f"objective {name!r} is not known.{known(name, OBJECTIVES)}")
            if not weight > 0:
                raise SettingsError(f"objective {name!r} has weight {weight}, expected above 0")
        self.objectives = dict(objectives)
        # Tokens are predicted for these; distillation needs one of them, of weight 0 if not named.
        self.predicted = [n for n in (AUTOENCODE, CONTINUE, ANSWER) if n in objectives]
        if ANSWER in objectives and CONTINUE in objectives:
            raise SettingsError("objectives 'answer' and 'continue' need different contexts")
        self.distilled = CONTINUE if CONTINUE in objectives else ANSWER
        if DISTIL in objectives and self.distilled not in self.predicted:
            self.predicted.append(self.distilled)
        if not self.predicted:
            raise SettingsError(f"objectives name nothing to predict.{known('', OBJECTIVES)}")
        self.columns = [n for n in (*self.predicted, DISTIL) if n in objectives]
        if SELECT in objectives and embedder.settings.carrier == "kv":
            raise SettingsError("objective 'select' compares states; use carrier 'hidden'")
        if not 0 < continuation[0] <= continuation[1] < 1:
            raise SettingsError(f"continuation {continuation} is not two shares between 0 and 1")
        self._check_frozen(embedder, stage)
        self.compressor, self.stage = embedder, stage
        self.temperature, self.importance, self.prompt = temperature, importance, prompt
        self.continuation, self.max_continuation, self.end = continuation, max_continuation, end
        self.jobs = {JOB: compress, MEANS: means}
        self.heads: nn.Module = nn.Module()
        self.needs_head = embedder.settings.decoder == "same"
        self.seed, self.batch_number = stage.seed, 0

    @staticmethod
    def _check_frozen(compressor: SoftCompressor, stage: StageSettings) -> None:
        adapter = stage.adapter or {}
        kind = adapter.get("kind")
        if compressor.settings.decoder == FROZEN:
            if kind in ("full", "bitfit") or adapter.get("merge", False):
                how = "merged" if adapter.get("merge", False) else repr(kind)
                raise SettingsError(f"stage {stage.kind!r}: adapter {how} changes {SHARED}")
            if adapter and is_adapted(carrier(compressor.encoder)):
                raise SettingsError(
                    f"stage {stage.kind!r}: its adapter would merge the earlier one into the "
                    "weights that decoder 'frozen' shares with the encoder. Leave the stage's "
                    "adapter out, and it goes on with the earlier one"
                )
        if compressor.settings.memory == "vector" and kind not in (None, "frozen"):
            raise SettingsError(f"stage {stage.kind!r}: {AS_THEY_ARE}")
        if stage.gradient_checkpointing and compressor.settings.decoder == FROZEN:
            raise SettingsError(
                f"stage {stage.kind!r}: with gradient_checkpointing layers are computed again when "
                "the adapter is on, also those of the frozen decoder; leave it out"
            )

    def prepare(self, rows: Sequence[TrainingRow]) -> None:
        """Once per stage: adapters that no memory reads are frozen.

        Raises SettingsError if the stage trains what must stay: weights that a frozen decoder
        shares, or an embedder whose vectors are the memory.
        """
        where, settings = f"stage {self.stage.kind!r}", self.compressor.settings
        own = {id(each) for _, each in adapter_parameters(self.compressor.encoder)}
        trained = {id(p) for p in self.compressor.backbone.parameters() if p.requires_grad}
        if settings.memory == "vector" and trained:
            raise SettingsError(f"{where}: {AS_THEY_ARE}")
        if settings.decoder == FROZEN and trained - own:
            raise SettingsError(f"{where}: without an adapter it changes {SHARED}")
        freeze_unread(self.compressor)

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        share = shares[mine]
        places = range(share.start, share.stop)
        if self.compressor.settings.memory == "vector" and not self.prompt:
            self.compressor.vectors([rows[place].query for place in places])  # in one batch
        examples = [self.example(rows[place], place) for place in places]
        lengths = [self._length(each) for each in examples]
        order = sorted(range(len(examples)), key=lambda place: -lengths[place])
        groups = split([lengths[place] for place in order], self.stage.gradient_cache, padded=True)
        pieces = [
            Piece(JOB, ([examples[place] for place in order[start:stop]], self), stop - start)
            for start, stop in groups
        ]
        sizes = tuple(each.stop - each.start for each in shares)
        orders, counts = {JOB: torch.tensor(order)}, {JOB: sizes}
        if SELECT in self.objectives:
            pairs = [*(each.context for each in examples), *self._positives(rows, places)]
            pieces.append(Piece(MEANS, pairs, len(pairs)))
            orders[MEANS] = torch.arange(len(pairs))
            counts[MEANS] = tuple(2 * each for each in sizes)
        tokens = sum(lengths)
        return Work(tuple(pieces), orders, counts, shares, tokens, tokens, len(examples))

    def _length(self, example: Example) -> int:
        return len(example.context.ids) + sum(len(e.target) for e in example.asked.values())

    def _positives(self, rows: Sequence[TrainingRow], places: Iterable[int]) -> list[Context]:
        found = []
        for place in places:
            if not rows[place].positives:
                raise DataError(f"{rows[place].place}: objective 'select' needs a positive")
            found.append(self.compressor.context(rows[place].positives[0], rows[place].instruction))
        return found

    def example(self, row: TrainingRow, place: int) -> Example:
        compressor = self.compressor
        draw = np.random.default_rng([self.seed, self.batch_number, place])
        if self.prompt:
            row = replace(row, query=self.prompt, positives=(row.query,))
        text, rest = row.query, ""
        if CONTINUE in self.predicted:
            text, rest = self._cut(row, draw)
        context = compressor.context(text, row.instruction)
        if not len(context.ids):
            raise DataError(f"{row.place or 'row'}: the context is empty")
        limit = compressor.settings.max_context
        texts = {AUTOENCODE: text, CONTINUE: rest, ANSWER: ""}
        if ANSWER in self.predicted:
            if not row.positives:
                raise DataError(f"{row.place or 'row'}: objective 'answer' needs a positive")
            texts[ANSWER] = f" {row.positives[0].strip()}"
        asked = {
            name: compressor.asked(
                name,
                question=row.instruction or "",
                target=texts[name],
                prompt=int(draw.integers(1 << 16)),
                end=self.end and name != CONTINUE,
            )
            for name in self.predicted
        }
        # Only a teacher reads the text itself.
        full = NOTHING
        if self.importance or DISTIL in self.objectives:
            full = token_ids(compressor.decoder.tokenizer, text)[:limit]
        return Example(context, asked, full)

    def _cut(self, row: TrainingRow, draw: np.random.Generator) -> tuple[str, str]:
        """A text in two before a word: the context, and what follows it."""
        if row.positives:
            return row.query, f" {row.positives[0].strip()}"
        tokenizer = self.compressor.tokenizer
        found = tokenizer(row.query, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in found.offset_mapping]
        most = self.compressor.settings.max_context
        wanted = min(most, round(len(starts) * draw.uniform(*self.continuation)))
        at = row.query.rfind(" ", 0, starts[wanted]) if 0 < wanted < len(starts) else -1
        if at < 1:
            raise DataError(f"{row.place or 'row'}: too short to be continued: {row.query[:40]!r}")
        stop = min(len(starts) - 1, wanted + self.max_continuation)
        return row.query[:at], row.query[at : starts[stop]].rstrip()

    def loss(self, rows: Rows, facts: Any) -> Terms:
        """Each objective's mean over tokens in nats, times its weight."""
        found = rows[JOB]
        size = len(self.columns)
        terms = {
            name: self.objectives[name]
            * found[:, at].sum()
            / found[:, size + at].sum().clamp(min=1)
            for at, name in enumerate(self.columns)
        }
        if SELECT in self.objectives:
            vectors = F.normalize(rows[MEANS].float(), dim=-1)
            starts = [(2 * share.start, 2 * share.stop) for share in facts]
            a = torch.cat([vectors[start : (start + stop) // 2] for start, stop in starts])
            b = torch.cat([vectors[(start + stop) // 2 : stop] for start, stop in starts])
            target = torch.arange(len(a), device=a.device)
            loss = F.cross_entropy(a @ b.T / self.temperature, target)
            terms[SELECT] = self.objectives[SELECT] * loss
        return terms


def freeze_unread(compressor: SoftCompressor) -> list[str]:
    """Freeze weights of an adapter on which nothing depends; returns their names.

    With keys and values as the carrier and a frozen decoder, nothing reads what the last layer
    does after its keys and values.
    """
    adapted = dict(adapter_parameters(compressor.encoder))
    if compressor.settings.decoder != FROZEN or not adapted:
        return []
    ids = compressor.context(PROBE, "?").ids
    with adapter_off(compressor.backbone, off=False), torch.enable_grad():
        memory = compressor.read([compressor.context(PROBE, "?")])
        tensors = [each for pair in memory.pairs for each in pair]
        tensors += [] if memory.states_BMD is None else [memory.states_BMD]
        total = torch.stack([each.float().sum() for each in tensors]).sum()
        if not total.requires_grad:
            raise ModelError(f"no memory depends on what is trained ({len(ids)} tokens read)")
        found = torch.autograd.grad(total, list(adapted.values()), allow_unused=True)
    names = [name for name, each in zip(adapted, found, strict=True) if each is None]
    for name in names:
        adapted[name].requires_grad_(False)
    return names


PROBE = "What is compressed here is read only to see which weights a memory depends on."
