"""The `mining` table of a stage, as plain values; the options of `polyvec mine` have its names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from polyvec.errors import SettingsError
from polyvec.settings import fill


@dataclass(frozen=True, slots=True)
class MiningSettings:
    """Where negatives come from, which candidates are refused, and which of the rest are taken.

    Names and meaning are those of sentence-transformers' `mine_hard_negatives`, where it has them.

    candidates: "embedder" (nearest by the model's similarity), "bm25", or "package.module:name".
    model: the embedder that finds them, a folder or hub id; None: the one that is trained.
    corpus: a file of texts, or a folder with corpus.jsonl, searched beside the data's documents.
    num_negatives: taken for each query.
    range_min, range_max: the window of ranks that negatives are taken from. Ranks count what is
        left after the refusals below, from 0. SFR-Embedding takes 30 to 100.
    relative_margin: refuses scores above s - |s| * margin, where s is the lowest score of the
        query's positives. 0.05 is NV-Retriever's TopK-PercPos with 95 % (arXiv:2407.15831).
    absolute_margin: refuses scores above s - margin (TopK-MarginPos).
    max_score, min_score: refuse scores above or below.
    sampling_strategy: "top" takes the highest of the window, "random" any, "simans" any with a
        probability that grows as exp(-simans_a * (score - s - simans_b)^2) (arXiv:2210.11773).
    cross_encoder: scores candidates and positives anew, before anything is refused (RocketQA's
        denoising, arXiv:2010.08191): a model of sentence-transformers, or "package.module:function"
        from a list of (query, document) to scores.
    output_scores: keeps the scores of positives and negatives as the rows' teacher scores.
    keep_negatives: the rows' own negatives stay, before the mined ones.
    sets: names of the data sets that are mined; none: all of the stage's.
    refresh_epochs: mines again with the trained embedder every so many epochs (ANCE,
        arXiv:2007.00808); 0: once, before the stage.
    """

    candidates: str = "embedder"
    model: str | None = None
    corpus: str | None = None
    num_negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling_strategy: Literal["top", "random", "simans"] = "top"
    simans_a: float | None = None
    simans_b: float = 0.0
    cross_encoder: str | None = None
    output_scores: bool = False
    keep_negatives: bool = True
    sets: tuple[str, ...] = ()
    refresh_epochs: int = 0
    seed: int = 42

    @property
    def refuses(self) -> bool:
        """Whether any score is refused, so that more candidates are needed than are taken."""
        limits = (self.max_score, self.min_score, self.absolute_margin, self.relative_margin)
        return any(each is not None for each in limits)

    def width(self, num_excluded: int) -> int:
        """Candidates after the exclusions: range_max, or sentence-transformers' rule for it.

        num_excluded: the most documents that are known not to be negatives of a query.
        """
        if self.range_max is not None:
            return self.range_max
        # min_score alone asks for no more there: what it refuses is at the end of the ranking.
        needs_more = any(
            each is not None
            for each in (self.max_score, self.absolute_margin, self.relative_margin)
        ) or (self.cross_encoder is not None and self.min_score is not None)
        return self.range_min + self.num_negatives * (10 if needs_more else 1) + num_excluded


def mining_settings(raw: Mapping[str, Any], where: str = "mining") -> MiningSettings:
    """The checked table. Raises SettingsError for an unknown key, a wrong type or value."""
    found: MiningSettings = fill(MiningSettings, dict(raw), where)
    for name, least in (("num_negatives", 1), ("range_min", 0), ("refresh_epochs", 0), ("seed", 0)):
        if getattr(found, name) < least:
            raise SettingsError(
                f"{where} key {name!r} is {getattr(found, name)}, expected at least {least}"
            )
    for each in fields(found):
        value = getattr(found, each.name)
        if isinstance(value, float) and not math.isfinite(value):
            # NaN is neither above nor below a score: it would refuse nothing.
            raise SettingsError(f"{where} key {each.name!r} is {value}, expected a finite number")
    for name in ("absolute_margin", "relative_margin"):
        value = getattr(found, name)
        if value is not None and value < 0:
            raise SettingsError(f"{where} key {name!r} is {value}, expected at least 0")
    low, high = found.min_score, found.max_score
    if low is not None and high is not None and low > high:
        raise SettingsError(f"{where}: min_score {low} is above max_score {high}")
    _check_window(found, where)
    _check_simans(found, where)
    if found.cross_encoder is not None and not found.refuses:
        raise SettingsError(
            f"{where}: cross_encoder has no effect without a limit on its scores; add max_score, "
            "min_score, absolute_margin or relative_margin"
        )
    if found.refresh_epochs and (found.model is not None or found.candidates == "bm25"):
        raise SettingsError(
            f"{where}: refresh_epochs mines with the trained embedder; leave out model and "
            "candidates"
        )
    return found


def _check_window(found: MiningSettings, where: str) -> None:
    if found.range_max is None:
        return
    size = found.range_max - found.range_min
    if size < found.num_negatives:
        raise SettingsError(
            f"{where}: ranks {found.range_min} to {found.range_max} are {max(0, size)} candidates, "
            f"fewer than num_negatives = {found.num_negatives}; raise range_max"
        )


def _check_simans(found: MiningSettings, where: str) -> None:
    is_simans = found.sampling_strategy == "simans"
    if is_simans and (found.simans_a is None or found.simans_a <= 0):
        raise SettingsError(
            f"{where}: sampling_strategy 'simans' needs simans_a above 0; at a distance of "
            "1 / sqrt(simans_a) from the peak a score is e times less likely; for cosines try 100"
        )
    if not is_simans and (found.simans_a is not None or found.simans_b):
        raise SettingsError(f"{where}: simans_a and simans_b need sampling_strategy = 'simans'")
