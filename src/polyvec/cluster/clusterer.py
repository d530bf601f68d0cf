"""Texts to named groups: vectors, an algorithm, and feedback of a language model.

>>> from polyvec.cluster.clusterer import TextClusterer
>>> texts = ["a cat sleeps", "my cat purrs", "stocks fall", "the stocks rise"]
>>> found = TextClusterer(k=2).fit(texts, vectors=[[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
>>> [found.labels.tolist(), found.names]
[[0, 0, 1, 1], ['cat, sleeps, purrs', 'stocks, fall, rise']]
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polyvec.cluster.algorithms import ALGORITHMS, Algorithm
from polyvec.cluster.asking import Answers, Asker, Call
from polyvec.cluster.choosing import Choice, choose_k, granularity
from polyvec.cluster.events import Peaks
from polyvec.cluster.feedback import FEEDBACK, Feedback
from polyvec.cluster.grouping import Grouping, Tools, numbered, unit
from polyvec.cluster.naming import ask_names, different, keyword_names, keywords
from polyvec.cluster.sections import MAX_CHARACTERS
from polyvec.cluster.tuning import tools_of
from polyvec.embed.inputs.contract import check_count
from polyvec.errors import DataError, InputError, SettingsError, ShapeError, known
from polyvec.evaluate.measures.inputs import extra

if TYPE_CHECKING:
    from polyvec.interfaces import TextEncoder
    from polyvec.llm.language_model import LanguageModel

Auto = Literal["auto"]
CHOICES = ("silhouette", "stability", "granularity")
# They compare what is written with the texts' own vectors, which must have one scale.
OF_RAW_VECTORS = ("label", "keyphrase")


@dataclass(frozen=True, slots=True)
class Clusters:
    """The groups of texts, numbered from 0, the largest first; -1 is in none.

    names and keywords are by group. calls: all that the language model was asked. choice: how k was
    chosen, if it was.
    """

    texts: Sequence[str]
    grouping: Grouping
    names: list[str]
    keywords: list[list[str]]
    calls: list[Call]
    choice: Choice | None = None

    @property
    def labels(self) -> np.ndarray:
        """The group of each text, int64 [N]."""
        return self.grouping.labels_N

    @property
    def vectors(self) -> np.ndarray:
        """What the groups were made of, after feedback: float32 [N, E]."""
        return self.grouping.vectors_NE

    @property
    def sizes(self) -> list[int]:
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.names)).tolist()

    @property
    def problems(self) -> Counter[str]:
        """How many calls gave nothing that can be used, by the reason."""
        return Counter(each.problem for each in self.calls if each.problem is not None)


class TextClusterer:
    """Groups texts. method: "kmeans", "agglomerative", "hdbscan", "spectral" or "peaks", or a
    table of its kind and settings. k: the number of groups, or "auto", which `choose_by` finds.
    feedback: kinds, or tables of kind and settings, in order: "triplet", "pair", "label",
    "keyphrase", "reassign", "merge".

    noun and facet say in prompts what a text is and what groups share ("customer utterance",
    "intent"). answers: "text", or "likelihood" for local models, of which the likelier choice is
    taken. max_characters: of a text that a prompt shows; the rest is cut. standardize: dimensions
    have mean 0 and deviation 1, as in ClusterLLM. name: whether the language model names groups.

    Raises SettingsError for unknown settings, and for feedback without a language model, InputError
    for a max_characters that is no count.
    """

    def __init__(
        self,
        *,
        method: str | Mapping[str, Any] = "kmeans",
        k: int | Auto | None = None,
        choose_by: str = "silhouette",
        feedback: Sequence[str | Mapping[str, Any]] = (),
        noun: str = "text",
        facet: str = "topic",
        answers: Answers = "text",
        max_characters: int = MAX_CHARACTERS,
        standardize: bool = False,
        name: bool = True,
        seed: int = 0,
        embedder: "TextEncoder | Callable[[Sequence[str]], np.ndarray] | None" = None,
        language_model: "LanguageModel | None" = None,
        show_progress_bar: bool | None = False,
    ) -> None:
        self.algorithm = algorithm(method)
        self.feedback: list[Feedback] = [_part(FEEDBACK, each, "feedback") for each in feedback]
        self.kinds = [each if isinstance(each, str) else each["kind"] for each in feedback]
        self.k = _checked_k(k)
        if self.k == "auto" and not self.algorithm.needs_k:
            raise SettingsError(f"method {method!r} finds the number of groups itself; leave k out")
        if choose_by not in CHOICES:
            raise SettingsError(f"choose_by {choose_by!r} is not known.{known(choose_by, CHOICES)}")
        if answers not in ("text", "likelihood"):
            raise SettingsError(
                f"answers {answers!r} is not known.{known(answers, ('text', 'likelihood'))}"
            )
        for what, word in (("noun", noun), ("facet", facet)):
            if not word.strip():
                raise SettingsError(f"{what} is empty; prompts need a word there")
        check_count("max_characters", max_characters)
        if self.k != "auto" and choose_by != "silhouette":
            raise SettingsError(f"choose_by {choose_by!r} does nothing unless k is auto")
        asks = [*self.kinds, *(["choose_by = granularity"] if choose_by == "granularity" else [])]
        if language_model is None and asks:
            raise SettingsError(f"{', '.join(asks)}: asks a language model; give one")
        wrong = [kind for kind in self.kinds if kind in OF_RAW_VECTORS]
        if standardize and wrong:
            raise SettingsError(f"standardize: not with feedback {', '.join(wrong)}")
        self.choose_by, self.noun, self.facet, self.answers = choose_by, noun, facet, answers
        self.max_characters = max_characters
        self.standardize, self.name, self.seed = standardize, name, seed
        self.embedder, self.language_model = embedder, language_model
        self.show_progress_bar = show_progress_bar

    def fit(
        self,
        texts: Sequence[str],
        *,
        vectors: Any = None,
        days: Sequence[float] | np.ndarray | None = None,
    ) -> Clusters:
        """The groups of the texts; vectors [N, E] in place of the embedder's. days: when each was
        written, for "peaks" and "merge".

        Raises InputError for an empty text, for fewer different texts than k, and for texts that
        are all equal; GenerationError if the language model cannot be asked.
        """
        texts = _checked_texts(texts, self.k)
        asker = self._asker()
        tools = tools_of(self.embedder, self.show_progress_bar)
        vectors_NE = self._vectors(texts, vectors, tools)
        days_N = None if days is None else _checked_days(days, len(texts))
        chosen = self._choice(texts, vectors_NE, asker)
        k = chosen.k if chosen is not None else self.k
        _check_distinct(vectors_NE, k)
        grouping = self._grouped(texts, vectors_NE, days_N, k if isinstance(k, int) else None)
        if not grouping.num_groups:
            raise InputError(
                f"no group among {len(texts)} texts: all are noise to this method; set a smaller "
                "min_cluster_size, or use kmeans"
            )
        for each in self.feedback:
            assert asker is not None
            grouping, tools = each.apply(grouping, asker, tools)
            if self.standardize:  # vectors of an embedder that was trained are raw
                prepared = self._prepared(grouping.vectors_NE)
                grouping = dataclasses.replace(grouping, vectors_NE=prepared)
        found = keywords(texts, grouping.labels_N)
        names = keyword_names(found)
        if asker is not None and self.name:
            given = ask_names(texts, grouping.vectors_NE, grouping.labels_N, asker)
            names = different([given.get(group, name) for group, name in enumerate(names)])
        return Clusters(texts, grouping, names, found, asker.calls if asker else [], chosen)

    def _asker(self) -> Asker | None:
        if self.language_model is None:
            return None
        return Asker(
            self.language_model,
            self.noun,
            self.facet,
            self.answers,
            self.show_progress_bar,
            self.max_characters,
        )

    def _vectors(self, texts: Sequence[str], vectors: Any, tools: Tools) -> np.ndarray:
        if vectors is None:
            if tools.embed is None:
                raise InputError("fit: no vectors, and the clusterer has no embedder")
            return self._prepared(unit(tools.embed(texts)))
        found = np.asarray(vectors, np.float32)
        if found.ndim != 2 or len(found) != len(texts):
            raise ShapeError(
                f"vectors: expected [{len(texts)}, E], one for each text, got {list(found.shape)}"
            )
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            raise DataError(f"vectors: row {row} holds NaN or infinity")
        return self._prepared(found)

    def _prepared(self, vectors_NE: np.ndarray) -> np.ndarray:
        if not self.standardize:
            return vectors_NE
        scaler = extra("sklearn.preprocessing", "clustering").StandardScaler()
        return np.asarray(scaler.fit_transform(vectors_NE), np.float32)

    def _choice(
        self, texts: Sequence[str], vectors_NE: np.ndarray, asker: Asker | None
    ) -> Choice | None:
        if self.k != "auto":
            return None
        if self.choose_by == "granularity":
            assert asker is not None
            return granularity(texts, vectors_NE, asker, self.seed)
        return choose_k(vectors_NE, self.algorithm.labels, self.seed, self.choose_by)

    def _grouped(
        self, texts: Sequence[str], vectors_NE: np.ndarray, days_N: np.ndarray | None, k: int | None
    ) -> Grouping:
        algorithm = self.algorithm
        if isinstance(algorithm, Peaks) and days_N is not None:
            labels_N = algorithm.dated(vectors_NE, days_N, k)

            def labelled(vectors_NE: np.ndarray, seed: int) -> np.ndarray:
                return algorithm.dated(vectors_NE, days_N, k)

        else:
            labels_N = algorithm.labels(vectors_NE, k, self.seed)

            def labelled(vectors_NE: np.ndarray, seed: int) -> np.ndarray:
                return algorithm.labels(self._prepared(vectors_NE), k, seed)

        return Grouping(texts, vectors_NE, numbered(labels_N), labelled, self.seed, days_N)


def algorithm(method: str | Mapping[str, Any]) -> Algorithm:
    """The algorithm of a name, or of a table of its kind and settings."""
    found: Algorithm = _part(ALGORITHMS, method, "method")
    return found


def _part(registry: Any, given: str | Mapping[str, Any], what: str) -> Any:
    table = {"kind": given} if isinstance(given, str) else dict(given)
    if "kind" not in table:
        raise SettingsError(f"{what}: a table needs a kind.{known('', registry)}")
    return registry.build(table.pop("kind"), table, where="clustering")


def _checked_k(k: Any) -> int | Auto | None:
    if k is None or k == "auto":
        return k
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 2:
        raise SettingsError(f"k {k!r} must be a whole number from 2, or auto")
    return int(k)


def _checked_texts(texts: Sequence[str], k: int | Auto | None) -> list[str]:
    if isinstance(texts, str):
        raise InputError("fit: expected a list of texts, got one text")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"texts[{number}] is {type(text).__name__}, expected a text")
        if not text.strip():
            raise InputError(f"texts[{number}] is empty; leave it out")
    different = len(set(found))
    if len(found) < 2:
        raise InputError(f"{len(found)} texts cannot be grouped; give at least 2")
    if different == 1:
        raise InputError(f"all {len(found)} texts are equal, so there is nothing to group")
    if isinstance(k, int) and different < k:
        raise InputError(f"{different} different texts cannot make {k} groups; choose a smaller k")
    return found


def _check_distinct(vectors_NE: np.ndarray, k: Any) -> None:
    if isinstance(k, int) and len(np.unique(vectors_NE, axis=0)) < k:
        num = len(np.unique(vectors_NE, axis=0))
        raise InputError(f"{num} different vectors cannot make {k} groups; choose a smaller k")


def _checked_days(days: Any, num: int) -> np.ndarray:
    found = np.asarray(days, np.float64)
    if found.shape != (num,) or not np.isfinite(found).all():
        raise ShapeError(f"days: expected {num} finite numbers, one for each text")
    return found
