"""What the vectors of all-MiniLM-L6-v2 give away, and what defences are worth.

    python benchmarks/inversion.py --data DATA [--only inverter defences ...] [--steps 250]
    python benchmarks/inversion.py --data DATA --only retrained --retrain 60 --defence binary

Texts are Multi30k captions of at most 15 words: attackers know those of training images, those of
validation images are attacked. Of personal data, attackers know the texts of one file of
synthetic_pii, and those of the other are attacked. A cell is kept in --folder, so an interrupted
run goes on. Results go to docs/results/inversion.json; `docs/generate.py` makes the tables.
Settings were not tuned on the attacked texts.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import inversion_plot
import inversion_walks
import numpy as np
from training_free import Work, drawn, part

from polyvec import Embedder
from polyvec.data.tasks.folder import read_folder
from polyvec.data.words import hash64
from polyvec.invert.audit.utility import utility
from polyvec.invert.defences import build_defence
from polyvec.invert.defended import Defended
from polyvec.invert.inverter import Inverter
from polyvec.invert.leakage import leakage, nearest_texts, shuffled
from polyvec.invert.personal import Entity, personal_recall
from polyvec.invert.probes import KeywordAttack, word_overlap
from polyvec.invert.search import search_invert
from polyvec.invert.settings import InverterSettings
from polyvec.invert.space_map import SpaceMap
from polyvec.invert.training import retrain_inverter, train_inverter
from polyvec.storage.files import atomic_file, cache_folder

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
WORDS = 15  # most of a caption
NUM_WORDS = 6  # guessed by the keyword attack
DEFENCES = (
    *("none", "rotation", "gaussian:sigma=0.01", "gaussian:sigma=0.02", "gaussian:sigma=0.04"),
    *("gaussian:sigma=0.08", "private:epsilon=100.0", "directional:epsilon=1000.0", "int8"),
    *("binary", "product:parts=32", "product:parts=8", "truncate:size=64", "mask:count=1"),
)
PAIRS = (10, 100, 1000, 10000)
PREFIXES = (1, 4, 16)
LEAKED = (30, 100, 300)  # pairs of the transfer attack
# Longer training, an encoder-decoder, and a pretrained language model behind one vector (GEIA): the
# folder, what the table says, steps for each of --steps, and what changes.
LONGER = ("longer", f"prefix {PREFIXES[-1]}, six times the steps", 6.0, {})
ENCODER = ("encoder", "nano-t5, prefix 8", 1.0, {"model": "polyvec/nano-t5", "num_tokens": 8})
LARGER = (
    "larger",
    "SmolLM2, prefix 1, a quarter of the steps",
    0.25,
    {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "num_tokens": 1},
)
VARIANTS = (ENCODER, LARGER, LONGER)
LANGUAGES = ("en", "de", "fr")


def lines(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Bench:
    """The victim, the texts, and what is trained on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.data = options, options.data
        self.folder: Path = options.folder or cache_folder("inversion")
        self.work = Work(self.folder)
        draw = np.random.default_rng(0)
        known, test = (
            [row["captions"][0] for row in lines(self.data / "multi30k" / f"{name}.jsonl.gz")]
            for name in ("captions_train", "captions_val")
        )
        known, test = (
            [text for text in dict.fromkeys(side) if len(text.split()) <= WORDS]
            for side in (known, test)
        )
        self.pool = [known[row] for row in draw.permutation(len(known))]
        self.known = self.pool[: options.known]
        self.test = [text for text in test if text not in set(known)][: options.test]
        self.memo: dict[tuple[Any, ...], np.ndarray] = {}
        self._victim: Defended | None = None
        self._keywords: KeywordAttack | None = None

    @property
    def victim(self) -> Defended:
        if self._victim is None:
            self._victim = Defended(Embedder(), memo=self.memo)
        return self._victim

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.victim.encode([text if text.strip() else "." for text in texts])

    def measured(self, found: Sequence[str]) -> dict[str, Any]:
        return leakage(found, self.test, self.encode).as_dict()

    def trained(self, name: str, steps: int, **changes: Any) -> tuple[Inverter, float]:
        """An inverter on the known texts, and the minutes that its training took (0 if kept)."""
        stage = changes.pop("stage", {})
        texts = changes.pop("texts", self.known)
        settings = InverterSettings(
            **{"model": "polyvec/nano-lm", "num_tokens": 16, "max_tokens": 24, **changes}
        )
        folder = self.folder / name
        began = time.perf_counter()
        made = train_inverter(
            self.victim, texts, folder, settings=settings, steps=steps, say=print, **stage
        )
        minutes = (time.perf_counter() - began) / 60
        kept = folder / "minutes.json"
        if kept.is_file():
            minutes = json.loads(kept.read_text())
        else:
            kept.write_text(json.dumps(round(minutes, 2)))
        return made, minutes

    def cell(self, make: Callable[[], Any], *key: str) -> None:
        if self.work.path(*key).exists():
            return
        value = make()
        self.work.keep(value, *key)
        print(", ".join(key), json.dumps(value)[:300], flush=True)

    # ---- cells ------------------------------------------------------------------------------

    def inverter(self) -> None:
        """A prefix of 16 vectors: beams, re-ranking; beside what needs no vector."""
        self.cell(lambda: self._inverter(PREFIXES[-1]), "inverter", f"prefix {PREFIXES[-1]}")
        self.cell(self._baselines, "inverter", "baselines")

    def prefixes(self) -> None:
        """Shorter prefixes."""
        for count in PREFIXES[:-1]:
            self.cell(lambda count=count: self._inverter(count), "inverter", f"prefix {count}")

    def longer(self) -> None:
        """Six times the steps."""
        self._variant(*LONGER)

    def encoder(self) -> None:
        """nano-t5 in place of nano-lm."""
        self._variant(*ENCODER)

    def larger(self) -> None:
        """SmolLM2 in place of nano-lm."""
        self._variant(*LARGER)

    def _variant(self, folder: str, name: str, times: float, changes: Mapping[str, Any]) -> None:
        steps = round(self.options.steps * times)
        self.cell(lambda: self._ways(*self.trained(folder, steps, **changes)), "inverter", name)

    def _inverter(self, count: int) -> dict[str, Any]:
        return self._ways(*self.trained(f"prefix-{count}", self.options.steps, num_tokens=count))

    def _ways(self, inverter: Inverter, minutes: float) -> dict[str, Any]:
        """Greedy, by the language model's order, and re-ranked by the victim."""
        vectors = self.encode(self.test)
        found: dict[str, Any] = {"minutes": minutes}
        ways = {
            "greedy": {"beams": 1},
            "beam 8, language model": {"beams": 8, "rerank": False},
            "beam 8, re-ranked": {"beams": 8},
        }
        for name, options in ways.items():
            texts = [each.text for each in inverter.invert(vectors, **options)]
            found[name] = self.measured(texts)
            found[f"{name}, first"] = texts[:3]
        return found

    def _baselines(self) -> dict[str, Any]:
        inverter, _ = self.trained("prefix-16", self.options.steps)
        vectors = self.encode(self.test)
        other = inverter.invert(shuffled(vectors), beams=8)
        near = nearest_texts(vectors, self.encode(self.known), self.known)
        return {
            "language model alone": self.measured(inverter.alone(len(self.test), beams=8)),
            "another text's vector": self.measured([each.text for each in other]),
            "nearest known text": self.measured(near),
        }

    def corrector(self) -> None:
        """Vec2Text's loop on hypotheses of writers that have not seen the text."""
        self.cell(self._corrector, "corrector")

    def _corrector(self) -> dict[str, Any]:
        steps = self.options.steps // 2
        inverter, minutes = self.trained("corrector", steps, num_tokens=8, corrector=True)
        vectors = self.encode(self.test)
        found: dict[str, Any] = {"minutes": minutes}
        ways = {
            "first texts, greedy": {"beams": 1},
            "first texts, beam 4 re-ranked": {"beams": 4},
            "3 steps, greedy": {"beams": 1, "steps": 3},
            "1 step, beam 4": {"beams": 4, "steps": 1},
            "3 steps, beam 4, 4 sequences": {"beams": 4, "steps": 3, "sequence_beams": 4},
        }
        for name, options in ways.items():
            got = inverter.invert(vectors, **options)
            found[name] = self.measured([each.text for each in got])
            if len(got[0].steps) > 1:
                found[f"{name}, cosines"] = (
                    np.mean([e.steps for e in got], axis=0).round(4).tolist()
                )
        return found

    def defences(self) -> None:
        """Each defence: an inverter and words, by what the attacker knows, beside utility."""
        for name in self.options.defence:
            self.cell(lambda name=name: self._defence(name), "defence", name)

    def _defence(self, name: str) -> dict[str, Any]:
        inverter, _ = self.trained("prefix-16", self.options.steps)
        known, plain = self.encode(self.known), self.encode(self.test)
        if self._keywords is None:
            self._keywords = KeywordAttack().fit(known, self.known)
        model = self._defended(name)
        stored, own = model.encode(self.test), model.encode(self.known)
        sets = [
            drawn(read_folder(self.data / "stsb", "test"), 400),  # type: ignore[arg-type]
            part(read_folder(self.data / "med", "test"), 30, 300),  # type: ignore[arg-type]
        ]
        attackers: dict[str, np.ndarray] = {}
        if stored.shape == plain.shape:
            attackers["fixed"] = stored
        if name != "none":
            attackers["adaptive"] = SpaceMap.fit("ridge", own, known).transform(stored)
            few = SpaceMap.fit("ridge", own[:1000], known[:1000])
            attackers["leaked 1000"] = few.transform(stored)
        found: dict[str, Any] = {"utility": utility(model, sets, self.test), "by": {}}
        for knows, vectors in attackers.items():
            texts = [each.text for each in inverter.invert(vectors, beams=1)]
            guessed = self._keywords.guess(vectors, NUM_WORDS)
            found["by"][knows] = {
                **self.measured(texts),
                "words": round(word_overlap(guessed, self.test)["f1"], 4),
                "near": round(float((vectors * plain).sum(1).mean()), 4),
            }
        return found

    def retrained(self) -> None:
        """Attackers that train on the defended vectors of all known texts: words, and with
        --retrain the inverter."""
        for name in self.options.defence:
            if name == "none":
                continue
            self.cell(lambda name=name: self._retrained_words(name), "retrained words", name)
            if self.options.retrain:
                self.cell(lambda name=name: self._retrained(name), "retrained", name)

    def _defended(self, name: str) -> Defended:
        defence = build_defence(name).fit(self.encode(self.known), self.known)
        return Defended(self.victim.model, defence, self.memo)

    def _retrained_words(self, name: str) -> dict[str, float]:
        model = self._defended(name)
        attack = KeywordAttack().fit(model.encode(self.known), self.known)
        guessed = attack.guess(model.encode(self.test), NUM_WORDS)
        return {"words": round(word_overlap(guessed, self.test)["f1"], 4)}

    def _retrained(self, name: str) -> dict[str, Any]:
        model, steps = self._defended(name), self.options.retrain
        inverter, _ = self.trained("prefix-16", self.options.steps)
        folder, began = self.folder / "retrained" / name.replace(":", "-"), time.perf_counter()
        found, back = retrain_inverter(inverter, model, self.known, folder, steps=steps, say=print)
        texts = found.invert(back.transform(model.encode(self.test)), beams=1)
        minutes = round((time.perf_counter() - began) / 60, 2)
        return {"steps": steps, "minutes": minutes, **self.measured([e.text for e in texts])}

    def spaces(self) -> None:
        """Maps from a rotated and from another model's space, by the number of leaked pairs."""
        for space in ("rotated", "potion-base-2M"):
            self.cell(lambda space=space: self._space(space), "space", space)

    def _space(self, space: str) -> dict[str, Any]:
        inverter, _ = self.trained("prefix-16", self.options.steps)
        texts = self.pool[: max(PAIRS)]
        known, plain = self.encode(texts), self.encode(self.test)
        if space == "rotated":
            turned = build_defence("rotation:seed=11")
            source, attacked = turned.apply(known), turned.apply(plain)
        else:
            other = Defended(Embedder(str(self.data.parent / "models" / space / "hf")))
            source, attacked = other.encode(texts), other.encode(self.test)
        found: dict[str, Any] = {}
        for count in PAIRS:
            for method in ("ridge", "orthogonal", "mlp"):
                fitted = SpaceMap.fit(method, source[:count], known[:count])
                found[f"{method} {count}"] = self._mapped(inverter, fitted.transform(attacked))
        half, end = len(self.known) // 2, len(self.known)
        fitted = SpaceMap.fit("unpaired", source[:half], known[half:end], rounds=10, restarts=10)
        found["unpaired"] = self._mapped(inverter, fitted.transform(attacked))
        return found

    def _mapped(self, inverter: Inverter, vectors: np.ndarray) -> dict[str, Any]:
        plain = self.encode(self.test)
        scores = vectors @ plain.T
        texts = [each.text for each in inverter.invert(vectors, beams=1)]
        return {
            "near": round(float(np.diag(scores).mean()), 4),
            "own first": round(float((scores.argmax(1) == np.arange(len(plain))).mean()), 4),
            **self.measured(texts),
        }

    def transfer(self) -> None:
        """Few leaked pairs: a surrogate's mapped vectors of all texts, or the pairs alone."""
        for count in LEAKED:
            self.cell(lambda count=count: self._transfer(count), "transfer", f"{count} pairs")

    def _transfer(self, count: int) -> dict[str, Any]:
        vectors, steps = self.encode(self.test), self.options.steps
        surrogate = str(self.data.parent / "models" / "potion-base-2M" / "hf")
        stage = {"leaked": count, "surrogate": surrogate}
        # The same pairs for both: a stage takes those with the smallest hashes.
        leaked = sorted(self.known, key=hash64)[:count]
        mapped, minutes = self.trained(f"transfer-{count}", steps, num_tokens=4, stage=stage)
        alone, _ = self.trained(f"few-pairs-{count}", steps, num_tokens=4, texts=leaked)
        found: dict[str, Any] = {"minutes": minutes}
        for inverter, name in ((mapped, "a surrogate and the pairs"), (alone, "pairs alone")):
            # Who has no more than leaked pairs cannot ask the victim which text is nearest.
            texts = [e.text for e in inverter.invert(vectors, beams=4, rerank=False)]
            found[name] = self.measured(texts)
        return found

    def search(self) -> None:
        """Without training: nano-lm proposes, the victim chooses."""
        self.cell(self._search, "search")

    def _search(self) -> dict[str, Any]:
        texts, began = self.test[:10], time.perf_counter()
        vectors = self.encode(texts)
        found = search_invert(
            vectors, self.victim.model.encode, beams=4, top_k=30, max_tokens=10, prompt=""
        )
        return {
            "texts": len(texts),
            "minutes": round((time.perf_counter() - began) / 60, 2),
            "encoded": found[0].num_encoded,
            **leakage([e.text for e in found], texts, self.encode).as_dict(),
        }

    def personal(self) -> None:
        """Personal data by kind, of texts whose templates the attacker knows."""
        self.cell(self._personal, "personal")

    def _personal(self) -> dict[str, Any]:
        folder = self.data / "synthetic_pii"
        known = [row["text"] for row in lines(folder / "generated_large.jsonl.gz")]
        rows = [row for row in lines(folder / "synth_v2.jsonl.gz") if row["spans"]]
        known_set = set(known)
        rows = [row for row in rows if row["text"] not in known_set][: self.options.test]
        short = [" ".join(text.split()) for text in known if len(text.split()) <= 2 * WORDS]
        inverter, minutes = self.trained(
            "personal", self.options.steps, texts=short, num_tokens=8, max_tokens=40
        )
        texts = [row["text"] for row in rows]
        entities = [[Entity(s["type"], s["value"]) for s in row["spans"]] for row in rows]
        vectors = self.encode(texts)
        near = nearest_texts(vectors, self.encode(short), short)
        ways = {
            "inverter": [e.text for e in inverter.invert(vectors, beams=4)],
            "another text's vector": [e.text for e in inverter.invert(shuffled(vectors), beams=4)],
            "nearest known text": near,
        }
        found: dict[str, Any] = {"minutes": minutes, "texts": len(texts)}
        for name, got in ways.items():
            recalls = personal_recall(got, entities)
            found[name] = {
                **leakage(got, texts, self.encode).as_dict(),
                "recall": {
                    kind: [each.count, round(each.whole, 4), round(each.words, 4)]
                    for kind, each in recalls.items()
                },
            }
        return found

    def personas(self) -> None:
        """GEIA on sentences that say who somebody is (PersonaChat)."""
        self.cell(self._personas, "personas")

    def _personas(self) -> dict[str, Any]:
        folder = self.data / "personachat_personas"
        known, test = (
            list(dict.fromkeys(row["text"] for row in lines(folder / f"{side}.jsonl")))
            for side in ("dev_persona_sentences", "test_persona_sentences")
        )
        test = [text for text in test if text not in set(known)][: self.options.test]
        inverter, minutes = self.trained(
            "personas", self.options.steps, texts=known, num_tokens=1, max_tokens=24
        )
        vectors = self.encode(test)
        ways = {
            "inverter": [e.text for e in inverter.invert(vectors, beams=8)],
            "another text's vector": [e.text for e in inverter.invert(shuffled(vectors), beams=8)],
            "nearest known text": nearest_texts(vectors, self.encode(known), known),
        }
        found: dict[str, Any] = {"minutes": minutes, "texts": len(test), "known": len(known)}
        return found | {
            name: leakage(got, test, self.encode).as_dict() for name, got in ways.items()
        }

    def multilingual(self) -> None:
        """Captions in three languages, one of which the victim was trained for."""
        self.cell(self._multilingual, "multilingual")

    def _multilingual(self) -> dict[str, Any]:
        rows = {
            side: lines(self.data / "multi30k" / f"parallel_{side}.jsonl.gz")
            for side in ("train", "val")
        }
        each = self.options.known // len(LANGUAGES)
        known, found = [], dict[str, Any]()
        for number, language in enumerate(LANGUAGES):  # of other captions in each language
            texts = [row[language] for row in rows["train"][number * each : (number + 1) * each]]
            known += [text for text in texts if len(text.split()) <= WORDS]
        inverter, found["minutes"] = self.trained(
            "multilingual", self.options.steps, texts=known, max_tokens=40
        )
        there = set(known)
        for language in LANGUAGES:
            texts = [row[language] for row in rows["val"] if len(row[language].split()) <= WORDS]
            texts = [text for text in texts if text not in there][: self.options.test]
            vectors = self.encode(texts)
            for way, target in (("attack", vectors), ("another text's vector", shuffled(vectors))):
                got = [each.text for each in inverter.invert(target, beams=4)]
                found[f"{language}, {way}"] = leakage(got, texts, self.encode).as_dict()
        return found

    def walks(self) -> None:
        """qsT5: from a caption to another of its picture, and a suggester that learns from it."""
        self.cell(self._walks, "walks")

    def _walks(self) -> dict[str, Any]:
        inverter, _ = self.trained("prefix-16", self.options.steps)
        folder = self.data / "multi30k"
        known, test = (
            inversion_walks.other_captions(lines(folder / f"captions_{side}.jsonl.gz"), WORDS)
            for side in ("train", "val")
        )
        known = known[: inversion_walks.NUM_PAIRS]
        documents = [document for _, document in test][: inversion_walks.NUM_DOCUMENTS]
        pairs = test[: self.options.test]
        found = inversion_walks.walked(inverter, pairs, documents)
        better, found["queries that a text on the way improves"] = inversion_walks.suggested(
            inverter, known
        )
        steps = self.options.steps // 2
        suggester, found["minutes"] = self.trained("suggester", steps, texts=better)
        vectors = self.encode([query for query, _ in pairs])
        texts = [each.text for each in suggester.invert(vectors, rerank=False, beams=1)]
        ranks = inversion_walks.ranked(inverter, texts, pairs, documents)
        found["suggested from the query alone"] = inversion_walks.scores(ranks)
        return found

    def revealer(self) -> None:
        """Text Revealer: texts of a classifier's classes, from a generator of other texts."""
        self.cell(self._revealer, "revealer")

    def _revealer(self) -> dict[str, Any]:
        public, private = (
            inversion_walks.short(lines(self.data / name / "train.jsonl.gz"))
            for name in ("clinc150", "banking77")
        )
        texts = [text for text, _ in public][: self.options.known]
        inverter, minutes = self.trained("revealer", self.options.steps, texts=texts)
        return {"minutes": minutes, **inversion_walks.revealed(inverter, texts, private)}


PARTS = (
    *("inverter", "defences", "spaces", "retrained", "prefixes", "transfer", "corrector"),
    *("personal", "search", "multilingual", "walks", "revealer", "personas", "encoder"),
    *("larger", "longer"),
)


def collect(bench: Bench) -> None:
    """Everything that is finished, into the results file."""
    path = bench.options.results / "inversion.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found["facts"] = {
        "victim": "all-MiniLM-L6-v2",
        "known": len(bench.known),
        "attacked": len(bench.test),
        "steps": bench.options.steps,
    }
    names = {
        "inverter": [
            *(f"prefix {each}" for each in PREFIXES),
            *(name for _, name, _, _ in VARIANTS),
            "baselines",
        ],
        "defence": DEFENCES,
        "space": ("rotated", "potion-base-2M"),
        "transfer": [f"{count} pairs" for count in LEAKED],
    }
    for group, keys in names.items():
        for key in keys:
            if (cell := bench.work.read(group, key)) is not None:
                found.setdefault(group, {})[key] = cell
    for name in DEFENCES:
        by = [bench.work.read(f"retrained{kind}", name) for kind in ("", " words")]
        if any(by) and name in found.get("defence", {}):
            merged = {key: value for cell in by for key, value in (cell or {}).items()}
            found["defence"][name]["by"]["retrained"] = merged
    for name in (
        "corrector",
        "search",
        "personal",
        "multilingual",
        "walks",
        "revealer",
        "personas",
    ):
        if (cell := bench.work.read(name)) is not None:
            found[name] = cell
    with atomic_file(path, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")
    with atomic_file(path.with_suffix(".svg"), "w") as file:
        file.write(inversion_plot.drawn(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="default: polyvec's cache folder")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--known", type=int, default=4000)
    parser.add_argument("--test", type=int, default=80)
    parser.add_argument("--defence", nargs="*", choices=DEFENCES, default=DEFENCES)
    parser.add_argument("--retrain", type=int, default=0, help="steps, of part 'retrained'")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--collect", action="store_true", help="write what is finished, and end")
    options = parser.parse_args()
    bench = Bench(options)
    for name in () if options.collect else options.only:
        getattr(bench, name)()
    collect(bench)


if __name__ == "__main__":
    main()
