"""What mining found: counts, similarities, and how many negatives may be positives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from polyvec.data.training.rows import TrainingRow
from polyvec.data.words import normalized
from polyvec.errors import DataError
from polyvec.train.mining.miner import Mined

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

# Documents that are relevant to a query, both in their normalized form.
Relevant = Mapping[str, frozenset[str]]


def relevant_of(rows: Iterable[TrainingRow]) -> Relevant:
    """All positives of each query."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(normalized(row.query), set()).update(map(normalized, row.positives))
    return {query: frozenset(texts) for query, texts in found.items()}


@dataclass(frozen=True, slots=True)
class FalseNegatives:
    """Negatives of judged queries, and how many of them are relevant."""

    num_negatives: int
    num_relevant: int
    num_queries: int

    @property
    def rate(self) -> float:
        return self.num_relevant / self.num_negatives if self.num_negatives else 0.0


def false_negatives(mined: Mined, relevant: Relevant) -> FalseNegatives:
    """Mined negatives that are relevant by full judgements; DataError if no query is judged."""
    num_negatives = num_relevant = num_queries = 0
    for query, text in enumerate(mined.texts.queries):
        judged = relevant.get(normalized(text.text))
        if judged is None:
            continue
        negatives = [normalized(each) for each in mined.texts_of(query)]
        num_queries += 1
        num_negatives += len(negatives)
        num_relevant += sum(each in judged for each in negatives)
    if not num_queries:
        raise DataError(
            f"{mined.texts.name}: none of the {len(mined.texts.queries)} queries is among the "
            f"{len(relevant)} that are judged; do both files have the queries' texts?"
        )
    return FalseNegatives(num_negatives, num_relevant, num_queries)


def facts(mined: Mined, relevant: Relevant | None = None) -> dict[str, str]:
    """Counts for people, by what they count."""
    num = sum(map(len, mined.negatives))
    found = {
        "queries": f"{len(mined.texts.queries):,}",
        "documents searched": f"{len(mined.texts.documents):,}",
        "negatives": f"{num:,}",
        f"queries with fewer than {mined.settings.num_negatives}": _share(
            mined.num_short, len(mined.texts.queries)
        ),
    }
    for name, count in mined.skipped.items():
        limit = getattr(mined.settings, name)
        found[f"refused by {name} = {limit:g}"] = _share(count, mined.num_candidates)
    if mined.hidden_negatives:
        found["false negatives with half of the positives hidden"] = _share(
            mined.hidden_taken, mined.hidden_negatives
        )
    if relevant is not None:
        judged = false_negatives(mined, relevant)
        found["false negatives by all judgements"] = _share(
            judged.num_relevant, judged.num_negatives
        )
    return found


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / max(1, total):.2f} %)"


def quantiles(mined: Mined) -> list[tuple[str, float, float, float]]:
    """(name, of positives, of negatives, of the lowest positive less the negative)."""
    positives = np.concatenate(mined.positive_scores)
    negatives = np.concatenate(mined.scores)
    lengths = [len(each) for each in mined.scores]
    lowest = np.repeat([each.min() for each in mined.positive_scores], lengths)
    columns = (positives, negatives, lowest - negatives)
    rows = [("mean", *(float(each.mean()) for each in columns))]
    for q in QUANTILES:
        name = {0.0: "lowest", 0.5: "median", 1.0: "highest"}.get(q, f"{100 * q:g} %")
        rows.append((name, *(float(np.quantile(each, q)) for each in columns)))
    return rows  # type: ignore[return-value]
