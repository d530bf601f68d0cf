r"""Compare two models on the same data sets: which differences are significant?

Paired tests over the items of each data set (pairs of sentences: Spearman; queries: nDCG@10): a
95 % confidence interval of the difference by bootstrap, and the p-value of a permutation test.
Scores are times 100; the difference is the second model's score minus the first's.

example: mkdir -p /tmp/pairs; printf '%s\n' > /tmp/pairs/test.jsonl \
  '{"sentence1": "a cat", "sentence2": "a kitten", "score": 5}' \
  '{"sentence1": "a cat", "sentence2": "a spoon", "score": 1}' \
  '{"sentence1": "a dog", "sentence2": "the dog", "score": 4}'; \
  polyvec compare all-MiniLM-L6-v2 all-MiniLM-L6-v2 --tasks /tmp/pairs
"""

import argparse
import sys
from typing import TYPE_CHECKING

from polyvec.cli import common
from polyvec.cli.evaluate import (
    cache_of,
    check_pages,
    result_name,
    task_name,
    task_options,
    write_report,
)

if TYPE_CHECKING:
    import numpy as np

    from polyvec.evaluate.significance import Comparison
    from polyvec.evaluate.tasks import Measured


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "first", help="folder, hub id, GGUF file, or recipe (file, or name with --scale)"
    )
    parser.add_argument("second", help="the model to compare it with")
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", required=True, help="folders, names, kinds, or all"
    )
    parser.add_argument("--split", default="test", help="split of folders; default: test")
    task_options(parser)
    parser.add_argument("--samples", type=int, default=1000, help="resamples; default: 1000")
    parser.add_argument(
        "--seed", type=common.seed, default=0, help="seed of the resampling; default: 0"
    )
    parser.add_argument("-o", "--output", metavar="FILE.json", help="write the comparison")
    parser.add_argument(
        "--report", action="append", default=[], metavar="FILE", help="write a page, .html or .md"
    )
    parser.add_argument(
        "--batch-size", type=common.positive, help="maximum texts in a batch (memory)"
    )
    common.how_to_run(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.evaluate.measures.inputs import extra
    from polyvec.evaluate.selection import select
    from polyvec.evaluate.significance import check_samples, compare
    from polyvec.evaluate.tasks import Evaluator, check_by_item, check_scorable, paired

    check_pages(options)
    check_samples(options.samples)
    extra("scipy.stats", "comparing two models")
    chosen = select(options.tasks, data=options.data, split=options.split)
    # Read all data before computing anything, so that a malformed file fails at once.
    sets = [each.read() for each in chosen]
    for data in sets:
        check_by_item(data)
        check_scorable(data)
    cache = cache_of(options)
    measured: list[list[Measured]] = []
    both = [
        argparse.Namespace(**{**vars(options), "model": model})
        for model in (options.first, options.second)
    ]
    if any(map(common.is_recipe, both)):  # the scale is the recipe's, of a model that has none
        for one in both:
            one.scale = options.scale if common.is_recipe(one) else None
    for one in both:
        common.check_model(one)
    for one in both:
        model, embedder = one.model, common.load_model(one)
        evaluator = Evaluator(
            embedder, cache=cache, batch_size=options.batch_size, geometry=bool(options.report)
        )
        measured.append([])
        for each, data in zip(chosen, sets, strict=True):
            print(f"{model}: {task_name(each, data)}", file=sys.stderr)
            here = evaluator.measure(data, subset=each.subset, prompt_names=each.official_name[:1])
            score = f"{here.result.main_measure} {100 * here.result.main_score:.2f}"
            print(f"{model}: {task_name(each, data)}: {score}", file=sys.stderr)
            measured[-1].append(here)
    found = []
    for one, two in zip(*measured, strict=True):
        a, statistic = paired(one.outcome, one.result.task)
        b, _ = paired(two.outcome, two.result.task)
        a, b = _scored(a, b, one.result.task)
        found.append(compare(a, b, statistic, num_samples=options.samples, seed=options.seed))
    names = [result_name(one.result) for one in measured[0]]
    rows = [
        (name, one.result.split, one.result.main_measure, *_figures(comparison))
        for name, one, comparison in zip(names, measured[0], found, strict=True)
    ]
    header = ("data", "split", "measure", "first", "second", "difference", "95 % low", "95 % high")
    common.show_table((*header, "p", "items", "significant"), rows)
    _write(options, names, found)
    if options.report:
        from polyvec.evaluate.report import Compared

        pairs = tuple(
            Compared(name, c.a, c.b, c.difference, c.low, c.high, c.p_value, c.significant)
            for name, c in zip(names, found, strict=True)
        )
        write_report(options, options.second, evaluator, measured[1], pairs)


def _scored(a: "np.ndarray", b: "np.ndarray", task: str) -> "tuple[np.ndarray, np.ndarray]":
    """The items that have a score by both models; says how many have none."""
    import numpy as np

    there_N = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    if not there_N.all():
        left_out = f"{int((~there_N).sum())} of {len(there_N)} items"
        print(f"{task}: {left_out} have no score and are left out", file=sys.stderr)
    return a[there_N], b[there_N]


def _write(options: argparse.Namespace, names: list[str], found: "list[Comparison]") -> None:
    if options.output is None:
        return
    import json
    from dataclasses import asdict
    from pathlib import Path

    from polyvec.storage.files import atomic_file

    rows = [
        {
            "data": name,
            **asdict(each),
            "difference": each.difference,
            "significant": each.significant,
        }
        for name, each in zip(names, found, strict=True)
    ]
    facts = {"first": options.first, "second": options.second, "seed": options.seed}
    with atomic_file(Path(options.output), "w") as file:
        json.dump({**facts, "samples": options.samples, "comparisons": rows}, file, indent=2)
        file.write("\n")


def _figures(found: "Comparison") -> tuple[str, ...]:
    from polyvec.evaluate.report.wording import signed

    scores = (f"{100 * found.a:.2f}", f"{100 * found.b:.2f}", signed(found.difference))
    interval = (signed(found.low), signed(found.high), f"{found.p_value:.3f}")
    return (*scores, *interval, str(found.num_items), "yes" if found.significant else "no")
