"""The audit: every attacker on every defence, beside what is found without an attack.

Attackers train on texts that are not attacked. What each knows:
fixed: the undefended model, of which its attack was made.
adaptive: the defence, too; it maps defended vectors back by ridge, fitted on all its texts.
retrained: the same; it trains on defended vectors of all its texts. Words and nearest texts always,
    the inverter if `AuditSettings.retrain` asks for it.
leaked N: the defended vectors of N of its texts, and nothing of the defence.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.data.words import normalized
from polyvec.embed.inputs.content_words import content_words
from polyvec.errors import DataError, InputError
from polyvec.evaluate.measures.inputs import extra
from polyvec.interfaces import TextEncoder
from polyvec.invert.audit.utility import utility
from polyvec.invert.defences import Defence, build_defence
from polyvec.invert.defended import Defended
from polyvec.invert.inverter import Inverter
from polyvec.invert.leakage import leakage, nearest_texts, shuffled
from polyvec.invert.personal import Entity, personal_data, personal_recall
from polyvec.invert.probes import (
    Attribute,
    KeywordAttack,
    attribute,
    class_counts,
    word_overlap,
)
from polyvec.invert.space_map import SpaceMap
from polyvec.invert.training import retrain_inverter, train_inverter

LEAST_TEXTS = 60
DEFENCES = (
    *("none", "gaussian:sigma=0.02", "gaussian:sigma=0.05", "private:epsilon=100.0", "int8"),
    *("binary", "product", "truncate:size=64", "mask:count=1", "rotation"),
)
NO_DEFENCE = DEFENCES[0]


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """How much is attacked and trained; `quick` is for ten minutes on two cores.

    num_test: texts that are attacked, drawn with the seed. leaked: numbers of leaked pairs.
    retrain: steps for which the inverter trains on each defence's vectors; 0: it does not.
    """

    defences: tuple[str, ...] = DEFENCES
    num_test: int = 500
    steps: int = 2000
    retrain: int = 0
    leaked: tuple[int, ...] = (100, 1000)
    beams: int = 4
    seed: int = 0

    @classmethod
    def quick(cls, **options: Any) -> "AuditSettings":
        return cls(**{"num_test": 100, "steps": 400, "leaked": (100,), "beams": 3, **options})


@dataclass(frozen=True, slots=True)
class Attacked:
    """What one attacker found behind one defence.

    leakage: BLEU, ROUGE-L, token F1, exact match, cosine. words: F1 of content words alone.
    personal: share of personal data found whole, by kind, with its count. texts: what was found.
    """

    attack: str
    knows: str
    defence: str
    leakage: dict[str, float | None] = field(default_factory=dict)
    words: float | None = None
    personal: dict[str, tuple[int, float]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @property
    def f1(self) -> float:
        """Of content words, which all attacks guess; else of all tokens."""
        found = self.leakage.get("token_f1") if self.words is None else self.words
        return float(found or 0.0)


@dataclass(frozen=True, slots=True)
class Audit:
    """All rows, what each defence leaves of the utility, and an attribute if one was given."""

    rows: tuple[Attacked, ...]
    utility: dict[str, dict[str, float]]
    attribute: dict[str, Attribute]
    texts: tuple[str, ...]
    facts: dict[str, str]

    def of(self, defence: str, *, baselines: bool = False) -> list[Attacked]:
        """The attacks on a defence, or what is found without one."""
        return [
            each
            for each in self.rows
            if each.defence == defence and (each.knows == "nothing") is baselines
        ]

    def as_json(self, *, texts: bool = False) -> dict[str, Any]:
        """Plain values; found texts only if they are asked for."""
        rows = [asdict(each) for each in self.rows]
        for each in rows:
            if not texts:
                del each["texts"]
        return {
            "facts": self.facts,
            "rows": rows,
            "utility": self.utility,
            "attribute": {name: asdict(each) for name, each in self.attribute.items()},
        }


class Auditor:
    """Runs an audit of `victim` on texts, of which it holds some back to be attacked."""

    def __init__(
        self,
        victim: TextEncoder,
        texts: Sequence[str],
        settings: AuditSettings,
        folder: Path,
        *,
        labels: Sequence[Hashable] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        # Texts that differ by case or marks alone would be attacked by who knows them.
        given = {
            normalized(text): (text, label)
            for text, label in zip(
                texts, labels if labels is not None else [None] * len(texts), strict=True
            )
            if text.strip()
        }
        if len(given) < LEAST_TEXTS:
            raise DataError(
                f"the audit needs at least {LEAST_TEXTS} different texts, got {len(given)}: most "
                "of them train the attackers, the others are attacked"
            )
        for name, least in (("num_test", 3), ("steps", 1)):
            if getattr(settings, name) < least:
                raise InputError(f"{name} is {getattr(settings, name)}, expected at least {least}")
        if settings.retrain < 0:
            raise InputError(f"retrain is {settings.retrain}, expected at least 0")
        self.built = {name: build_defence(name) for name in _fitting(settings.defences, victim)}
        order = np.random.default_rng(settings.seed).permutation(len(given))
        pairs = list(given.values())
        every = [pairs[row][0] for row in order]
        count = min(settings.num_test, len(every) // 3)
        self.test, self.known = every[:count], every[count:]
        self.labels = None if labels is None else [pairs[row][1] for row in order]
        if self.labels is not None:
            class_counts(self.labels)  # raises before anything is trained
        self.memo: dict[tuple[Any, ...], np.ndarray] = {}
        self.victim, self.plain = victim, Defended(victim, memo=self.memo)
        self.settings, self.folder, self.say = settings, folder, say
        self.entities: list[list[Entity]] = [personal_data(text) for text in self.test]

    def run(self, sets: Sequence[Any] = (), inverter: Inverter | None = None) -> Audit:
        """Every attacker on every defence. sets: of `utility.task_sets`."""
        test_NE, known_NE = self.plain.encode(self.test), self.plain.encode(self.known)
        for text, vector in zip(self.test + self.known, [*test_NE, *known_NE], strict=True):
            if not vector.any():
                raise DataError(
                    f"{text[:40]!r}: the model knows no word of it, its vector is zero; leave out"
                )
        # Whatever does not fit these texts raises before an inverter is trained.
        keywords = self._keywords(known_NE)
        models: dict[str, Defended] = {}
        for name, defence in self.built.items():
            fitted = self._fitted(name, defence, known_NE)
            models[name] = Defended(self.victim, fitted, self.memo)
            models[name].encode(self.test[:1])
        given, inverter = inverter is not None, inverter or self._inverter()
        if inverter.writer.in_features != test_NE.shape[1]:
            inverter.checked(test_NE)  # raises, and says both sizes
        rows, worth, attributes = [], {}, {}
        rows += self._baselines(test_NE, inverter, keywords)
        for name, defended in models.items():
            self.say(f"defence {name}")
            stored_NE, own_ME = defended.encode(self.test), defended.encode(self.known)
            rows += self._attacks(name, stored_NE, own_ME, known_NE, inverter, keywords)
            if name != NO_DEFENCE:
                rows += self._retrained(name, defended, inverter)
            worth[name] = utility(defended, sets, self.test)
            if self.labels is not None:
                every = np.concatenate([stored_NE, own_ME])
                attributes[name] = attribute(
                    every, [*self.test, *self.known], self.labels, seed=self.settings.seed
                )
        facts = {
            "texts attacked": str(len(self.test)),
            "texts that the attackers know": str(len(self.known)),
            "dimensions": str(test_NE.shape[1]),
            "inverter": f"{inverter.settings.model}, {inverter.settings.num_tokens} prefix vectors",
        }
        if given:
            facts["inverter"] += (
                ", trained before: its figures hold if it has not seen the attacked texts"
            )
        return Audit(tuple(rows), worth, attributes, tuple(self.test), facts)

    def _inverter(self) -> Inverter:
        self.say(f"training an inverter, {self.settings.steps} steps")
        return train_inverter(
            self.plain,
            self.known,
            self.folder / "inverter",
            steps=self.settings.steps,
            seed=self.settings.seed,
            say=self.say,
        )

    def _fitted(self, name: str, defence: Defence, known_NE: np.ndarray) -> Defence:
        if name == "product":  # of small sets, fewer codes; as many parts as divide the size
            size, codes = known_NE.shape[1], min(256, len(known_NE) // 2)
            parts = next(each for each in range(min(32, size), 0, -1) if size % each == 0)
            defence = build_defence(f"product:parts={parts},codes={codes}")
        return defence.fit(known_NE, self.known)

    def _baselines(
        self, test_NE: np.ndarray, inverter: Inverter, keywords: KeywordAttack
    ) -> list[Attacked]:
        """What is found without the vector of the text, or without an inverter."""
        alone = inverter.alone(len(self.test), beams=self.settings.beams)
        other = inverter.invert(shuffled(test_NE, self.settings.seed), beams=self.settings.beams)
        frequent = [keywords.words[: self._num_words()]] * len(self.test)
        words = word_overlap(frequent, self.test)["f1"]
        return [
            Attacked("most frequent words", "nothing", NO_DEFENCE, words=words),
            self._row("language model alone", "nothing", NO_DEFENCE, alone),
            self._row("another text's vector", "nothing", NO_DEFENCE, [e.text for e in other]),
        ]

    def _attacks(
        self,
        name: str,
        stored_NE: np.ndarray,
        own_ME: np.ndarray,
        known_ME: np.ndarray,
        inverter: Inverter,
        keywords: KeywordAttack,
    ) -> list[Attacked]:
        same_size = stored_NE.shape[1] == known_ME.shape[1]
        back: dict[str, np.ndarray] = {}
        if same_size:
            back["fixed"] = stored_NE
        if name != NO_DEFENCE:
            back["adaptive"] = SpaceMap.fit("ridge", own_ME, known_ME).transform(stored_NE)
            for count in self.settings.leaked:
                if count < len(known_ME):
                    few = SpaceMap.fit("ridge", own_ME[:count], known_ME[:count])
                    back[f"leaked {count}"] = few.transform(stored_NE)
        rows = []
        for knows, vectors_NE in back.items():
            found = inverter.invert(vectors_NE, beams=self.settings.beams)
            texts = [each.text for each in found]
            rows.append(self._row("inverter", knows, name, texts))
            rows.append(self._nearest(name, knows, vectors_NE, known_ME))
            rows.append(self._guessed(name, knows, vectors_NE, keywords))
        return rows

    def _retrained(self, name: str, defended: Defended, inverter: Inverter) -> list[Attacked]:
        """Attackers that train on the defended vectors of all their texts."""
        knows = "retrained"
        stored_NE, own_ME = defended.encode(self.test), defended.encode(self.known)
        rows = [
            self._nearest(name, knows, stored_NE, own_ME),
            self._guessed(name, knows, stored_NE, self._keywords(own_ME)),
        ]
        if self.settings.retrain:
            self.say(f"training the inverter on it, {self.settings.retrain} steps")
            found, back = retrain_inverter(
                inverter,
                defended,
                self.known,
                self.folder / "retrained" / re.sub(r"[^\w.-]+", "-", name),
                steps=self.settings.retrain,
                seed=self.settings.seed,
                say=self.say,
            )
            read_NE = back.transform(stored_NE)
            texts = [e.text for e in found.invert(read_NE, beams=self.settings.beams)]
            rows.insert(0, self._row("inverter", knows, name, texts))
        return rows

    def _keywords(self, vectors_ME: np.ndarray) -> KeywordAttack:
        made = KeywordAttack(min_count=min(5, 1 + len(self.known) // 100))
        return made.fit(vectors_ME, self.known)

    def _nearest(
        self, name: str, knows: str, vectors_NE: np.ndarray, among_ME: np.ndarray
    ) -> Attacked:
        texts = nearest_texts(vectors_NE, among_ME, self.known)
        return self._row("nearest known text", knows, name, texts)

    def _guessed(
        self, name: str, knows: str, vectors_NE: np.ndarray, keywords: KeywordAttack
    ) -> Attacked:
        words = word_overlap(keywords.guess(vectors_NE, self._num_words()), self.test)["f1"]
        return Attacked("keywords", knows, name, words=words)

    def _num_words(self) -> int:
        """Of a known text on average: so many are guessed."""
        return max(1, round(float(np.mean([len(set(content_words(t))) for t in self.known]))))

    def _row(self, attack: str, knows: str, defence: str, texts: Sequence[str]) -> Attacked:
        plain_NE = self.plain.encode(self.test)
        found = leakage(texts, self.test, self._encode, plain_NE)
        personal = {}
        if any(self.entities):
            recalls = personal_recall(texts, self.entities)
            personal = {kind: (each.count, each.whole) for kind, each in recalls.items()}
        words = word_overlap([list(set(content_words(t))) for t in texts], self.test)["f1"]
        return Attacked(
            attack, knows, defence, found.as_dict(), words, personal, texts=tuple(texts)
        )

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.plain.encode(list(texts))


def _fitting(names: Sequence[str], victim: TextEncoder) -> list[str]:
    """The defences; the default ones with a truncation that is one for this size of vectors."""
    size = victim.get_embedding_dimension()
    if tuple(names) != DEFENCES or size > 64:
        return list(names)
    return [f"truncate:size={max(1, size // 2)}" if e.startswith("truncate") else e for e in names]


def needs_evaluate() -> None:
    """Raises MissingExtraError before any work if the measures' packages are not there."""
    for module in ("sacrebleu", "rouge_score", "sklearn", "scipy"):
        extra(module, "polyvec audit")
