"""Stages that predict tokens: masked (mntp, mlm) and next ones (ntp)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.data.training.rows import TrainingRow
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.embedder import Embedder
from polyvec.embed.encoding import BATCH_TOKENS
from polyvec.embed.inputs.named_templates import TEMPLATES
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.templates import Template
from polyvec.embed.inputs.tokens import Tokens
from polyvec.errors import DataError, InputError, ModelError, SettingsError
from polyvec.registry import Fact
from polyvec.train.engine import Rows, Terms
from polyvec.train.language_head import attach_head, causal
from polyvec.train.predicting import (
    BLANK,
    JOB,
    Predicted,
    check_bidirectional,
    computed,
    limited,
    log_likelihood,
    mask_tokens,
    pieces_of,
    token_id,
)
from polyvec.train.settings import StageSettings
from polyvec.train.task import Job, Share, Work

OfEmbedder = Annotated[Embedder, Fact("embedder")]
OfStage = Annotated[StageSettings, Fact("stage")]
ANSWER = 1  # segment of what is predicted


class PredictTokens:
    """Tokens of each row are predicted; a subclass says which, in `example`.

    batch_number: of the batch in the run; the trainer sets it before `work`. What is drawn
    depends on it, the seed and the row's place only: not on processes or on a resume.
    """

    jobs: Mapping[str, Job] = {JOB: log_likelihood}
    needs_head = True
    attention: AttentionSpec | None = None
    smoothing = 0.0

    def __init__(self, embedder: Embedder, stage: StageSettings) -> None:
        attach_head(embedder)
        self.heads: nn.Module = nn.Module()
        self.name = stage.kind
        self.tokenizer = limited(embedder.text_tokenizer, stage.max_length)
        self.padded = embedder.backbone.layout == "padded"
        self.seed, self.batch_number = stage.seed, 0
        self.budget = stage.gradient_cache or BATCH_TOKENS.get(embedder.device.type, 8192)

    def example(self, row: TrainingRow, draw: np.random.Generator) -> Predicted:
        raise NotImplementedError

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        share = shares[mine]
        examples = [
            self.example(rows[place], np.random.default_rng([self.seed, self.batch_number, place]))
            for place in range(share.start, share.stop)
        ]
        lengths = [len(each.tokens) for each in examples]
        order = sorted(range(len(examples)), key=lambda place: -lengths[place])
        pieces = pieces_of(
            [examples[place] for place in order],
            budget=self.budget,
            attention=self.attention,
            smoothing=self.smoothing,
            padded=self.padded,
        )
        return Work(
            tuple(pieces),
            {JOB: torch.tensor(order)},
            {JOB: tuple(each.stop - each.start for each in shares)},
            None,
            sum(lengths),
            computed(pieces, padded=self.padded),
            num_texts=len(examples),
            num_cut=sum(each.tokens.truncated for each in examples),
        )

    def loss(self, rows: Rows, facts: Any) -> Terms:
        """The mean over all predicted tokens of the batch, in nats."""
        return {self.name: reduced(rows[JOB], "token")}


class MaskedTokens(PredictTokens):
    """A share of the tokens is masked and predicted, of the rows' texts (`query`).

    probability: of each token that is not special. mask: the token in their place; by default
    the tokenizer's, else "_" (LLM2Vec). replace: "mask" masks all that are predicted; "bert"
    masks 80 % of them, puts a random token for 10 % and leaves 10 %.
    """

    shift = 0

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        probability: float = 0.2,
        mask: str | None = None,
        replace: Literal["mask", "bert"] = "mask",
    ) -> None:
        super().__init__(embedder, stage)
        check_bidirectional(embedder, stage.kind)
        if not 0 < probability < 1:
            raise SettingsError(f"probability {probability} is not between 0 and 1")
        mask = mask or embedder.tokenizer.mask_token or BLANK
        self.probability, self.replace = probability, replace
        self.mask_id = token_id(embedder, mask, "mask")
        self.specials = np.array(sorted(embedder.tokenizer.all_special_ids))
        self.num_rows = embedder.backbone.num_rows or 0

    def example(self, row: TrainingRow, draw: np.random.Generator) -> Predicted:
        (tokens,) = self.tokenizer.encode([(Span(row.query),)])
        return self.masked(tokens, draw)

    def masked(self, tokens: Tokens, draw: np.random.Generator) -> Predicted:
        free = ~np.isin(tokens.ids, self.specials)
        free[: self.shift] = False  # no state before them predicts them
        ids, chosen = mask_tokens(
            tokens.ids,
            free,
            draw,
            probability=self.probability,
            mask_id=self.mask_id,
            num_rows=self.num_rows,
            replace=self.replace,
        )
        seen = Tokens(ids, tokens.pooled, tokens.text, tokens.segments, tokens.full_length)
        return Predicted(seen, chosen - self.shift, tokens.ids[chosen])


class MaskedLanguageModel(MaskedTokens):
    """mlm: each masked token from its own state, by an encoder's head (arXiv:1810.04805)."""

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        probability: float = 0.15,
        mask: str | None = None,
        replace: Literal["mask", "bert"] = "bert",
    ) -> None:
        super().__init__(embedder, stage, probability, mask, replace)
        if embedder.tokenizer.mask_token is None and mask is None:
            raise SettingsError("mlm: the tokenizer has no mask token; use kind 'mntp'")


class MaskedNextToken(MaskedTokens):
    """mntp: each masked token from the state before it, as a decoder's head was trained.

    LLM2Vec (BehnamGhader et al. 2024, arXiv:2404.05961).
    """

    shift = 1


class NextToken(PredictTokens):
    """ntp: each token from those before it, under causal attention whatever the embedder's is.

    A row with a positive is a prompt (its query) and an answer; only the answer is predicted.
    template: what is written around a prompt: a name in TEMPLATES, "own" for the embedder's, or
    a table of a template's settings. Without one a prompt is the query alone, and a row's
    instruction is not read. answer: what stands before the answer's
    text, end: whether EOS ends it, and is predicted too.
    reduction: "token" is the mean over the tokens of the batch; "sample" the mean of the rows'
    means; "mixed" the mean of the means of `group` neighbours, as batches cut over devices have
    it; "sum" the sum over tokens by the number of rows. GritLM's code calls "sum" token.
    """

    def __init__(
        self,
        embedder: OfEmbedder,
        stage: OfStage,
        template: str | Mapping[str, Any] | None = None,
        answer: str = "",
        end: bool = True,
        reduction: Literal["token", "sample", "mixed", "sum"] = "token",
        group: int = 1,
    ) -> None:
        super().__init__(embedder, stage)
        if group < 1 or (group > 1 and reduction != "mixed"):
            raise SettingsError(f"group {group}: a number of rows, for reduction 'mixed'")
        self.attention = causal(embedder.backbone)
        self.embedder, self.template = embedder, _template(embedder, template)
        self.answer, self.reduction, self.group = answer, reduction, group
        eos = embedder.text_tokenizer.special_tokens()["eos"] if end else None
        self.end = Span(eos, markup=True, fixed=True, segment=ANSWER) if eos else None

    def example(self, row: TrainingRow, draw: np.random.Generator) -> Predicted:
        prompt = self.prompt(row)
        if not row.positives:
            (tokens,) = self.tokenizer.encode([prompt])
            targets = np.arange(1, len(tokens))
        else:
            spans = [*prompt, Span(self.answer, markup=True, fixed=True)] if self.answer else prompt
            end = () if self.end is None else (self.end,)
            answer = Span(row.positives[0], segment=ANSWER, cut=True)
            (tokens,) = self.tokenizer.encode([(*spans, answer, *end)])
            targets = np.flatnonzero(tokens.segments == ANSWER)
            targets = targets[targets > 0]
        if not len(tokens) or (row.positives and not len(targets)):
            raise DataError(f"{row.place or 'row'}: no token to predict; the text is empty")
        return Predicted(tokens, targets - 1, tokens.ids[targets])

    def prompt(self, row: TrainingRow) -> tuple[Span, ...]:
        if self.template is None:
            return (Span(row.query),)
        instruction = None
        if "instruction" in self.template.slots("query"):
            # Without one of its own, a row has the prompt that the embedder stores for queries.
            instruction = row.instruction or self.embedder.prompt_for(role="query").text or None
        try:
            (spans,) = self.template.render(
                row.query,
                "query",
                instruction=instruction,
                **cast(Any, self.embedder.text_tokenizer.special_tokens()),
            )
        except InputError as error:
            raise DataError(f"{row.place or 'row'}: {error}") from None
        return spans

    def loss(self, rows: Rows, facts: Any) -> Terms:
        return {self.name: reduced(rows[JOB], self.reduction, self.group)}


def reduced(found_B2: Tensor, reduction: str, group: int = 1) -> Tensor:
    """The loss in nats of sums of log-probabilities and their numbers, see NextToken."""
    sums_B, counts_B = found_B2.unbind(1)
    if reduction == "sum":
        return -sums_B.mean()
    size = {"token": len(sums_B), "sample": 1}.get(reduction, group)
    means = [
        -sums.sum() / counts.sum().clamp(min=1)
        for sums, counts in zip(sums_B.split(size), counts_B.split(size), strict=True)
    ]
    return torch.stack(means).mean()


def _template(embedder: Embedder, named: str | Mapping[str, Any] | None) -> Template | None:
    if named is None:
        return None
    if named == "own":
        if embedder.template is None:
            raise ModelError("template = 'own': the embedder has no template")
        return embedder.template
    if isinstance(named, str):
        found: Template = TEMPLATES.find(named, where="template")
        return found
    # Nothing is pooled here, so a table need not say whether the prompt is.
    return Template.from_dict({"pool_prompt": True, **named})
