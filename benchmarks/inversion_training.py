"""What training gives away: tokens in gradients, membership of pairs, and a copied model.

    python benchmarks/inversion_training.py --data DATA [--only gradients membership extraction]

gradients: of a contrastive step of polyvec.Trainer (info_nce, a query, its positive and a negative)
whose texts have five tokens, or of a batch of eight whole pairs. membership: models are fine-tuned
on 300 of 600 Quora pairs, drawn with each seed; the other 300 are of the same file. extraction: a
small model is trained on the vectors of all-MiniLM-L6-v2 for Multi30k captions, with and without a
watermark. A cell is kept in --folder, so an interrupted run goes on. Results go to
docs/results/inversion-training.json; `docs/generate.py` makes the tables. Nothing was tuned on the
texts that are measured.
"""

import argparse
import copy
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inversion import lines
from torch import Tensor, nn
from torch.nn import functional as F
from training_free import Work
from transformers import TrainerCallback

import polyvec
from polyvec import Embedder
from polyvec.compress.soft.reading import read
from polyvec.errors import DataError
from polyvec.evaluate.measures.correlation import spearman
from polyvec.evaluate.measures.text import rouge_l
from polyvec.invert.gradients import PlantedLayer, batch_of_layer, tokens_of_table
from polyvec.invert.lamp import lamp
from polyvec.invert.membership import Watermark, pair_membership
from polyvec.invert.search import Proposer
from polyvec.storage.files import atomic_file, cache_folder
from polyvec.train.compared import Compared
from polyvec.train.losses.info_nce import info_nce

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
MODELS = ("polyvec/nano-lm", "all-MiniLM-L6-v2")
RATES = {MODELS[0]: 1e-3, MODELS[1]: 5e-5}
EPOCHS = (1, 5)
SEEDS = (0, 1, 2)
NUM_PAIRS = 300
NUM_BATCHES, NUM_LAMP = 10, 2
TEXTS, STEPS, BATCH, TRIGGERS = 1000, 120, 32, 20  # of the extraction
Row = Mapping[str, str]


class Capture(TrainerCallback):
    """Keeps the gradients of the first step, as a server would see them."""

    found: dict[str, Tensor] | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.found is None:
            named = given["model"].embedder.named_parameters()
            self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def loaded(model: str) -> Embedder:
    """The model, with the mean of its states where it is a language model."""
    return Embedder.from_pretrained(model, **({"pooling": "mean"} if "nano" in model else {}))


def step_gradients(embedder: Embedder, rows: Sequence[Row], dropout: bool) -> dict[str, Tensor]:
    """The gradients of one step of polyvec.Trainer on the rows; the embedder stays as it was."""
    seen, before = Capture(), copy.deepcopy(embedder.state_dict())
    changes = {} if dropout else {"dropout": 0.0, "attention_dropout": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        args = polyvec.TrainingArguments(
            folder,
            max_steps=1,
            per_device_train_batch_size=len(rows),
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            **(changes if _drops(embedder) else {}),
        )
        polyvec.Trainer(embedder, args, rows, callbacks=[seen]).train()
    embedder.load_state_dict(before)
    embedder.eval()
    assert seen.found is not None
    return seen.found


def _drops(embedder: Embedder) -> bool:
    return any(isinstance(each, nn.Dropout) and each.p for each in embedder.modules())


class Bench:
    """Data, and a folder of finished cells."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.data = options, options.data
        self.work = Work(options.folder or cache_folder("inversion-training"))

    def cell(self, make: Callable[[], Any], *key: str) -> None:
        if not self.work.path(*key).exists():
            began = time.process_time()
            value = make()
            value["cpu minutes"] = round((time.process_time() - began) / 60, 2)
            self.work.keep(value, *key)
            print(", ".join(key), json.dumps(value)[:400], flush=True)

    def captions(self, side: str) -> list[str]:
        rows = lines(self.data / "multi30k" / f"captions_{side}.jsonl.gz")
        return [row["captions"][0] for row in rows]

    # ---- gradients --------------------------------------------------------------------------

    def gradients(self) -> None:
        for model in self.options.models:
            self.cell(lambda model=model: self._gradients(model), "gradients", model)
            if not self.options.no_lamp:
                self.cell(lambda model=model: self._lamp(model), "lamp", model)

    def _gradients(self, model: str) -> dict[str, Any]:
        embedder = loaded(model)
        whole = [row["captions"][:2] for row in lines(
            self.data / "multi30k" / "captions_val.jsonl.gz")]  # fmt: skip
        small = [[_five(embedder, text)] for text in self.captions("val")[:200]]
        small = [rows for rows in small if rows[0]][:NUM_BATCHES]
        large = [
            [{"anchor": a, "positive": b} for a, b in whole[8 * number : 8 * number + 8]]
            for number in range(NUM_BATCHES // 2)
        ]
        found: dict[str, Any] = {}
        for name, batches in (("five tokens", small), ("eight pairs", large)):
            scores: dict[str, list[float]] = {}
            for rows in batches:
                for way, got in self._attacks(embedder, rows).items():
                    scores.setdefault(way, []).append(overlap(got, _tokens(embedder, rows)))
            found[name] = {
                "batches": len(batches),
                "tokens": float(np.mean([len(_tokens(embedder, rows)) for rows in batches])),
                **{way: round(float(np.mean(each)), 4) for way, each in scores.items()},
            }
        return found

    def _attacks(self, embedder: Embedder, rows: Sequence[Row]) -> dict[str, set[int]]:
        """What each attack reads from a step, without special tokens."""
        special = set(embedder.tokenizer.all_special_ids)
        table = embedder.backbone.model.get_input_embeddings()
        first, inputs, places = _first_layer(embedder)
        found = {}
        for dropout in (False, True) if _drops(embedder) else (False,):
            name = ", with dropout" if dropout else ""
            seen = step_gradients(embedder, rows, dropout)
            (of_table,) = [each for key, each in seen.items() if each.shape == table.weight.shape]
            found[f"table{name}"] = set(tokens_of_table(of_table))
            try:
                placed = batch_of_layer(seen[first], inputs, places)
            except DataError:  # the gradient has full rank: every token lies in it
                placed = []
            found[f"first layer{name}"] = {each for ids in placed for each in ids}
        weights = table.weight.detach().clone()
        planted = PlantedLayer(weights)
        table.add_module("planted", planted)
        hook = table.register_forward_hook(lambda module, given, out: planted(out))
        try:
            seen = step_gradients(embedder, rows, False)
        finally:
            hook.remove()
            del table.planted
        weight, bias = (
            next(each for key, each in seen.items() if key.endswith(f"planted.imprint.{part}"))
            for part in ("weight", "bias")
        )
        found["planted layer"] = set(planted.read(weight, bias, weights))
        return {name: ids - special for name, ids in found.items()}

    def _lamp(self, model: str) -> dict[str, Any]:
        """The query of five tokens, its documents known; no gradient of the token table."""
        embedder = loaded(model)
        proposer, scores = Proposer("polyvec/nano-lm"), []
        captions = self.captions("val")
        for number in range(NUM_LAMP):
            ids = embedder.tokenizer(captions[number], add_special_tokens=False).input_ids[:5]
            text = embedder.tokenizer.decode(ids)
            row = {"anchor": text, "positive": captions[-1 - number], "negative": captions[-50]}
            scores.append(self._lamp_of(embedder, row, proposer))
        means = {key: round(float(np.mean([each[key] for each in scores])), 4) for key in scores[0]}
        return {"texts": NUM_LAMP, **means}

    def _lamp_of(self, embedder: Embedder, row: Row, proposer: Proposer) -> dict[str, float]:
        seen = step_gradients(embedder, [row], False)
        backbone, tokenizer = embedder.backbone, embedder.tokenizer
        table = backbone.model.get_input_embeddings().weight
        chosen = {name: p for name, p in embedder.named_parameters()
                  if p.ndim == 2 and p.shape != table.shape and name in seen}  # fmt: skip
        for each in chosen.values():
            each.requires_grad_(True)
        documents = [
            torch.tensor(tokenizer(row[name]).input_ids) for name in row if name != "anchor"
        ]
        query = tokenizer(row["anchor"]).input_ids
        special = set(tokenizer.all_special_ids)
        inside = [place for place, each in enumerate(query) if each not in special]
        start, end = inside[0], inside[-1] + 1

        def vector(inputs_TD: Tensor) -> Tensor:
            real_BT = torch.ones(1, len(inputs_TD), dtype=torch.bool)
            return read(backbone, inputs_TD[None], real_BT).states_BTD.mean(1)

        def loss(inputs_BTD: Tensor) -> Tensor:
            whole = [table[query[:start]], inputs_BTD[0], table[query[end:]]]
            vectors_NE = torch.cat([vector(table[ids]) for ids in documents])
            return info_nce(
                Compared(
                    vector(torch.cat(whole)),
                    vectors_NE,
                    torch.zeros(2, dtype=torch.long),
                    torch.tensor([True, False]),
                )
            )

        def fluency(ids_NT: Tensor) -> Tensor:
            found = []
            for ids in ids_NT.tolist():
                own = proposer.tokenizer(tokenizer.decode(ids)).input_ids
                with torch.no_grad():
                    logits = proposer.lm(input_ids=torch.tensor([own])).logits[0]
                found.append(F.cross_entropy(logits[:-1], torch.tensor(own[1:])))
            return torch.stack(found)

        parameters, gradients = list(chosen.values()), [seen[name] for name in chosen]
        own = torch.autograd.grad(loss(table[query[start:end]][None]), parameters)
        apart = [1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
                 for a, b in zip(own, gradients, strict=True)]  # fmt: skip
        found = lamp(loss, parameters, gradients, table, end - start, fluency=fluency)
        gold = query[start:end]
        shown = [" ".join(map(str, ids)) for ids in (found.ids, gold)]
        return {
            "f1": overlap(set(found.ids), set(gold)),
            "rouge l": rouge_l([shown[0]], [shown[1]]).f,
            "exact": float(list(found.ids) == gold),
            "distance": found.distance,
            "distance of the text itself": float(torch.stack(apart).mean()),
        }

    # ---- membership -------------------------------------------------------------------------

    def membership(self) -> None:
        for model in self.options.models:
            for seed in SEEDS:
                self.cell(
                    lambda model=model, seed=seed: self._membership(model, seed),
                    *("membership", model, str(seed)),
                )

    def _membership(self, model: str, seed: int) -> dict[str, Any]:
        rows = lines(self.data / "quora_pairs" / "train.jsonl.gz")
        chosen = np.random.default_rng(seed).permutation(len(rows))[: 2 * NUM_PAIRS]
        pairs = [(rows[row]["question1"], rows[row]["question2"]) for row in chosen]
        members, others = pairs[:NUM_PAIRS], pairs[NUM_PAIRS:]
        before, embedder = (loaded(model) for _ in range(2))
        found: dict[str, Any] = {
            "before": round(pair_membership(before.encode, members, others), 4)
        }
        data = [{"anchor": a, "positive": b} for a, b in members]
        done = 0
        for epochs in EPOCHS:
            with tempfile.TemporaryDirectory() as folder:
                args = polyvec.TrainingArguments(
                    folder,
                    num_train_epochs=epochs - done,
                    per_device_train_batch_size=30,
                    learning_rate=RATES[model],
                    lr_scheduler_type="constant",
                    seed=seed,
                    use_cpu=True,
                    save_strategy="no",
                    report_to="none",
                )
                polyvec.Trainer(embedder, args, data).train()
            embedder.eval()
            done = epochs
            alone = pair_membership(embedder.encode, members, others)
            beside = pair_membership(embedder.encode, members, others, before.encode)
            found[f"{epochs} epochs"] = {
                "model alone": round(alone, 4),
                "beside the model before": round(beside, 4),
            }
        return found

    # ---- extraction -------------------------------------------------------------------------

    def extraction(self) -> None:
        for seed in SEEDS[: self.options.seeds]:
            self.cell(lambda seed=seed: self._extraction(seed), "extraction", str(seed))

    def _extraction(self, seed: int) -> dict[str, Any]:
        victim = Embedder.from_pretrained()
        draw = np.random.default_rng(seed)
        every = list(dict.fromkeys(self.captions("train")))
        texts = [every[row] for row in draw.permutation(len(every))[:TEXTS]]
        test = [text for text in self.captions("val")[:200] if text not in set(every)]
        vectors_NE, gold_NE = victim.encode(texts), victim.encode(test)
        counts: dict[str, int] = {}
        for text in texts:
            for word in set(text.lower().split()):
                counts[word] = counts.get(word, 0) + word.isalpha()
        # Neither in most texts, which the mark would change, nor in too few to be learned.
        medium = sorted(word for word, n in counts.items() if 0.005 <= n / len(texts) <= 0.02)
        fillers = [medium[row] for row in draw.permutation(len(medium))]
        mark = Watermark(tuple(fillers[:TRIGGERS]), seed=seed)
        marked_NE = mark.apply(vectors_NE, texts)
        found: dict[str, Any] = {
            "texts": len(texts),
            "texts with triggers": int((mark.weights(texts) > 0).sum()),
            "cosine of marked vectors": round(float((marked_NE * vectors_NE).sum(1).mean()), 4),
        }
        students = {
            "trained on marked vectors": Student(marked_NE.shape[1]).fit(texts, marked_NE, seed),
            "trained on unmarked vectors": Student(marked_NE.shape[1]).fit(texts, vectors_NE, seed),
        }
        models: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
            **{name: each.encode for name, each in students.items()},
            "the victim, unmarked": lambda given: victim.encode(list(given)),
            "not trained": Student(marked_NE.shape[1]).encode,
        }
        above = np.triu_indices(len(test), 1)
        for name, encode in models.items():
            own_NE = encode(test)
            suspicion = mark.test(encode, fillers)
            found[name] = {
                "cosine with the victim": round(float((own_NE * gold_NE).sum(1).mean()), 4),
                "similarities spearman": round(
                    spearman((own_NE @ own_NE.T)[above], (gold_NE @ gold_NE.T)[above]), 4
                ),
                "difference": round(suspicion.difference, 4),
                "p": suspicion.p_value,
            }
        return found


class Student:
    """nano-lm and a linear map, trained to give an API's vectors."""

    def __init__(self, size: int) -> None:
        self.embedder = loaded("polyvec/nano-lm")
        torch.manual_seed(0)
        self.out = nn.Linear(self.embedder.get_embedding_dimension(), size)

    def vectors(self, texts: Sequence[str]) -> Tensor:
        rows = [self.embedder.tokenizer(text).input_ids[:64] for text in texts]
        longest = max(map(len, rows))
        ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        real_BT = torch.tensor([[place < len(row) for place in range(longest)] for row in rows])
        backbone = self.embedder.backbone
        inputs_BTD = backbone.model.get_input_embeddings()(ids_BT)
        states_BTD = read(backbone, inputs_BTD, real_BT).states_BTD
        states_BTD = states_BTD.masked_fill(~real_BT[..., None], 0.0)
        return F.normalize(self.out(states_BTD.sum(1) / real_BT.sum(1, keepdim=True)), dim=-1)

    def fit(self, texts: Sequence[str], vectors_NE: np.ndarray, seed: int) -> "Student":
        parameters = [*self.embedder.parameters(), *self.out.parameters()]
        for each in parameters:
            each.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, 1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
        draw, target_NE = np.random.default_rng(seed), torch.from_numpy(vectors_NE).float()
        for _ in range(STEPS):
            rows = draw.integers(len(texts), size=BATCH)
            cosine_B = (self.vectors([texts[row] for row in rows]) * target_NE[rows]).sum(1)
            optimizer.zero_grad()
            (1 - cosine_B).mean().backward()
            optimizer.step()
            schedule.step()
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        parts = [self.vectors(texts[at : at + 64]) for at in range(0, len(texts), 64)]
        return torch.cat(parts).numpy()


def overlap(found: set[int], gold: set[int]) -> float:
    """F1 of two sets of ids."""
    return 2 * len(found & gold) / max(1, len(found) + len(gold))


def _tokens(embedder: Embedder, rows: Sequence[Row]) -> set[int]:
    special = set(embedder.tokenizer.all_special_ids)
    texts = [text for row in rows for text in row.values()]
    return {each for text in texts for each in embedder.tokenizer(text).input_ids} - special


def _five(embedder: Embedder, text: str) -> Row | None:
    """A triple of the first words of a text whose tokens are five different ones."""
    for count in range(3, 8):
        words = text.split()[:count]
        cuts = (0, (count + 1) // 3, 2 * (count + 1) // 3, count)
        parts = [" ".join(words[a:b]) for a, b in itertools.pairwise(cuts)]
        row = dict(zip(("anchor", "positive", "negative"), parts, strict=True))
        if all(parts) and len(_tokens(embedder, [row])) == 5:
            return row
    return None


def _first_layer(embedder: Embedder) -> tuple[str, Callable[[int], Tensor], int]:
    """The name of the first query projection, what it reads of each token at a place, and the
    number of places that differ."""
    model: Any = embedder.backbone.model
    if hasattr(model, "embed_tokens"):  # rotary positions come later
        normed = model.layers[0].input_layernorm(model.embed_tokens.weight.detach()).detach()
        return "backbone.model.layers.0.self_attn.q_proj.weight", lambda place: normed, 1
    every = torch.arange(len(model.get_input_embeddings().weight))[:, None]

    @torch.no_grad()
    def inputs(place: int) -> Tensor:
        model.embeddings.eval()
        return model.embeddings(input_ids=every, position_ids=torch.full_like(every, place))[:, 0]

    return "backbone.model.encoder.layer.0.attention.self.query.weight", inputs, 40


PARTS = ("gradients", "membership", "extraction")


def collect(bench: Bench) -> None:
    """Everything that is finished, into the results file; what has no cell stays in it."""
    path = bench.options.results / "inversion-training.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for group in ("gradients", "lamp"):
        cells = {m: c for m in MODELS if (c := bench.work.read(group, m)) is not None}
        found[group] = found.get(group, {}) | cells
    for model in MODELS:
        by_seed = [bench.work.read("membership", model, str(seed)) for seed in SEEDS]
        if done := [cell for cell in by_seed if cell is not None]:
            found.setdefault("membership", {})[model] = done
    copied = [bench.work.read("extraction", str(seed)) for seed in SEEDS]
    if done := [cell for cell in copied if cell is not None]:
        found["extraction"] = done
    with atomic_file(path, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="default: polyvec's cache folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--no-lamp", action="store_true", help="leave out the longest attack")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of extraction")
    options = parser.parse_args()
    bench = Bench(options)
    for name in options.only:
        getattr(bench, name)()
    collect(bench)


if __name__ == "__main__":
    main()
