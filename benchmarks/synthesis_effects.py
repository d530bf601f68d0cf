"""What training data that a language model writes or judges gains: Table 3, and its claims.

    python benchmarks/synthesis_effects.py --data DATA --part table --scale small      (GPU)
    python benchmarks/synthesis_effects.py --data DATA --part table --scale nano       (CPU)
    python benchmarks/synthesis_effects.py --data DATA --part effects                  (GPU)

table: every recipe of the survey's Table 3, at a scale: rows made and kept, calls, minutes, and
the score of its embedder untrained, and trained on as many unfiltered, filtered and gold rows.
effects: what papers claim, as arms that differ in one thing; SmolLM2-135M-Instruct writes.

Texts are documents of the measured corpus (never its test queries), or sentences of Wikipedia.
Each source of rows, and each arm and seed, is a cell in --folder: an interrupted run goes on, and
several processes share the work; an arm waits until its sources are made. A cell that failed says
why, and is tried again with --retry. Results go to docs/results/synthesis-PART.json with --collect.
"""

import argparse
import json
import os
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from effects import score
from synthesis_arms import Arm, Context, built, ready
from synthesis_claims import EFFECTS
from synthesis_domains import Tasks
from synthesis_making import WRITERS, Making
from synthesis_sources import SOURCES
from synthesis_table import row_of_table, sources_of_table, table_keys
from training_effects import summary
from training_free import Work

from polyvec.errors import PolyvecError
from polyvec.storage.files import atomic_file, cache_folder
from polyvec.train.run import Run, run

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
NUM_SEEDS = 3
OUT_OF_MEMORY = 3  # times that a cell is tried again


class Bench:
    """The cells of a part, and the work on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work = Work((options.folder or cache_folder("synthesis-effects")) / self.name)
        self.tasks = Tasks(options.data, options.sets)
        if options.part == "effects":
            found, self.sources = {name: make() for name, make in EFFECTS.items()}, SOURCES
        else:
            found = {key: row_of_table(key, options.scale) for key in table_keys()}
            self.sources = dict(sources_of_table(options.scale))
        self.order = list(found)
        self.experiments = {
            name: each for name, each in found.items() if not options.only or name in options.only
        }
        self.began = time.monotonic()
        self.short = 0

    @property
    def name(self) -> str:
        """Of the part, in names of files."""
        return "effects" if self.options.part == "effects" else f"table-{self.options.scale}"

    @property
    def folder(self) -> Path:
        return self.work.folder / "sources"

    def cells(self) -> list[tuple[str, ...]]:
        """Sources that arms need, then arms, the first seed of all before the second."""
        arms = [
            ("arm", name, label, str(seed))
            for seed in range(self.options.seeds)
            for name, each in self.experiments.items()
            for label, arm in each.arms.items()
            if not seed or arm.stages or arm.base is None
            if not self.options.arms or label in self.options.arms
        ]
        needed = dict.fromkeys(source for cell in arms for source in self.arm(cell).sources)
        arms = [cell for cell in arms if self.common(cell) not in self.options.skip]
        return [*(("source", name) for name in self.sources if name in needed), *arms]

    def common(self, cell: tuple[str, ...]) -> str | None:
        """The kind of an arm's embedder."""
        base = self.arm(cell).base
        return None if base is None else base.common

    def arm(self, cell: tuple[str, ...]) -> Arm:
        found: Arm = self.experiments[cell[1]].arms[cell[2]]
        return found

    def run(self) -> None:
        left = self.cells()
        while left:
            waiting = []
            for cell in left:
                if self.work.path(*cell).exists():
                    continue
                if self.options.minutes and time.monotonic() - self.began > (
                    60 * self.options.minutes
                ):
                    return
                if not self.is_ready(cell) or not self.work.claim(*cell):
                    waiting.append(cell)
                    continue
                try:
                    # Another process may have finished it before the claim.
                    if not self.work.path(*cell).exists() and not self.attempt(cell):
                        waiting.append(cell)
                finally:
                    self.work.release(*cell)
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
            if len(waiting) == len(left):
                time.sleep(1)
            left = waiting

    def is_ready(self, cell: tuple[str, ...]) -> bool:
        if cell[0] == "source":
            return True
        return all(self.work.path("source", name).exists() for name in self.arm(cell).sources)

    def attempt(self, cell: tuple[str, ...]) -> bool:
        """Do a cell; False if it is to be tried again. What failed is kept, so that it ends."""
        began = time.perf_counter()
        try:
            make = self.make_source if cell[0] == "source" else self.measure
            found = make(cell)
        except torch.OutOfMemoryError as error:
            self.short += 1
            if self.short <= OUT_OF_MEMORY:
                return False
            found = {"error": f"out of memory: {error}"[:300]}
        except PolyvecError as error:
            found = {"error": str(error)[:500]}
        except Exception:  # noqa: BLE001 - one cell must not end the others
            found = {"error": traceback.format_exc()[-1500:]}
        found["wall_s"] = round(time.perf_counter() - began, 1)
        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        found["settings"] = self.settings
        self.work.keep(found, *cell)
        shown = found.get("error") or found.get("scores") or found.get("rows")
        out = sys.stderr if "error" in found else sys.stdout
        print(f"{', '.join(cell)} ({found['wall_s']:.0f} s): {shown}", file=out, flush=True)
        return True

    @property
    def settings(self) -> dict[str, Any]:
        """Cells of other settings do not compare."""
        names = ("limit", "steps", "layers", "sets", "writer")
        return {name: getattr(self.options, name) for name in names}

    def make_source(self, cell: tuple[str, ...]) -> dict[str, Any]:
        _, name = cell
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return self.sources[name](Making(self.options, self.tasks, folder, name))

    def measure(self, cell: tuple[str, ...]) -> dict[str, Any]:
        _, name, _, seed = cell
        arm, columns = self.arm(cell), self.experiments[name].columns
        for source in arm.sources:
            if "error" in self.work.read("source", source):
                return {"error": f"its source failed: {source}"}
        context = Context(self.options, self.tasks, self.folder, columns, int(seed))
        if arm.base is None:
            assert arm.measure is not None
            return {"scores": arm.measure(None, context)}
        began = time.perf_counter()
        stages = tuple(ready(stage, arm.base.common, context) for stage in arm.stages)
        torch.manual_seed(int(seed))
        model = built(arm.base, self.options)
        if stages:
            folder = self.work.folder / "runs" / self.work.path(*cell).stem
            shutil.rmtree(folder, ignore_errors=True)
            model = run(Run(stages, folder, data=self.options.data), model)
            shutil.rmtree(folder, ignore_errors=True)
        model.eval()
        if arm.base.common == "small":  # as training_effects.py: at most 0.15 points from float32
            model.to(dtype=torch.bfloat16)
        trained = time.perf_counter() - began
        scores = {column: score(model, self.tasks[column]) for column in columns}
        if arm.measure is not None:
            scores |= arm.measure(model, context)
        limits = [table.get("limit") for stage in stages for table in stage.data]
        return {"scores": scores, "rows": limits, "trained_s": round(trained, 1)}


def collect(bench: Bench, path: Path) -> None:
    """Means and standard deviations over seeds, each claim's difference, and the sources.

    What the folder has nothing of stays as it was collected before.
    """
    before = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, Any] = {"experiments": {}, "sources": {}}
    for name, experiment in bench.experiments.items():
        kept: dict[str, list[Any]] = {}
        for label in experiment.arms:
            cells = [bench.work.read("arm", name, label, str(s)) for s in range(NUM_SEEDS)]
            kept[label] = [cell for cell in cells if cell is not None]
        cells = {
            label: [cell["scores"] for cell in each if "scores" in cell]
            for label, each in kept.items()
        }
        if not any(cells.values()):
            continue
        arms, claims = summary(cells, experiment.claims)
        runs = [cell for each in kept.values() for cell in each]
        settings = {json.dumps(cell["settings"], sort_keys=True) for cell in runs}
        found["experiments"][name] = {
            "paper": experiment.paper,
            "settings": [json.loads(each) for each in sorted(settings)],
            "device": sorted({cell["device"] for cell in runs}),
            "arms": arms,
            "rows": {k: v[0]["rows"] for k, v in kept.items() if v and v[0].get("rows")},
            "claims": claims,
            "failed": {k: v[0]["error"] for k, v in kept.items() if v and "error" in v[0]},
        }
    for name in bench.sources:
        cell = bench.work.read("source", name)
        if cell is not None:
            found["sources"][name] = cell
    for part, order in (("experiments", bench.order), ("sources", list(bench.sources))):
        every = {**before.get(part, {}), **found[part]}
        found[part] = {name: every[name] for name in order if name in every}
    with atomic_file(path, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("table", "effects"), default="table")
    parser.add_argument("--scale", choices=("small", "nano"), default="small", help="of the table")
    parser.add_argument("--folder", type=Path, help="default: polyvec's cache folder")
    parser.add_argument("--only", nargs="*", help="these experiments")
    parser.add_argument("--arms", nargs="*", help="these arms")
    kinds = ("small", "nano", "minilm", "minilm-reset")
    parser.add_argument("--skip", nargs="*", choices=kinds, default=[], help="these embedders")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS)
    parser.add_argument("--limit", type=int, default=256, help="texts to write for, about")
    parser.add_argument("--steps", type=float, default=1.0, help="this share of the steps")
    parser.add_argument("--layers", type=int, help="SmolLM2's first layers only, as an embedder")
    parser.add_argument("--sets", choices=("small", "nano", "tiny"), default="small")
    parser.add_argument("--writer", default=WRITERS["small"], help="language model of scale small")
    # Answers are kept by it: with that of another machine its cells are read again here.
    parser.add_argument("--dtype", help="of the writer; default: bfloat16 on a GPU, else float32")
    parser.add_argument("--minutes", type=float, help="begin no cell after this")
    # On a GPU one kernel for a batch of about equal lengths beats one for each length.
    parser.add_argument("--padded", action="store_true", help="train and measure with padding")
    parser.add_argument("--retry", action="store_true", help="forget cells that failed, and end")
    parser.add_argument("--collect", action="store_true", help="write what is finished, and end")
    options = parser.parse_args()
    os.environ["POLYVEC_DATA"] = str(options.data)  # of the recipes' step "pairs"
    warnings.filterwarnings("ignore", module="polyvec")
    bench = Bench(options)
    if options.retry:
        for cell in bench.cells():
            if "error" in (bench.work.read(*cell) or {}):
                bench.work.path(*cell).unlink()
    elif options.collect:
        collect(bench, RESULTS / f"synthesis-{bench.name}.json")
    else:
        bench.run()


if __name__ == "__main__":
    main()
