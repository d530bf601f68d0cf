"""What each way of training gains: the same model with and without it, over seeds.

    python benchmarks/training_effects.py --data DATA --scale small     (GPU)
    python benchmarks/training_effects.py --data DATA --scale nano      (CPU)

Scale small is SmolLM2-135M-Instruct with LoRA, nano the models inside the package. The arms of an
experiment have the same data, order, steps and seeds; they differ in what the experiment is about.
Data are training splits at hand (wikitext2, wiki_sentences, snli, quora_pairs, squad_qg_pairs,
medquad, nfcorpus, scifact ...); measured is what no stage saw: STS-B, SICK-R and STS16 test,
TREC question types, MED, a part of SciFact's test claims. Settings come from the papers and were
not tuned on these. On a CPU, --layers 8 --steps 0.25 makes scale small a matter of minutes an arm.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from effects import EXPERIMENTS, LORA, Arm, Claim, Sets, data_sets, score
from training_free import Work

from polyvec import Embedder
from polyvec.embed.compose import compose
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import PolyvecError
from polyvec.recipe import load_recipe
from polyvec.storage.files import atomic_file, cache_folder
from polyvec.train.run import Run, run
from polyvec.train.sections import STAGES

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
Table = Mapping[str, Any]
SEEDS = (0, 1, 2)
# Small: by STS-B dev after 40 steps on 8 layers (untrained 65, 1e-3: 69, 2e-3: 72).
COMMON: Mapping[str, Table] = {
    "small": {"adapter": LORA, "learning_rate": 2e-3, "bf16": True},
    "nano": {"learning_rate": 5e-4},
}
STEPS = {
    "small": {"mntp": 300, "ucl": 90, "scl": 200},
    "nano": {"mntp": 150, "ucl": 60, "scl": 100},
}


def build(arm: Arm, options: argparse.Namespace) -> Embedder:
    settings = load_recipe(arm.recipe).at(EMBEDDER, options.scale)
    settings = dataclasses.replace(settings, num_layers=options.layers or settings.num_layers)
    model = compose(dataclasses.replace(settings, **arm.changes))
    if options.padded and model.backbone.mechanism == "plan":
        model.backbone.runner.packed = False
    return model


def measure(
    name: str, label: str, seed: int, sets: Sets, options: argparse.Namespace, work: Work
) -> None:
    """Train an arm with a seed, and measure it."""
    experiment = EXPERIMENTS[name](options.scale)
    arm = experiment.arms[label]
    key = ("effect", name, label, str(seed))
    if (seed and not arm.stages) or work.path(*key).exists() or not work.claim(*key):
        return
    known = [column for column in experiment.columns if column in sets.tasks]
    columns = [column for column in known if column in (options.columns or known)]
    if (cell := same_arm(arm, seed, columns, options, work)) is not None:
        work.keep(cell, *key)
        work.release(*key)
        print(f"{name}: {label}, seed {seed}: as measured in {cell['of']}", flush=True)
        return
    began = time.perf_counter()
    folder = work.folder / "runs" / work.path(*key).stem
    try:
        torch.manual_seed(seed)
        model = build(arm, options)
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
        # At small in bfloat16, as training_free.py: at most 0.15 points from float32.
        model.to(dtype=torch.bfloat16 if options.scale == "small" else torch.float32)
        found = {column: score(model, sets.tasks[column]) for column in columns}
        if arm.measure is not None:
            found |= arm.measure(model, dataclasses.replace(sets, columns=columns))
        seconds = time.perf_counter() - began
        cell = {
            "scores": found,
            "trained_s": round(trained, 1),
            "s": round(seconds, 1),
            "steps": options.steps,
            "layers": options.layers,
            "sets": options.sets or options.scale,
        }
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


def same_arm(
    arm: Arm, seed: int, columns: Sequence[str], options: argparse.Namespace, work: Work
) -> dict[str, Any] | None:
    """The cell of another experiment's equal arm, if it has these columns."""
    if arm.measure is not None:
        return None
    for name, make in EXPERIMENTS.items():
        for label, other in make(options.scale).arms.items():
            cell = work.read("effect", name, label, str(seed))
            if (
                cell is not None
                and (arm.recipe, arm.changes, arm.stages)
                == (other.recipe, other.changes, other.stages)
                and (cell["layers"], cell["steps"], cell["sets"])
                == (options.layers, options.steps, options.sets or options.scale)
                and set(columns) <= cell["scores"].keys()
            ):
                scores = {column: cell["scores"][column] for column in columns}
                return {**cell, "scores": scores, "of": f"{name}: {label}"}
    return None


def stage_of(table: Table, seed: int, options: argparse.Namespace) -> Any:
    steps = STEPS[options.scale].get(table["kind"], STEPS[options.scale]["scl"])
    steps = max(1, math.ceil(table.get("max_steps", steps) * options.steps))
    quiet = {"save_strategy": "no"}
    raw = {**COMMON[options.scale], "seed": seed, "trainer": quiet, **table, "max_steps": steps}
    (found,) = STAGES.value({"stage": [raw]}, "full", Path("training_effects"))
    return found


def collect(scale: str, work: Work) -> None:
    """Means and standard deviations over seeds, and each claim's difference.

    What the folder has no cells for stays as it was collected before.
    """
    results = RESULTS / f"training-effects-{scale}.json"
    before = json.loads(results.read_text())["experiments"] if results.exists() else {}
    before = {sized(key.split(", ")[0], each["layers"]): each for key, each in before.items()}
    experiments: dict[str, Any] = dict(before)
    for name, make in EXPERIMENTS.items():
        experiment = make(scale)
        kept = {
            label: [
                cell
                for seed in SEEDS
                if (cell := work.read("effect", name, label, str(seed))) is not None
            ]
            for label in experiment.arms
        }
        made = [cell for each in kept.values() for cell in each]
        if not made:
            continue
        arms, claims = summary(
            {label: [cell["scores"] for cell in runs] for label, runs in kept.items()},
            experiment.claims,
        )
        # Cells of other sizes do not compare.
        ((layers, steps, size),) = {(cell["layers"], cell["steps"], cell["sets"]) for cell in made}
        key = sized(name, layers)
        experiments[key] = with_older(
            {
                "paper": experiment.paper,
                "layers": layers,
                "steps": steps,
                "sets": size,
                "arms": arms,
                "claims": claims,
            },
            before.get(key),
        )
    order = [
        key for name in EXPERIMENTS for key in sorted(experiments) if key.split(", ")[0] == name
    ]
    found = {"scale": scale, "experiments": {key: experiments[key] for key in order}}
    with atomic_file(results, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


def summary(
    cells: Mapping[str, Sequence[Mapping[str, float]]], said: Sequence[tuple[Any, ...]]
) -> tuple[Table, Sequence[Table]]:
    """Each arm's mean and spread by column, and the differences that claims are about.

    cells: the scores of each run, by arm.
    """
    arms = {
        label: {column: spread([each[column] for each in runs]) for column in runs[0]}
        for label, runs in cells.items()
        if runs
    }
    claims = []
    for better, worse, says, ends in (Claim(*each) for each in said):
        if better in arms and worse in arms:
            by = {
                column: difference(cells[better], cells[worse], column)
                for column in arms[better]
                if column in arms[worse] and (ends is None or column.endswith(ends))
            }
            claims.append({"row": better, "over": worse, "says": says, "by": by})
    return arms, claims


def sized(name: str, layers: int | None) -> str:
    return name if layers is None else f"{name}, {layers} layers"


def with_older(new: dict[str, Any], older: Mapping[str, Any] | None) -> dict[str, Any]:
    """With arms of an earlier collection that have more runs or are missing, and their claims."""
    if older is None or any(older[key] != new[key] for key in ("layers", "steps", "sets")):
        return new
    kept = {
        label: arm
        for label, arm in older["arms"].items()
        if label not in new["arms"] or runs(arm) > runs(new["arms"][label])
    }
    claims = {claim["says"]: claim for claim in new["claims"]}
    for claim in older["claims"]:
        if {claim["row"], claim["over"]} & kept.keys():
            claims[claim["says"]] = claim
    return {**new, "arms": {**new["arms"], **kept}, "claims": list(claims.values())}


def runs(arm: Mapping[str, Sequence[float]]) -> int:
    return int(max(num for _, _, num in arm.values()))


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
    parser.add_argument("--arms", nargs="*", help="these arms, of one experiment")
    parser.add_argument("--layers", type=int, help="the backbone's first layers only")
    parser.add_argument("--columns", nargs="*", help="these columns, to try an experiment")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--sets", choices=("small", "nano"), help="size of the measured sets")
    parser.add_argument("--steps", type=float, default=1.0, help="this share of the steps")
    # On a GPU one kernel for a batch of about equal lengths beats one for each length.
    parser.add_argument("--padded", action="store_true", help="train and measure with padding")
    parser.add_argument("--collect", action="store_true", help="write what is finished, and end")
    options = parser.parse_args()
    work = Work((options.folder or cache_folder("training-effects")) / options.scale)
    if not options.collect:
        sets = data_sets(options.data, options.sets or options.scale)
        for seed in SEEDS[: options.seeds]:
            for name in options.only or EXPERIMENTS:
                for label in options.arms or EXPERIMENTS[name](options.scale).arms:
                    measure(name, label, seed, sets, options, work)
    collect(options.scale, work)


if __name__ == "__main__":
    main()
