"""The whole of mining: candidates, refusals, a choice, and the rows with their negatives.

Q queries, K candidates, n negatives.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.data.words import hash64
from polyvec.embed.progress import progress
from polyvec.errors import DataError
from polyvec.train.mining.candidates import CANDIDATES, Found, Search, Tools
from polyvec.train.mining.documents import Searched, corpus_texts, own_corpus, searched
from polyvec.train.mining.rescoring import PairScores, checked_scores, pair_scores
from polyvec.train.mining.rules import refused, taken
from polyvec.train.mining.settings import MiningSettings

QUERY_BLOCK = 512  # queries whose candidates are in memory at a time
HIDDEN = 1  # ends the seed of the draw of hidden positives


@dataclass(slots=True)
class Mined:
    """The negatives of each query of a data set, as rows of `texts.documents`, the best first.

    scores: of the negatives; positive_scores, own_scores: of the positives and of the data's own
    negatives. width: ranks that were looked at. skipped: candidates refused, by limit;
    num_candidates: those that limits were applied to. hidden_taken, hidden_negatives: of queries
    with several positives, mined once more with half of them hidden: negatives that are hidden
    positives, and negatives in all.
    """

    texts: Searched
    settings: MiningSettings
    rows: tuple[TrainingRow, ...]
    width: int
    negatives: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    positive_scores: list[np.ndarray] = field(default_factory=list)
    own_scores: list[np.ndarray] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    num_candidates: int = 0
    hidden_taken: int = 0
    hidden_negatives: int = 0

    def texts_of(self, query: int) -> list[str]:
        """The negatives of a query."""
        return [self.texts.documents[row].text for row in self.negatives[query]]

    def mined_rows(self) -> Iterator[TrainingRow]:
        """The rows with their negatives: their own first, if they are kept."""
        for row in self.rows:
            yield self.mined_row(row)

    def mined_row(self, row: TrainingRow) -> TrainingRow:
        query = self.texts.query_of[row.query, row.instruction]
        own = row.negatives if self.settings.keep_negatives else ()
        negatives = (*own, *self.texts_of(query))
        if not self.settings.output_scores:
            return replace(row, negatives=negatives)
        return replace(row, negatives=negatives, teacher_scores=self._scores(query, row, own))

    def _scores(self, query: int, row: TrainingRow, own: Sequence[str]) -> tuple[float, ...]:
        places = [*self.texts.positives[query], *self.texts.negatives[query]]
        known = [*self.positive_scores[query].tolist(), *self.own_scores[query].tolist()]
        of_place = dict(zip(places, known, strict=True))
        asked = [of_place[self.texts.row_of[text]] for text in (*row.positives, *own)]
        return (*asked, *self.scores[query].tolist())

    @property
    def num_short(self) -> int:
        """Queries with fewer negatives than were asked for."""
        return sum(len(each) < self.settings.num_negatives for each in self.negatives)


def mine(
    found: TrainingSet,
    settings: MiningSettings | None = None,
    *,
    tools: Tools | None = None,
    corpus: Iterable[str] | None = None,
    cross_encoder: PairScores | None = None,
) -> Mined:
    """Negatives for the queries of a data set, among its documents and those of the corpus.

    `corpus`: texts in place of the settings' and of the data's own. Equal settings and seed give
    equal negatives, whatever other queries there are. Raises DataError for rows that mining cannot
    serve and where no query gets a negative, SettingsError for a search without a model.
    """
    settings, tools = settings or MiningSettings(), tools or Tools()
    if corpus is None:
        corpus = corpus_texts(settings.corpus) if settings.corpus else own_corpus(found)
    texts = searched(found, corpus, keep_negatives=settings.keep_negatives)
    if not settings.output_scores:
        _check_scores(found)
    num_excluded = int(texts.num_excluded().max())
    _check_corpus(texts, num_excluded)
    if settings.cross_encoder is not None and cross_encoder is None:
        cross_encoder = pair_scores(settings.cross_encoder)
    mined = Mined(texts, settings, tuple(found.rows), settings.width(num_excluded))
    search = CANDIDATES.find(settings.candidates, where="mining")(texts.documents, tools)
    show = tools.options.show_progress_bar if tools.options else None
    bar = progress(len(texts.queries), show, name="mining", shown=lambda s: f"{s:.0f} queries/s")
    with bar as advance:
        for start in range(0, len(texts.queries), QUERY_BLOCK):
            block = range(start, min(start + QUERY_BLOCK, len(texts.queries)))
            _add(mined, block, search, mined.width + num_excluded, cross_encoder)
            advance(len(block))
    if not any(map(len, mined.negatives)):
        raise DataError(f"{texts.name}: no query gets a negative{why_short(mined)}")
    return mined


def _add(
    mined: Mined, block: range, search: Search, k: int, cross_encoder: PairScores | None
) -> None:
    """The negatives of a block of queries."""
    texts, settings = mined.texts, mined.settings
    wanted = [texts.positives[query] + texts.negatives[query] for query in block]
    found = search.find([texts.queries[query] for query in block], k, wanted)
    if cross_encoder is not None:
        found = _rescored(texts, block, found, wanted, cross_encoder)
    for row, query in enumerate(block):
        num = len(texts.positives[query])
        positives, own = found.wanted[row][:num], found.wanted[row][num:]
        rows_K = found.rows_QK[row]
        scores_K = np.where(texts.may_be_negative(query, rows_K), found.scores_QK[row], -np.inf)
        mined.num_candidates += int(np.isfinite(scores_K).sum())
        lowest = float(positives.min())
        scores_K = refused(scores_K.astype(np.float32), lowest, settings, mined.skipped)
        draw = np.random.default_rng([settings.seed, hash64(texts.queries[query].text)])
        places = taken(scores_K, lowest, settings, mined.width, draw)
        mined.negatives.append(rows_K[places])
        mined.scores.append(scores_K[places])
        mined.positive_scores.append(positives)
        mined.own_scores.append(own)
        if num > 1:
            _hide(mined, query, found.scores_QK[row], rows_K, positives)


def _hide(
    mined: Mined, query: int, scores_K: np.ndarray, rows_K: np.ndarray, positives: np.ndarray
) -> None:
    """Mine with half of the positives hidden, and count those that come back as negatives."""
    texts, settings = mined.texts, mined.settings
    draw = np.random.default_rng([settings.seed, hash64(texts.queries[query].text), HIDDEN])
    order = draw.permutation(len(positives))
    hidden, kept = np.split(order, [len(order) // 2])
    places = np.array(texts.positives[query])
    groups = np.setdiff1d(texts.group_N[places[hidden]], texts.group_N[places[kept]])
    allowed_K = texts.may_be_negative(query, rows_K, groups)
    lowest = float(positives[kept].min())
    scores_K = np.where(allowed_K, scores_K, -np.inf).astype(np.float32)
    scores_K = refused(scores_K, lowest, settings, Counter())
    found = rows_K[taken(scores_K, lowest, settings, mined.width, draw)]
    mined.hidden_taken += int(np.isin(texts.group_N[found], groups).sum())
    mined.hidden_negatives += len(found)


def _rescored(
    texts: Searched,
    block: range,
    found: Found,
    wanted: Sequence[Sequence[int]],
    score: PairScores,
) -> Found:
    """The same candidates with the cross-encoder's scores, in the order of the search."""
    scores_QK = np.full(found.scores_QK.shape, -np.inf, np.float32)
    asked = []
    for row, query in enumerate(block):
        rows_K = found.rows_QK[row]
        allowed_K = texts.may_be_negative(query, rows_K)
        places = [*rows_K[allowed_K].tolist(), *wanted[row]]
        text = texts.queries[query].text
        scores = checked_scores(score, [(text, texts.documents[place].text) for place in places])
        num = int(allowed_K.sum())
        scores_QK[row, allowed_K] = scores[:num]
        asked.append(scores[num:])
    return Found(scores_QK, found.rows_QK, asked)


def _check_scores(found: TrainingSet) -> None:
    row = next((row for row in found.rows if row.teacher_scores), None)
    if row is not None:
        raise DataError(
            f"{row.place or found.name}: the row has a teacher's scores, which mined negatives "
            "would lack; score all of them anew with output_scores = true"
        )


def _check_corpus(texts: Searched, num_excluded: int) -> None:
    if len(texts.documents) <= int(texts.num_excluded().min()):
        raise DataError(
            f"{texts.name}: every document is a positive of every query, so there are no "
            f"negatives among the {len(texts.documents)}; name a corpus"
        )


def why_short(mined: Mined) -> str:
    """What refused candidates, for people: "" if nothing did."""
    reasons = [
        f"{name} = {getattr(mined.settings, name)} refuses {count} of {mined.num_candidates} "
        "candidates"
        for name, count in mined.skipped.items()
        if count
    ]
    if not reasons:
        size = len(mined.texts.documents)
        return f": ranks {mined.settings.range_min} to {mined.width} of {size} documents hold none"
    return ": " + ", ".join(reasons)
