"""Stages "invert" and "correct": an inverter learns to write texts from their vectors.

Each row's text is its `query`, whose vector is read. B rows, E numbers a vector.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.data.training.rows import TrainingRow
from polyvec.data.words import hash64
from polyvec.errors import DataError, SettingsError
from polyvec.invert.inverter import Inverter, correction_inputs
from polyvec.invert.leakage import Encode
from polyvec.invert.space_map import SpaceMap
from polyvec.invert.writer import VectorWriter
from polyvec.registry import Fact
from polyvec.train.adapters import Trained
from polyvec.train.engine import Piece, Rows, Terms
from polyvec.train.meter import Cost
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share, Work

JOB = "invert"
BATCH = 64  # hypotheses written at a time
MEAN_TEXTS = 1000  # whose vectors the mean is of
ADVERSARY = {"pairwise": 1.0, "adversarial": 1.0}  # TEIA's weights

OfInverter = Annotated[Any, Fact("embedder")]
OfStage = Annotated[StageSettings, Fact("stage")]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A text's tokens, what the writer reads of its vector [I, E], and of a hypothesis."""

    ids: np.ndarray
    vectors_IE: Tensor
    hypothesis: np.ndarray | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids) + (0 if self.hypothesis is None else len(self.hypothesis))


class _Writing:
    """What both stages share: batches of texts for a writer, and the mean loss of their tokens."""

    def __init__(self, inverter: Any, stage: StageSettings, smoothing: float) -> None:
        if not isinstance(inverter, Inverter):
            raise SettingsError(f"stage {stage.kind!r} needs a recipe with [victim] and [inverter]")
        for name in ("losses", "adapter", "matryoshka"):
            if getattr(stage, name):
                raise SettingsError(
                    f"{stage.where}: {name} is of stages that train an embedder; this one trains "
                    "the inverter's language model and its map"
                )
        if not 0 <= smoothing < 1:
            raise SettingsError(f"{stage.where}: smoothing {smoothing} is not in [0, 1)")
        self.inverter, self.stage, self.smoothing = inverter, stage, smoothing
        self.jobs = {JOB: self._nats}
        self.heads: nn.Module = nn.Module()
        self.batch_number = 0
        self.own_tokenizer = inverter.tokenizer
        self.vectors: dict[str, np.ndarray] = {}

    @property
    def writer(self) -> VectorWriter:
        raise NotImplementedError

    def trained(self) -> Trained:
        """The writer of this stage, whole."""
        self.inverter.requires_grad_(False)
        self.writer.requires_grad_(True)
        names = {n: p.numel() for n, p in self.inverter.named_parameters() if p.requires_grad}
        return Trained("full", tuple(names), sum(names.values()), self.inverter.num_parameters)

    @property
    def cost(self) -> Cost:
        count = 2.0 * self.writer.lm.num_parameters(exclude_embeddings=True)
        return Cost(3 * count, 0.0, count)

    def prepare(self, rows: Sequence[TrainingRow]) -> None:
        """Once: the mean of the first vectors; those of other texts when a batch needs them."""
        first = list(dict.fromkeys(row.query for row in itertools.islice(rows, MEAN_TEXTS)))
        self._add(first)
        mean_E = np.mean([self.vectors[text] for text in first], axis=0)
        self.inverter.mean_E.copy_(torch.from_numpy(mean_E))

    def _add(self, texts: Sequence[str]) -> list[str]:
        """Embed those of the texts that are new; returns them."""
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        if new:
            self.vectors |= zip(new, self.inverter.embed(new), strict=True)
        return new

    def example(self, row: TrainingRow, place: int) -> Example:
        raise NotImplementedError

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        share = shares[mine]
        self._add([rows[place].query for place in range(share.start, share.stop)])
        examples = [self.example(rows[p], p) for p in range(share.start, share.stop)]
        # One piece: prefixes make texts of a batch nearly as long as each other.
        lengths = [len(each) for each in examples]
        sizes = tuple(each.stop - each.start for each in shares)
        return Work(
            (Piece(JOB, examples, len(examples)),),
            {JOB: torch.arange(len(examples))},
            {JOB: sizes},
            None,
            sum(lengths),
            max(lengths) * len(lengths),
            len(examples),
        )

    def _nats(self, model: Any, examples: Sequence[Example]) -> Tensor:
        """Of each row the weighted sum of its tokens' losses and their weight, [B, 2]."""
        hypotheses = [each.hypothesis for each in examples if each.hypothesis is not None]
        start = self.writer.start(
            torch.stack([each.vectors_IE for each in examples]), hypotheses or None
        )
        found_B2 = self.writer.nats(start, [each.ids for each in examples], self.smoothing)
        weight_B1 = torch.tensor([[each.weight] for each in examples], device=found_B2.device)
        return found_B2 * weight_B1

    def loss(self, rows: Rows, facts: Any) -> Terms:
        """Mean over tokens, in nats."""
        sums, counts = rows[JOB].unbind(1)
        return {JOB: sums.sum() / counts.detach().sum().clamp(min=1)}


class Invert(_Writing):
    """Texts from their vectors, token by token.

    smoothing: of labels (GEIA has 0.02). noise: standard deviation of normal noise on each number
    of a vector, drawn anew each time. fold, folds: train a writer of this number on the texts that
    are not in this fold, for stage "correct"; before the stage without a fold. leaked: only so many
    texts (by their hash) have vectors of the victim; those of the others are of `surrogate`, an
    embedder of the attacker's, mapped by what the leaked ones teach (TEIA); 0: all. writes: of a
    row, its query, or its first positive, as a suggester does (qsT5).
    """

    def __init__(
        self,
        embedder: OfInverter,
        stage: OfStage,
        smoothing: float = 0.0,
        noise: float = 0.0,
        fold: int | None = None,
        folds: int = 2,
        leaked: int = 0,
        surrogate: str | None = None,
        writes: Literal["query", "positive"] = "query",
    ) -> None:
        super().__init__(embedder, stage, smoothing)
        self.writes = writes
        if (leaked > 0) != (surrogate is not None):
            raise SettingsError(f"{stage.where}: leaked and surrogate belong together")
        if fold is not None and not 0 <= fold < folds:
            raise SettingsError(f"{stage.where}: fold {fold} is not between 0 and {folds - 1}")
        self.noise, self.fold, self.folds = noise, fold, folds
        self.leaked, self.surrogate = leaked, surrogate
        if fold is not None:
            if len(self.inverter.folds) != fold:
                raise SettingsError(f"{stage.where}: folds are trained in order, from 0")
            # The writer itself has not been trained yet: nothing of a fold's texts is in it.
            self.inverter.folds.append(copy.deepcopy(self.inverter.writer))

    @property
    def writer(self) -> VectorWriter:
        if self.fold is None:
            return self.inverter.writer
        found: Any = self.inverter.folds[self.fold]
        return found

    def prepare(self, rows: Sequence[TrainingRow]) -> None:
        if self.fold is not None:
            parts = {fold_of(row.query, self.folds) for row in rows}
            if len(parts) < self.folds:
                raise DataError(
                    f"{self.stage.where}: the number of texts is {len(rows)}, so only {len(parts)} "
                    f"of {self.folds} folds have one; give more texts, or fewer folds"
                )
        if self.surrogate is not None:
            self._add_mapped(list(dict.fromkeys(row.query for row in rows)), self.surrogate)
        super().prepare(rows)

    def _add_mapped(self, texts: Sequence[str], surrogate: str) -> None:
        """Vectors of all texts, few of them the victim's."""
        from polyvec.embed.embedder import Embedder

        if self.leaked >= len(texts):
            raise DataError(
                f"{self.stage.where}: leaked {self.leaked} of {len(texts)} texts; a surrogate is "
                "for those that are not leaked"
            )
        encode = Embedder.from_pretrained(surrogate).encode
        found_NE = surrogate_vectors(texts, self.leaked, self.inverter.embed, encode)
        self.vectors |= zip(texts, found_NE, strict=True)

    def example(self, row: TrainingRow, place: int) -> Example:
        vector_E = self.vectors[row.query]
        if self.noise:
            draw = np.random.default_rng([self.stage.seed, self.batch_number, place])
            vector_E = vector_E + self.noise * draw.standard_normal(len(vector_E))
            vector_E /= np.linalg.norm(vector_E)
        text = row.query
        if self.writes == "positive":
            if not row.positives:
                raise DataError(f"{row.place or 'row'}: no positive to write")
            text = row.positives[0]
        ids = self.writer.ids(text, self.inverter.settings.max_tokens)
        held_out = self.fold is not None and fold_of(row.query, self.folds) == self.fold
        vectors_1E = torch.from_numpy(vector_E.astype(np.float32))[None]
        return Example(ids, vectors_1E, weight=0.0 if held_out else 1.0)


class Correct(_Writing):
    """The text from its vector and a hypothesis, that of the writer that has not seen the text.

    Needs the fold writers of earlier stages "invert" with `fold`: hypotheses of texts that a
    writer has seen are better than those it will meet (docs/inversion.md).
    """

    def __init__(self, embedder: OfInverter, stage: OfStage, smoothing: float = 0.0) -> None:
        super().__init__(embedder, stage, smoothing)
        if self.inverter.corrector is None:
            raise SettingsError(f"{stage.where}: set [inverter] corrector = true")
        if len(self.inverter.folds) < 2:
            raise SettingsError(
                f"{stage.where}: hypotheses come from writers that have not seen the text; put "
                "stages 'invert' with fold = 0 and fold = 1 before"
            )
        self.hypotheses: dict[str, tuple[str, np.ndarray]] = {}

    @property
    def writer(self) -> VectorWriter:
        assert self.inverter.corrector is not None
        return self.inverter.corrector

    def prepare(self, rows: Sequence[TrainingRow]) -> None:
        """Nothing: the mean is that of stage "invert"."""

    def _add(self, texts: Sequence[str]) -> list[str]:
        new = super()._add(texts)
        if new:
            self.hypotheses |= self._hypotheses(new)
        return new

    def _hypotheses(self, texts: Sequence[str]) -> dict[str, tuple[str, np.ndarray]]:
        """Of each text the greedy one of its fold's writer, and the victim's vector of it."""
        inverter, found = self.inverter, dict[str, str]()
        training = inverter.training
        inverter.eval()
        writers: list[Any] = list(inverter.folds)
        for number, writer in enumerate(writers):
            own = [text for text in texts if fold_of(text, len(writers)) == number]
            own.sort(key=len)
            for at in range(0, len(own), BATCH):
                part = own[at : at + BATCH]
                vectors = torch.from_numpy(np.stack([self.vectors[text] for text in part]))
                start = writer.start(vectors[:, None])
                written = writer.write(start, max_tokens=inverter.settings.max_tokens)
                found |= {text: each[0].text for text, each in zip(part, written, strict=True)}
        inverter.train(training)
        vectors_NE = inverter.embed_found([found[text] for text in texts])
        return {text: (found[text], vector) for text, vector in zip(texts, vectors_NE, strict=True)}

    def example(self, row: TrainingRow, place: int) -> Example:
        hypothesis, vector_E = self.hypotheses[row.query]
        most = self.inverter.settings.max_tokens
        three = correction_inputs(self.vectors[row.query][None], vector_E[None])[0]
        return Example(
            self.writer.ids(row.query, most), three, self.writer.ids(hypothesis, most, end=False)
        )


def fold_of(text: str, folds: int) -> int:
    """The part of the texts that a text is in, by its hash."""
    return hash64(text) % folds


def surrogate_vectors(
    texts: Sequence[str], leaked: int, victim: Encode, surrogate: Encode, **settings: Any
) -> np.ndarray:
    """Vectors of the victim for the leaked texts, and mapped ones of a surrogate for the others.

    The transfer attack (Huang et al. 2024, arXiv:2406.10280): the map is fitted on the leaked
    pairs, and a discriminator makes mapped vectors of the other texts look like the victim's.
    """
    order = sorted(range(len(texts)), key=lambda row: hash64(texts[row]))
    pairs, others = order[:leaked], order[leaked:]
    own_NA = np.asarray(surrogate(list(texts)))
    target_NE = victim([texts[row] for row in pairs])
    fitted = SpaceMap.fit(
        "mlp", own_NA[pairs], target_NE, others_MA=own_NA[others], **{**ADVERSARY, **settings}
    )
    found_NE = np.empty((len(texts), target_NE.shape[1]), np.float32)
    found_NE[pairs] = target_NE
    found_NE[others] = fitted.transform(own_NA[others])
    return found_NE
