"""What soft compressors keep: reconstruction, answers and perplexity, beside their controls.

    python benchmarks/soft_compression.py --data DATA --scale small     (GPU)
    python benchmarks/soft_compression.py --data DATA --only toys       (an hour of one CPU core)
    python benchmarks/soft_compression.py --collect

On a GPU, twelve processes that share the cells, for about five minutes:

    for i in $(seq 12); do
        timeout 285 python benchmarks/soft_compression.py --data DATA --folder CELLS \\
            --bf16 --steps 0.6 > log$i.txt 2>&1 &
    done; wait

Rows are the recipes of recipes/understanding/ with their stages at --scale: small is
SmolLM2-135M-Instruct, nano is nano-lm. Trained on the sentences around the answers of 40 articles
of SQuAD's development split (and stories, for those that go on); measured on questions about the
other eight: token accuracy of writing the passage again, exact match and F1 of the answers, from
the memory, from the memory of another passage, without any, from the passage itself and from as
many of its first tokens as the memory has vectors. Toys are the orderings of the papers, on a
language model of 0.2 million weights over three seeds: captions written again from m vectors,
captions that follow two others of the same picture, colours asked for by name.

Each row or toy with a seed is a cell in --folder, so an interrupted run goes on and several
processes share the work. Results go to docs/results/soft-compression.json; docs/generate.py makes
the tables.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soft_arms
import soft_facts
import soft_toys
import torch
from soft_arms import Held
from training_effects import RESULTS, difference, spread
from training_free import Work

from polyvec.compress.soft.compressor import SoftCompressor
from polyvec.compress.soft.sections import COMPRESSOR, ENCODER
from polyvec.compress.soft.settings import AUTOENCODE, CONTINUE, CompressorSettings
from polyvec.embed.compose import compose
from polyvec.embed.settings import EmbedderSettings
from polyvec.errors import PolyvecError
from polyvec.recipe import load_recipe
from polyvec.settings import fill
from polyvec.storage.files import atomic_file, cache_folder
from polyvec.train.run import Run, run
from polyvec.train.sections import STAGES

SEEDS = (0, 1, 2)
FILE = "soft-compression.json"


def recipe_cell(key: str, seed: int, held: Held, options: argparse.Namespace, work: Work) -> Any:
    """Train a recipe's stages, and measure what its memories keep."""
    recipe = load_recipe(key)
    torch.manual_seed(seed)
    encoder = recipe.at(ENCODER, options.scale)
    settings = recipe.at(COMPRESSOR, options.scale)
    assert encoder is not None and settings is not None
    if options.layers:
        encoder = dataclasses.replace(encoder, num_layers=options.layers)
    model = SoftCompressor(compose(encoder), settings)
    found: dict[str, float] = {}
    if key in soft_arms.RANKING:
        before = soft_arms.ranked(model, held)
        found |= {f"{name}, untrained": before[name] for name in ("list_mle", "mrr, memory")}
    stages = [
        dataclasses.replace(
            stage,
            max_steps=max(1, math.ceil(stage.max_steps * options.steps)),
            seed=seed,
            bf16=options.bf16,
            batch_size=math.ceil(stage.batch_size / options.accumulate),
            accumulate=options.accumulate,
            trainer={"save_strategy": "no"},
        )
        for stage in recipe.at(STAGES, options.scale)
    ]
    began = time.perf_counter()
    model = train(model, stages, work.folder / "runs" / f"{key}-{seed}", held.data)
    minutes = (time.perf_counter() - began) / 60
    found["trained share"] = trained_share(model)
    if key in soft_arms.RANKING:
        found |= soft_arms.ranked(model, held)
    elif key in soft_arms.DISTILLED:
        prompt = recipe.at(STAGES, options.scale)[0].settings["prompt"]
        found |= soft_arms.distilled(model, held, prompt)
    else:
        found |= soft_arms.answered(model, held)
    return {
        "scores": found,
        "minutes": minutes,
        "steps": [stage.max_steps for stage in stages],
        "accumulate": options.accumulate,
    }


def fact_cell(key: str, seed: int, held: Held, options: argparse.Namespace, work: Work) -> Any:
    """A recipe on facts that the toys' language model can look up."""
    recipe = load_recipe(key)
    folder = small_model("repeated", held, options, work)
    torch.manual_seed(seed)
    encoder, settings = soft_facts.settings(recipe, folder)
    model = SoftCompressor(compose(encoder), settings)
    stages = soft_facts.stages(recipe, held, seed, options.steps)
    began = time.perf_counter()
    model = train(model, stages, work.folder / "runs" / f"facts-{key}-{seed}", held.data)
    minutes = (time.perf_counter() - began) / 60
    facts = soft_facts.Facts(held.data, held.files, held.num)
    found = {"trained share": trained_share(model), **soft_arms.answered(model, facts)}
    return {"scores": found, "minutes": minutes, "steps": [stage.max_steps for stage in stages]}


def toy_cell(name: str, seed: int, held: Held, options: argparse.Namespace, work: Work) -> Any:
    """A compressor on the small language model, and that model alone."""
    toy = soft_toys.TOYS[name]
    folder = small_model(toy.language, held, options, work)
    torch.manual_seed(seed)
    encoder = compose(EmbedderSettings(str(folder), attention=toy.attention))
    settings = fill(CompressorSettings, dict(toy.compressor), name)
    found = {}
    if toy.measure in soft_toys.ALONE:
        plain = dict.fromkeys((AUTOENCODE, CONTINUE), "{memory}")
        alone = SoftCompressor(encoder, dataclasses.replace(settings, prompts=plain))
        found["LM alone"] = soft_toys.ALONE[toy.measure](alone, held)
    stages = [toy_stage(table, seed, held, options) for table in toy.stages]
    began = time.perf_counter()
    model = SoftCompressor(encoder, settings)
    model = train(model, stages, work.folder / "runs" / f"{name}-{seed}", held.data)
    minutes = (time.perf_counter() - began) / 60
    return {
        "scores": soft_toys.MEASURES[toy.measure](model, held) | found,
        "minutes": minutes,
        "steps": [stage.max_steps for stage in stages],
    }


def trained_share(model: SoftCompressor) -> float:
    trained = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    return sum(trained.values()) / model.num_parameters


def small_model(texts: str, held: Held, options: argparse.Namespace, work: Work) -> Path:
    """The folder of a language model of the toys, trained once for all of them."""
    folder = work.folder / f"lm-{texts}"
    if not folder.exists():
        deviation, steps = soft_toys.LANGUAGES[texts]
        file = held.files[f"{texts}-train"]
        blank = soft_toys.language_model(work.folder / f"lm-{texts}-untrained", file, deviation)
        torch.manual_seed(0)
        encoder = compose(EmbedderSettings(str(blank)))
        stage = toy_stage(
            {**soft_toys.LANGUAGE, "data": texts, "max_steps": steps}, 0, held, options
        )
        encoder = train(encoder, [stage], work.folder / "runs" / f"lm-{texts}", held.data)
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        encoder.backbone.lm.save_pretrained(partial)
        encoder.tokenizer.save_pretrained(partial)
        partial.replace(folder)
    return folder


def toy_stage(table: Mapping[str, Any], seed: int, held: Held, options: argparse.Namespace) -> Any:
    data = {"path": str(held.files[f"{table['data']}-train"])}
    steps = max(1, math.ceil(table["max_steps"] * options.steps))
    raw = {**table, "data": [data], "max_steps": steps, "seed": seed, "bf16": options.bf16}
    raw |= {"trainer": {"save_strategy": "no"}, "mixing": {"duplicates": True}}
    (found,) = STAGES.value({"stage": [raw]}, "full", Path("soft_compression"))
    return found


def train(model: Any, stages: Sequence[Any], folder: Path, data: Path) -> Any:
    """The model after its stages, ready to be measured."""
    shutil.rmtree(folder, ignore_errors=True)
    found: Any = run(Run(tuple(stages), folder, data=data), model)
    shutil.rmtree(folder, ignore_errors=True)
    return found.eval()


def measure(
    kind: str, name: str, seed: int, held: Held, options: argparse.Namespace, work: Work
) -> None:
    key = (kind, name, str(seed))
    if work.path(*key).exists() or not work.claim(*key):
        return
    began = time.perf_counter()
    try:
        make = {"row": recipe_cell, "fact": fact_cell, "toy": toy_cell}[kind]
        cell = make(name, seed, held, options, work)
        seconds = time.perf_counter() - began
        work.keep({**cell, "s": round(seconds, 1), "device": device()}, *key)
        shown = "  ".join(f"{column} {value:.3f}" for column, value in cell["scores"].items())
        print(f"{name}, seed {seed} ({seconds:.0f} s): {shown}", flush=True)
    except PolyvecError as error:
        print(f"{name}, seed {seed}: left out, {error}", file=sys.stderr, flush=True)
    except Exception:  # noqa: BLE001 - one cell must not end the others
        print(f"{name}, seed {seed}: failed\n{traceback.format_exc()}", file=sys.stderr, flush=True)
    finally:
        work.release(*key)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def collect(options: argparse.Namespace, work: Work) -> None:
    """Means and standard deviations over seeds, and each claim's difference.

    What the file has already, and the folder has no cell of, stays.
    """
    path = RESULTS / FILE
    kept = json.loads(path.read_text()) if path.exists() else {}
    found: dict[str, Any] = {"rows": {}, "facts": {}, "toys": {}, "claims": []}
    toys: dict[str, list[Any]] = {}
    kinds = (
        ("row", soft_arms.ROWS, "rows"),
        ("fact", soft_facts.ROWS, "facts"),
        ("toy", soft_toys.TOYS, "toys"),
    )
    for kind, names, into in kinds:
        for name in names:
            cells = [c for seed in SEEDS if (c := work.read(kind, name, str(seed))) is not None]
            before = kept.get(into, {}).get(name)
            if not cells:
                if before:
                    found[into][name] = before
                continue
            scores = [cell["scores"] for cell in cells]
            found[into][name] = {
                "scores": {c: spread([each[c] for each in scores]) for c in scores[0]},
                "minutes": round(sum(cell["minutes"] for cell in cells) / len(cells), 2),
                "steps": cells[0]["steps"],
                "device": cells[0]["device"],
            }
            if kind == "toy":
                toys[name] = scores
            elif kind == "row":
                found[into][name]["scale"] = options.scale
    claims = {(each["row"], each["over"], each["says"]): each for each in kept.get("claims", ())}
    for better, column, worse, other, says in soft_toys.CLAIMS:
        row, over = f"{better}: {column}", f"{worse}: {other}"
        claim = claims.get((row, over, says))
        if better in toys and worse in toys:
            a = [{"by": each[column]} for each in toys[better]]
            b = [{"by": each[other]} for each in toys[worse]]
            seeds, by = min(len(a), len(b)), difference(a, b, "by")
            claim = {"row": row, "over": over, "says": says, "by": by, "seeds": seeds}
        if claim:
            found["claims"].append(claim)
    with atomic_file(path, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of data sets")
    parser.add_argument("--scale", choices=("small", "nano"), default="small", help="of the rows")
    parser.add_argument("--folder", type=Path, help="default: polyvec's cache folder")
    parser.add_argument("--only", nargs="*", help="rows, toys, 'fact ROW'; rows, facts, toys")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of the toys")
    parser.add_argument("--row-seeds", type=int, default=1)
    parser.add_argument("--steps", type=float, default=1.0, help="this share of the steps")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--layers", type=int, help="the encoder's first layers only, as a trial")
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="parts of a row's batch, each with its own negatives: 1 takes 18 GB, 8 take 4",
    )
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--collect", action="store_true", help="write what is finished, and end")
    options = parser.parse_args()
    work = Work(options.folder or cache_folder("soft-compression"))
    if not options.collect:
        if options.data is None:
            parser.error("--data is needed to measure")
        files = soft_toys.write_data(work.folder, options.data)
        held = Held(options.data, files, options.questions)
        # What matters most comes first: a run may have to end before the last cells.
        rows, more = soft_arms.ROWS[:9], soft_arms.ROWS[9:]
        cells = [("row", name, 0) for name in rows]
        cells += [("toy", name, 0) for name in soft_toys.TOYS]
        cells += [("row", name, 0) for name in more]
        cells += [("fact", name, 0) for name in soft_facts.ROWS]
        cells += [
            ("toy", name, seed) for seed in SEEDS[1 : options.seeds] for name in soft_toys.TOYS
        ]
        cells += [
            ("row", name, seed) for seed in SEEDS[1 : options.row_seeds] for name in (*rows, *more)
        ]
        cells += [
            ("fact", name, seed)
            for seed in SEEDS[1 : options.row_seeds]
            for name in soft_facts.ROWS
        ]
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")
        wanted = set(options.only or ("rows", "facts", "toys"))
        for kind, name, seed in cells:
            name_of = f"fact {name}" if kind == "fact" else name
            if f"{kind}s" in wanted or name_of in wanted:
                measure(kind, name, seed, held, options, work)
    collect(options, work)


if __name__ == "__main__":
    main()
