"""What each way of training gains: the same model with and without it, over seeds.

    python benchmarks/training_effects.py --data DATA --scale small     (an hour on a GPU's minutes)
    python benchmarks/training_effects.py --data DATA --scale nano      (CPU)

Scale small is SmolLM2-135M-Instruct with LoRA, nano the models inside the package. The arms of an
experiment have the same data, order, steps and seeds; they differ in what the experiment is about.
Data are training splits at hand (wikitext2, wiki_sentences, snli, quora_pairs, squad_qg_pairs,
medquad, nfcorpus, scifact ...); measured is what no stage saw: STS-B, SICK-R and STS16 test,
TREC question types, MED, a part of SciFact's test claims. Settings come from the papers and were
not tuned on these.

Each arm and seed is a cell in --folder, so an interrupted run goes on and several processes share
the work. Results go to docs/results/training-effects-SCALE.json; docs/generate.py makes the table.
"""

import argparse
import dataclasses
import json
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_free import Work, drawn, part

from polyvec import Embedder
from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import TaskSet
from polyvec.embed.backbone.attention import AttentionSpec
from polyvec.embed.compose import compose
from polyvec.embed.inputs.tokens import TokenBatch
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import PolyvecError
from polyvec.evaluate.tasks import Evaluator
from polyvec.recipe import load_recipe
from polyvec.storage.files import atomic_file, cache_folder
from polyvec.train.language_head import attach_head, log_probabilities
from polyvec.train.run import Run, run
from polyvec.train.sections import STAGES

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
Table = Mapping[str, Any]
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """An embedder, as a recipe and what is changed in it, and the stages that train it."""

    recipe: str
    changes: Table = field(default_factory=dict)
    stages: Sequence[Table] = ()
    measure: Callable[[Any, "Sets"], dict[str, float]] | None = None


@dataclass(frozen=True)
class Experiment:
    """Arms, and what the paper says of them: (better, worse, in words)."""

    paper: str
    arms: Mapping[str, Arm]
    claims: Sequence[tuple[str, str, str]]
    columns: Sequence[str] = ("stsb test", "sick test", "sts16 test", "trec test", "med", "scifact")


@dataclass(frozen=True)
class Sets:
    """What is measured, by the name of its column."""

    tasks: Mapping[str, TaskSet]
    texts: Sequence[str]  # of wikitext2's test split, for perplexity


def data_sets(folder: Path) -> Sets:
    def read(name: str, split: str = "test") -> Any:
        return read_folder(folder / name, split)

    tasks = {
        "stsb test": read("stsb"),
        "sick test": drawn(read("sick"), 1500),
        "sts16 test": read("sts16"),
        "trec test": read("trec"),
        "med": read("med"),
        "scifact": part(read("scifact"), 300, 1200),
    }
    lines = _lines(folder / "wikitext2" / "wiki.test.tokens.txt.gz")
    return Sets(tasks, [line for line in lines if len(line) > 200][:200])


def _lines(path: Path) -> list[str]:
    import gzip

    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]


# ---- stages -------------------------------------------------------------------------------------

LORA = {"kind": "lora", "r": 16, "alpha": 32, "dropout": 0.05}
INFO_NCE = [{"kind": "info_nce", "temperature": 0.05}]
COMMON: dict[str, Table] = {
    "small": {"adapter": LORA, "learning_rate": 2e-4, "lr_scheduler_type": "linear", "bf16": True},
    "nano": {"learning_rate": 5e-4, "lr_scheduler_type": "linear"},
}
STEPS = {
    "small": {"mntp": 300, "ucl": 90, "scl": 300},
    "nano": {"mntp": 150, "ucl": 90, "scl": 150},
}
# Sentences that mean the same, and questions with what answers them: general, none of a test set.
PAIRS = (
    {"name": "snli"},
    {"name": "cad_nli"},
    {"name": "quora_pairs", "limit": 12_000},
    {"name": "squad_qg_pairs"},
    {"name": "medquad", "limit": 6_000},
)


def mntp(**more: Any) -> Table:
    return {
        "kind": "mntp",
        "data": ({"name": "wikitext2"}, {"name": "wiki_sentences"}),
        "mask_probability": 0.2,
        "batch_size": 32,
        "max_length": 128,
        "warmup_steps": 20,
        **more,
    }


def simcse(**more: Any) -> Table:
    """LLM2Vec's: attention dropout 0.3, temperature 0.05, batches of 128."""
    return {
        "kind": "ucl",
        "data": ({"name": "wiki_sentences"},),
        "losses": INFO_NCE,
        "attention_dropout": 0.3,
        "batch_size": 128,
        "max_length": 64,
        "warmup_steps": 10,
        **more,
    }


def scl(**more: Any) -> Table:
    return {
        "kind": "scl",
        "data": PAIRS,
        "losses": INFO_NCE,
        "batch_size": 64,
        "max_length": 128,
        "query_max_length": 128,
        "warmup_steps": 20,
        **more,
    }


# ---- experiments --------------------------------------------------------------------------------


def llm2vec() -> Experiment:
    mean = {"template": None, "pooling": "mean", "prompts": {}, "default_prompt": None}
    both = {**mean, "attention": "bidirectional"}
    return Experiment(
        "LLM2Vec, arXiv:2404.05961",
        {
            "causal": Arm("causal-mean", mean),
            "causal, SimCSE": Arm("causal-mean", mean, [simcse()]),
            "bidirectional": Arm("causal-mean", both),
            "bidirectional, MNTP": Arm("causal-mean", both, [mntp()]),
            "bidirectional, SimCSE": Arm("causal-mean", both, [simcse()]),
            "bidirectional, MNTP, SimCSE": Arm("causal-mean", both, [mntp(), simcse()]),
        },
        (
            ("causal", "bidirectional", "without training, attention made bidirectional hurts"),
            ("bidirectional, MNTP", "bidirectional", "MNTP teaches the model to use it"),
            ("bidirectional, MNTP, SimCSE", "bidirectional, MNTP", "SimCSE adds to it"),
            ("bidirectional, MNTP, SimCSE", "causal, SimCSE", "the whole beats a causal mean"),
            ("bidirectional, MNTP, SimCSE", "bidirectional, SimCSE", "SimCSE needs MNTP before"),
        ),
    )


def pooling() -> Experiment:
    """The same contrastive stage under each pooling."""
    plain = {"template": None, "prompts": {}, "default_prompt": None}
    both = {**plain, "attention": "bidirectional"}
    arms = {
        "mean, untrained": Arm("causal-mean", plain),
        "mean": Arm("causal-mean", plain, [scl()]),
        "last token": Arm("causal-last", {}, [scl()]),
        "weighted mean": Arm("causal-mean", {**plain, "pooling": "weighted_mean"}, [scl()]),
        "bidirectional mean": Arm("causal-mean", both, [scl()]),
        "latents, bidirectional": Arm("causal-mean", {**both, "pooling": "latent_attn"}, [scl()]),
        "all layers, bidirectional": Arm("mltp-multi-bidirectional", plain, [scl()]),
        "all layers, causal": Arm("mltp-multi-causal", plain, [scl()]),
        "last layers' tokens, causal": Arm("mltp-last-causal", plain, [scl()]),
        "echo": Arm("echo", {}, [scl()]),
        "PromptEOL": Arm("prompteol", {}, [scl()]),
    }
    return Experiment(
        "poolings after the same contrastive stage",
        arms,
        (
            ("latents, bidirectional", "bidirectional mean", "NV-Embed: latents beat the mean"),
            ("latents, bidirectional", "last token", "NV-Embed: latents beat the last token"),
            ("all layers, bidirectional", "bidirectional mean", "MLTP: all layers beat the last"),
            ("all layers, causal", "last token", "MLTP: all layers beat the last token"),
            ("bidirectional mean", "mean", "bidirectional beats causal"),
            ("echo", "mean", "Echo: still ahead after the same training"),
            ("weighted mean", "mean", "SGPT: weights that grow help"),
            ("PromptEOL", "last token", "PromptEOL: the prompt still helps"),
            ("mean", "mean, untrained", "training helps"),
        ),
    )


def gritlm() -> Experiment:
    both = {"template": None, "pooling": "mean", "prompts": {}, "default_prompt": None}
    arms = {
        "untrained": Arm("causal-mean", {**both, "attention": "bidirectional"}, (), perplexity),
        "embedding only": Arm(
            "causal-mean", {**both, "attention": "bidirectional"}, [scl()], perplexity
        ),
        "embedding and generation": Arm(
            "causal-mean",
            {**both, "attention": "bidirectional"},
            [{**scl(), "kind": "multi_task", "generation": GENERATION}],
            perplexity,
        ),
    }
    return Experiment(
        "GritLM, arXiv:2402.09906",
        arms,
        (
            ("embedding and generation", "embedding only", "generation costs no embedding quality"),
            ("embedding and generation", "untrained", "the embedding improves"),
        ),
    )


GENERATION: Table = {}


def matryoshka() -> Experiment:
    plain = {"template": None, "prompts": {}, "default_prompt": None, "pooling": "mean"}
    cut = lambda model, sets: truncated(model, sets, 8)  # noqa: E731
    size = {"dims": [576, 288, 144, 72]}
    return Experiment(
        "Matryoshka, arXiv:2205.13147",
        {
            "plain": Arm("causal-mean", plain, [scl()], cut),
            "Matryoshka": Arm("causal-mean", plain, [scl(matryoshka=size)], cut),
        },
        (("Matryoshka", "plain", "an eighth of the dimensions keeps more"),),
        columns=("stsb test", "sick test", "med", "scifact"),
    )


INSTRUCTIONS = {
    "snli": "Retrieve a sentence that follows from the premise",
    "cad_nli": "Retrieve a sentence that follows from the premise",
    "quora_pairs": "Retrieve a question that asks the same",
    "squad_qg_pairs": "Retrieve a sentence that answers the question",
    "medquad": "Retrieve a passage that answers the medical question",
}


def instructions() -> Experiment:
    told = tuple({**each, "instruction": INSTRUCTIONS[each["name"]]} for each in PAIRS)
    batches = {"homogeneous": True}
    return Experiment(
        "instructions, arXiv:2212.09741, arXiv:2401.00368",
        {
            "without": Arm("causal-last", {}, [scl(mixing=batches)]),
            "with": Arm("e5-mistral", {}, [scl(data=told, mixing=batches)]),
        },
        (("with", "without", "instructions help on tasks that training did not have"),),
    )


def llama2vec() -> Experiment:
    eba = {
        "kind": "eba",
        "data": ({"name": "novels_successive"},),
        "batch_size": 16,
        "max_length": 160,
        "warmup_steps": 20,
    }
    return Experiment(
        "Llama2Vec, arXiv:2312.15503",
        {
            "contrastive only": Arm("llama2vec", {}, [scl()]),
            "EBAE and EBAR first": Arm("llama2vec", {}, [eba, scl()]),
            "EBAE and EBAR only": Arm("llama2vec", {}, [eba]),
            "untrained": Arm("llama2vec", {}),
        },
        (
            ("EBAE and EBAR first", "contrastive only", "the same fine-tuning ends higher"),
            ("EBAE and EBAR only", "untrained", "the adapted vectors say more of the text"),
        ),
    )


EXPERIMENTS: Mapping[str, Callable[[], Experiment]] = {
    "llm2vec": llm2vec,
    "pooling": pooling,
    "matryoshka": matryoshka,
    "instructions": instructions,
    "gritlm": gritlm,
    "llama2vec": llama2vec,
}


# ---- measuring ----------------------------------------------------------------------------------


def perplexity(model: Any, sets: Sets) -> dict[str, float]:
    """Mean negative log-likelihood of a token of wikitext2's test split, in nats, read causally."""
    attach_head(model)
    backbone = model.backbone
    spec = AttentionSpec("causal") if backbone.mechanism != "native" else None
    total, count = 0.0, 0
    model.eval()
    for text in sets.texts:
        ids = np.asarray(model.text_tokenizer.hf(text, add_special_tokens=False).input_ids[:256])
        with torch.inference_mode():
            states = backbone(TokenBatch.of_ids([ids]), attention=spec)
            targets = torch.from_numpy(ids[1:]).to(backbone.device)
            total -= float(log_probabilities(backbone, states.last_BTD[0, :-1], targets).sum())
        count += len(ids) - 1
    return {"nats a token": total / count}


def truncated(model: Any, sets: Sets, share: int) -> dict[str, float]:
    """The scores with the first 1/share of the dimensions."""
    size = model.get_embedding_dimension()
    model.truncate_dim = size // share
    try:
        return {
            f"{column}, 1/{share}": score(model, sets.tasks[column])
            for column in ("stsb test", "sick test", "med", "scifact")
        }
    finally:
        model.truncate_dim = None


def score(model: Any, task: TaskSet) -> float:
    return float(Evaluator(model, show_progress_bar=False).measure(task).outcome.main_score)


def build(arm: Arm, scale: str) -> Embedder:
    settings = load_recipe(arm.recipe).at(EMBEDDER, scale)
    model = compose(dataclasses.replace(settings, **arm.changes))
    if model.device.type == "cuda" and model.backbone.mechanism == "plan":
        # One kernel for a batch of about equal lengths beats one for each length.
        model.backbone.runner.packed = False
    return model


def measure(
    name: str, label: str, seed: int, sets: Sets, options: argparse.Namespace, work: Work
) -> None:
    """Train an arm with a seed, and measure it."""
    experiment = EXPERIMENTS[name]()
    arm = experiment.arms[label]
    key = ("effect", name, label, str(seed))
    if (seed and not arm.stages) or work.path(*key).exists() or not work.claim(*key):
        return
    began = time.perf_counter()
    folder = work.folder / "runs" / work.path(*key).stem
    try:
        torch.manual_seed(seed)
        model = build(arm, options.scale)
        if arm.stages:
            shutil.rmtree(folder, ignore_errors=True)
            plan = Run(
                tuple(stage_of(stage, seed, options) for stage in arm.stages),
                folder,
                data=options.data,
            )
            model = run(plan, model)
            shutil.rmtree(folder, ignore_errors=True)
        model.eval()
        trained = time.perf_counter() - began
        model.to(dtype=torch.float32)
        found = {column: score(model, sets.tasks[column]) for column in experiment.columns}
        if arm.measure is not None:
            found |= arm.measure(model, sets)
        seconds = time.perf_counter() - began
        cell = {"scores": found, "trained_s": round(trained, 1), "s": round(seconds, 1)}
        work.keep(cell, *key)
        shown = "  ".join(f"{column} {100 * value:.2f}" for column, value in found.items())
        print(f"{name}: {label}, seed {seed} ({trained:.0f} + {seconds - trained:.0f} s): {shown}")
    except PolyvecError as error:
        print(f"{name}: {label}: left out, {error}", file=sys.stderr)
    except Exception:  # noqa: BLE001 - one arm must not end the others
        print(f"{name}: {label}: failed\n{traceback.format_exc()}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        work.release(*key)


def stage_of(table: Table, seed: int, options: argparse.Namespace) -> Any:
    steps = STEPS[options.scale].get(table["kind"], STEPS[options.scale]["scl"])
    steps = max(1, math.ceil(steps * options.steps))
    quiet = {"save_strategy": "no"}
    raw = {**COMMON[options.scale], "max_steps": steps, "seed": seed, "trainer": quiet, **table}
    (found,) = STAGES.value({"stage": [raw]}, "full", Path("training_effects"))
    return found


def collect(scale: str, work: Work) -> None:
    """Means and standard deviations over seeds, and each claim's difference."""
    found: dict[str, Any] = {"scale": scale, "experiments": {}}
    for name, make in EXPERIMENTS.items():
        experiment = make()
        cells = {
            label: [
                cell["scores"]
                for seed in SEEDS
                if (cell := work.read("effect", name, label, str(seed))) is not None
            ]
            for label in experiment.arms
        }
        if not any(cells.values()):
            continue
        arms = {
            label: {column: spread([each[column] for each in runs]) for column in runs[0]}
            for label, runs in cells.items()
            if runs
        }
        claims = []
        for better, worse, says in experiment.claims:
            if better in arms and worse in arms:
                by = {
                    column: difference(cells[better], cells[worse], column)
                    for column in arms[better]
                    if column in arms[worse]
                }
                claims.append({"row": better, "over": worse, "says": says, "by": by})
        found["experiments"][name] = {"paper": experiment.paper, "arms": arms, "claims": claims}
    with atomic_file(RESULTS / f"training-effects-{scale}.json", "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


def spread(values: Sequence[float]) -> list[float]:
    """Mean, standard deviation (0 of one run), and number of runs."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return [round(float(np.mean(values)), 4), round(deviation, 4), len(values)]


def difference(better: Any, worse: Any, column: str) -> list[float]:
    """Difference of means, and the standard error of it over seeds."""
    a, b = ([each[column] for each in runs] for runs in (better, worse))
    error = math.sqrt(sum(np.var(x, ddof=1) / len(x) for x in (a, b) if len(x) > 1))
    return [round(float(np.mean(a) - np.mean(b)), 4), round(error, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scale", choices=("small", "nano"), default="small")
    parser.add_argument("--folder", type=Path, help="default: polyvec's cache folder")
    parser.add_argument("--only", nargs="*", help="these experiments")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--steps", type=float, default=1.0, help="this share of the steps")
    parser.add_argument("--collect", action="store_true", help="write what is finished, and end")
    options = parser.parse_args()
    work = Work((options.folder or cache_folder("training-effects")) / options.scale)
    if not options.collect:
        sets = data_sets(options.data)
        for seed in SEEDS[: options.seeds]:
            for name in options.only or EXPERIMENTS:
                for label in EXPERIMENTS[name]().arms:
                    measure(name, label, seed, sets, options, work)
    collect(options.scale, work)


if __name__ == "__main__":
    main()
