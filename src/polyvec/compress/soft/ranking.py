"""Passages as single vectors, ranked by a language model: PE-Rank (Liu et al. 2024,
arXiv:2406.14848).

The prompt has a vector for each passage. The passage that comes first is the one whose vector has
the largest product with the last state; its vector is then read, and the next one is chosen among
the rest. So what comes out is always a permutation. B rows, N passages, D state size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.decoder import token_ids
from polyvec.compress.soft.encoding import NOTHING, Context
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.reading import Rows, read
from polyvec.data.training.rows import TrainingRow
from polyvec.errors import DataError, InputError, SettingsError
from polyvec.registry import Fact
from polyvec.train.engine import Piece, Terms
from polyvec.train.engine import Rows as Results
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share, Work

JOB = "rank"
INTRODUCTION = (
    "I will provide you with {n} passages, each with a special token representing the passage "
    "enclosed in [].\nRank the passages based on their relevance to the search query: "
)


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """A query, passages in the order of the prompt, and the gold order of the best of them."""

    query: str
    passages: tuple[str, ...]
    order: tuple[int, ...]


def scores(
    compressor: SoftCompressor, rankings: Sequence[Ranking], max_content: int = 0
) -> list[Tensor]:
    """Of each ranking, for each step along its order, a score of every passage: [steps + 1, N].

    Row t follows the first t passages of the order; those are masked. With max_content each
    passage's first tokens stand behind its vector.
    """
    decoder = compressor.decoder
    memory = of_passages(compressor, rankings)
    assert memory.states_BMD is not None
    rows = Rows(decoder.table)
    vectors = rows.memories(memory)
    tokenizer = decoder.tokenizer
    numbers, places = [], []
    for ranking, own in zip(rankings, vectors, strict=True):
        own_N1 = own.reshape(len(ranking.passages), -1)
        start = INTRODUCTION.replace("{n}", str(len(ranking.passages)))
        row = [rows.tokens([*decoder.prefix, *token_ids(tokenizer, start)])]
        row.append(rows.tokens(token_ids(tokenizer, f"{ranking.query}\n")))
        for place, passage in enumerate(ranking.passages):
            row += [rows.tokens(token_ids(tokenizer, f"Passage {place + 1}: [")), own_N1[place]]
            content = NOTHING
            if max_content:
                content = token_ids(tokenizer, f" {passage}")[:max_content]
            row.append(
                rows.tokens([*token_ids(tokenizer, "]"), *content, *token_ids(tokenizer, "\n")])
            )
        row.append(rows.tokens(token_ids(tokenizer, "Ranking:")))
        read_first = sum(map(len, row))
        row += [own_N1[place] for place in ranking.order]
        numbers.append(np.concatenate(row))
        steps = np.arange(len(ranking.order) + 1) * own_N1.shape[1]
        places.append(read_first - 1 + steps)
    inputs_BTD, real_BT = rows.padded(numbers)
    with decoder.computing():
        states_BTD = read(decoder.backbone, inputs_BTD, real_BT, modes=decoder.modes).states_BTD
    found = []
    for at, ranking in enumerate(rankings):
        count = len(ranking.passages)
        passage_ND = memory.states_BMD[at, : int(memory.real_BM[at].sum())]
        passage_ND = passage_ND.unflatten(0, (count, -1)).mean(1).float()
        states_SD = states_BTD[at, torch.from_numpy(places[at]).to(states_BTD.device)].float()
        masked = torch.zeros(len(states_SD), count, dtype=torch.bool, device=states_SD.device)
        for step, place in enumerate(ranking.order):
            masked[step + 1 :, place] = True
        found.append((states_SD @ passage_ND.T).masked_fill(masked, -torch.inf))
    return found


def of_passages(compressor: SoftCompressor, rankings: Sequence[Ranking]) -> MemoryBatch:
    """The passages' vectors, those of a ranking as one memory."""
    texts = [text for ranking in rankings for text in ranking.passages]
    vectors = iter(compressor.vectors(texts))
    contexts = [
        Context(NOTHING, vectors_IE=torch.cat([next(vectors) for _ in ranking.passages]))
        for ranking in rankings
    ]
    return compressor.read(contexts)


def list_mle(scores_SN: Tensor, order: Sequence[int]) -> Tensor:
    """-log of the order's probability when each place is a softmax over what is left, in nats.

    ListMLE (Xia et al. 2008, doi:10.1145/1390156.1390306). Row t of the scores is after t passages.
    """
    chosen = torch.tensor(list(order), device=scores_SN.device)
    return -scores_SN[: len(order)].log_softmax(-1).gather(1, chosen[:, None]).sum()


def rank(compressor: SoftCompressor, query: str, passages: Sequence[str]) -> list[int]:
    """Places of the passages, best first: a permutation whatever the model says."""
    return orders(compressor, [(query, tuple(passages))])[0]


@torch.no_grad()
def orders(
    compressor: SoftCompressor, asked: Sequence[tuple[str, tuple[str, ...]]]
) -> list[list[int]]:
    """As `rank`, of several queries with their passages, as many for each."""
    if not asked or any(len(passages) != len(asked[0][1]) for _, passages in asked):
        raise InputError("each query needs as many passages as the others")
    if not asked[0][1]:
        raise InputError("no passage to rank")
    compressor.eval()
    found: list[list[int]] = [[] for _ in asked]
    for _ in asked[0][1]:
        given = [
            Ranking(query, passages, tuple(order))
            for (query, passages), order in zip(asked, found, strict=True)
        ]
        for order, scores_SN in zip(found, scores(compressor, given), strict=True):
            order.append(int(scores_SN[-1].argmax()))
    return found


class RankPassages:
    """Stage "compress_rank": the passages' gold order, by ListMLE.

    A row's positives come first, by falling teacher score where there are some; its negatives,
    then other rows' positives, fill up to num_passages. content: weight of the same loss where
    each passage's first max_content tokens stand beside its vector; divergence: weight of
    KL(with content || vectors alone).
    """

    def __init__(
        self,
        embedder: Annotated[Any, Fact("embedder")],
        stage: Annotated[StageSettings, Fact("stage")],
        num_passages: int = 8,
        content: float = 1.0,
        divergence: float = 0.2,
        max_content: int = 64,
    ) -> None:
        if not isinstance(embedder, SoftCompressor) or embedder.settings.memory != "vector":
            raise SettingsError(
                f"stage {stage.kind!r} needs a recipe with [compressor] and memory = 'vector'"
            )
        if num_passages < 2:
            raise SettingsError(f"num_passages {num_passages}: at least 2 are ranked")
        if divergence and not content:
            raise SettingsError("divergence compares with content, which has weight 0")
        self.compressor, self.stage, self.num_passages = embedder, stage, num_passages
        self.content, self.divergence, self.max_content = content, divergence, max_content
        self.jobs = {JOB: self.losses}
        self.heads: nn.Module = nn.Module()
        self.needs_head = False
        self.seed, self.batch_number = stage.seed, 0

    def work(self, rows: Sequence[TrainingRow], shares: Sequence[Share], mine: int) -> Work:
        share = shares[mine]
        rankings = [self.ranking(rows, place) for place in range(share.start, share.stop)]
        sizes = tuple(each.stop - each.start for each in shares)
        order = {JOB: torch.arange(len(rankings))}
        tokens = sum(16 * len(each.passages) for each in rankings)
        piece = Piece(JOB, rankings, len(rankings))
        return Work((piece,), order, {JOB: sizes}, None, tokens, tokens, len(rankings))

    def ranking(self, rows: Sequence[TrainingRow], place: int) -> Ranking:
        row = rows[place]
        draw = np.random.default_rng([self.seed, self.batch_number, place])
        if not row.positives:
            raise DataError(f"{row.place or 'row'}: a ranking needs a passage that matches")
        gold = list(dict.fromkeys(row.positives))
        if row.teacher_scores:
            graded = sorted(zip(row.teacher_scores, (*row.positives, *row.negatives), strict=True),
                            key=lambda each: -each[0])  # fmt: skip
            gold = list(dict.fromkeys(text for _, text in graded))
        gold = gold[: self.num_passages - 1]
        others = [*row.negatives, *(t for at in draw.permutation(len(rows)) if at != place
                                    for t in rows[at].positives)]  # fmt: skip
        rest = [text for text in dict.fromkeys(others) if text not in gold]
        passages = [*gold, *rest[: self.num_passages - len(gold)]]
        if len(passages) < 2:
            raise DataError(f"{row.place or 'row'}: one passage alone cannot be ranked")
        shuffled = draw.permutation(len(passages)).tolist()
        order = tuple(shuffled.index(at) for at in range(len(gold)))
        return Ranking(row.query, tuple(passages[at] for at in shuffled), order)

    def losses(self, compressor: SoftCompressor, rankings: Sequence[Ranking]) -> Tensor:
        """Of each ranking ListMLE by vectors, with content too, and the divergence, [B, 3]."""
        alone = scores(compressor, rankings)
        beside = alone if not self.content else scores(compressor, rankings, self.max_content)
        rows = []
        for by_vector, by_both, each in zip(alone, beside, rankings, strict=True):
            steps = len(each.order)
            losses = [list_mle(scores_SN, each.order) / steps for scores_SN in (by_vector, by_both)]
            target = by_both[:steps].detach().log_softmax(-1)
            own = by_vector[:steps].log_softmax(-1)
            gaps = torch.where(target.isinf(), 0, target.exp() * (target - own))
            rows.append(torch.stack([*losses, gaps.sum(-1).mean()]))
        return torch.stack(rows)

    def loss(self, rows: Results, facts: Any) -> Terms:
        alone, beside, gap = rows[JOB].mean(0)
        terms = {"list_mle": alone}
        if self.content:
            terms["list_mle_content"] = self.content * beside
        if self.divergence:
            terms["divergence"] = self.divergence * gap
        return terms
