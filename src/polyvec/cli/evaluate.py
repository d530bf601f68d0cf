r"""Score a model on data sets: folders, or tasks by name below a folder of data sets.

TASK is a folder (pairs, labelled texts, or corpus, queries and qrels: see docs/evaluation.md), or
with --data the name of a task (sts12, scifact, xnli ...), a kind of task (sts, retrieval,
reranking, classification, clustering, pair_classification, bitext_mining, summarization), or all.
The protocols are MTEB's. Scores are times 100; "truncated" counts texts longer than the model's
limit. Vectors are cached, so a second run or a changed prompt encodes only what is new.

example: mkdir -p /tmp/pairs; printf '%s\n' > /tmp/pairs/test.jsonl \
  '{"sentence1": "a cat", "sentence2": "a kitten", "score": 5}' \
  '{"sentence1": "a cat", "sentence2": "a spoon", "score": 1}'; \
  polyvec evaluate all-MiniLM-L6-v2 /tmp/pairs
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from polyvec.data.tasks.sets import TaskSet
    from polyvec.evaluate.report import Compared
    from polyvec.evaluate.selection import Chosen
    from polyvec.evaluate.tasks import Evaluator, Measured, Result
    from polyvec.storage.vector_cache import EmbeddingCache

FORMATS = (".html", ".md")
# Scores that the table shows; the file of --output has all.
HEADLINE = (
    *("ndcg@10_before", "ndcg@10_gain", "map_before", "map_gain"),
    *("spearman", "pearson", "accuracy", "f1", "max_ap", "v_measure", "p_mrr", "robustness@10"),
    *("ndcg@10", "recall@100", "map@1000", "mrr@10"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="folder, hub id, GGUF file, openai:NAME or another API, or recipe (file, or name with "
        "--scale)",
    )
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="folders, names, kinds, or all")
    parser.add_argument("--split", default="test", help="split of folders; default: test")
    parser.add_argument("--kind", help="kind of task of folders; default: what their fields show")
    task_options(parser)
    parser.add_argument(
        "--subset", nargs="+", default=(), help="subsets of named tasks, such as en de"
    )
    parser.add_argument("-o", "--output", metavar="FILE.json", help="write scores and hashes")
    parser.add_argument(
        "--report", action="append", default=[], metavar="FILE", help="write a page, .html or .md"
    )
    parser.add_argument(
        "--published",
        metavar="FILE.json",
        help="compare with published scores: {scores: {task: {split/subset: score}}}",
    )
    parser.add_argument(
        "--trained-on",
        nargs="+",
        metavar="FILE",
        default=(),
        help="look for the tasks' texts in the model's training texts (.jsonl, .txt)",
    )
    parser.add_argument(
        "--table", metavar="FILE.md", help="write measured and published scores side by side"
    )
    parser.add_argument(
        "--rerank",
        metavar="KIND",
        help="order the best documents of retrieval tasks anew: cross_encoder, late_interaction, "
        "true_false, query_likelihood or listwise, with settings in quotes: "
        "'cross_encoder model=FOLDER'",
    )
    parser.add_argument(
        "--rerank-depth", type=common.positive, help="documents that --rerank reads; default: 100"
    )
    parser.add_argument(
        "--batch-size", type=common.positive, help="maximum texts in a batch (memory)"
    )
    common.how_to_run(parser)


def task_options(parser: argparse.ArgumentParser) -> None:
    """Options of the verbs that measure: the folder of named tasks, and the cache of vectors."""
    parser.add_argument(
        "--data",
        default=os.environ.get("POLYVEC_DATA") or None,
        help="folder of data sets, for tasks by name; default: POLYVEC_DATA",
    )
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="folder of cached vectors; default: POLYVEC_CACHE, or the user's cache folder",
    )
    parser.add_argument("--no-cache", action="store_true", help="do not cache vectors")


def run(options: argparse.Namespace) -> None:
    from polyvec.evaluate.published import join, read_published, with_scores
    from polyvec.evaluate.selection import select
    from polyvec.evaluate.tasks import Evaluator, check_reranked, check_scorable, write_results
    from polyvec.storage.files import check_target

    check_pages(options)
    cache = cache_of(options)
    if options.table is not None:
        check_target(options.table)
    if options.table and not options.published:
        raise InputError("--table needs published scores; give them with --published")
    scores = read_published(options.published) if options.published else None
    chosen = select(
        options.tasks,
        data=options.data,
        split=options.split,
        kind=options.kind,
        subsets=options.subset,
    )
    if scores is not None:
        chosen = with_scores(chosen, scores)
    # Read all data before computing anything, so that a malformed file fails at once; hundreds
    # of subsets would take too much memory.
    sets = [each.read() for each in chosen] if len(chosen) <= 50 else None
    for data in sets or ():
        check_scorable(data)
        if options.rerank:
            check_reranked(data)
    if options.rerank_depth and not options.rerank:
        raise InputError("--rerank-depth needs a reranker; give it with --rerank")
    notes = _contaminated(options, chosen, sets) if options.trained_on else ()
    embedder = common.load_model(options, hybrid=True)
    evaluator = Evaluator(
        embedder,
        cache=cache,
        batch_size=options.batch_size,
        geometry=bool(options.report),
        **_reranking(options),
    )
    name = common.model_name(options)
    if common.is_recipe(options):
        name = f"{name} at scale {options.scale or 'full'}"
    results: list[Result] = []
    found: list[Measured] = []  # for reports only: outcomes are much larger than scores
    try:
        for number, each in enumerate(chosen):
            data = sets[number] if sets else each.read()
            print(f"{task_name(each, data)}  {number + 1}/{len(chosen)}", file=sys.stderr)
            measured = evaluator.measure(
                data, subset=each.subset, prompt_names=each.official_name[:1]
            )
            measured = replace(measured, result=join(measured.result, each, scores or {}))
            results.append(measured.result)
            if options.report:
                found.append(measured)
            if options.output is not None:
                write_results(options.output, name, results, versions=_versions())
    finally:  # what was measured is shown, whatever stops the rest
        if results:
            _show(results)
    if options.table:
        write_table(options, name, results)
    if options.report:
        write_report(options, name, evaluator, found, notes=notes)


def _reranking(options: argparse.Namespace) -> dict[str, Any]:
    """The reranker of --rerank and its depth, as Evaluator takes them."""
    if not options.rerank:
        return {}
    from polyvec.rerank.table import load_reranker

    table = common.kind_table("--rerank", options.rerank)
    depth = {"rerank_depth": options.rerank_depth} if options.rerank_depth else {}
    return {"reranker": load_reranker(table), **depth}


def task_name(chosen: "Chosen", data: "TaskSet") -> str:
    """Name, subset and split of a task, for progress messages."""
    return " ".join(word for word in (data.name, chosen.subset, f"({data.split})") if word)


def _contaminated(
    options: argparse.Namespace, chosen: "list[Chosen]", sets: "list[TaskSet] | None"
) -> tuple[str, ...]:
    """A line for each task whose texts are among the training texts; also printed to stderr."""
    from polyvec.evaluate.contamination import contaminations

    found = contaminations(sets or [each.read() for each in chosen], options.trained_on)
    lines = [
        f"{each.name} {each.subset}".rstrip() + f": {contamination}"
        for each, contamination in zip(chosen, found, strict=True)
        if contamination.num_same or contamination.num_ngram
    ]
    for line in lines:
        print(f"trained on test texts: {line}", file=sys.stderr)
    return tuple(f"Trained on test texts: {line}." for line in lines)


def cache_of(options: argparse.Namespace) -> "EmbeddingCache | None":
    """The cache that the options select, or None."""
    from polyvec.storage.vector_cache import EmbeddingCache, default_folder

    if options.no_cache:
        if options.cache:
            raise InputError("--cache and --no-cache are mutually exclusive")
        return None
    if options.cache is None and not common.cache_is_writable(default_folder()):
        return None
    return EmbeddingCache(options.cache)


def check_pages(options: argparse.Namespace) -> None:
    """Raises InputError or DataError for a target that cannot be written, before computing."""
    from polyvec.storage.files import check_target

    for path in (options.output, *options.report):
        if path is not None:
            check_target(path)
    for path in options.report:
        if Path(path).suffix not in FORMATS:
            raise InputError(f"--report {path}: unknown format; expected {' or '.join(FORMATS)}")


def result_name(result: "Result") -> str:
    """A task's name, and its subset's."""
    return f"{result.task} {result.subset}".rstrip()


def write_table(options: argparse.Namespace, name: str, results: "list[Result]") -> None:
    from polyvec.evaluate.published import markdown
    from polyvec.storage.files import atomic_file

    with atomic_file(Path(options.table), "w") as file:
        file.write(markdown(Path(name).name, results))


def write_report(
    options: argparse.Namespace,
    name: str,
    evaluator: "Evaluator",
    found: "list[Measured]",
    compared: "tuple[Compared, ...]" = (),
    notes: tuple[str, ...] = (),
) -> None:
    """Writes the pages of --report, with the comparison of two models if there is one."""
    from datetime import date

    from polyvec.evaluate import report

    page = report.Report(
        name,
        evaluator.model_sha256,
        _settings(evaluator.embedder.settings()),
        _versions(),
        date.today().isoformat(),
        tuple(report.TaskReport(m.result, m.outcome, m.geometry) for m in found),
        compared,
        (options.first, options.second) if compared else ("first", "second"),
        notes,
    )
    for path in options.report:
        write = report.write_html if Path(path).suffix == ".html" else report.write_markdown
        write(path, page)
        print(f"report: {path}", file=sys.stderr)


def _settings(found: "Mapping[str, object]") -> dict[str, object]:
    """Those that are set."""
    return {key: value for key, value in found.items() if value not in (None, [], {}, "")}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("polyvec", "torch", "transformers", "numpy")}


def _show(results: "list[Result]") -> None:
    """One line per headline score; the main score of each subset, and their mean."""
    header = ["data", "subset", "split", "measure", "score", "texts", "truncated", "seconds"]
    with_published = any(result.published is not None for result in results)
    rows = []
    for result in results:
        shown = {result.main_measure: result.main_score}
        if not result.subset:
            shown |= {name: score for name, score in result.scores.items() if name in HEADLINE}
        for measure, score in shown.items():
            facts = (str(result.num_texts), str(result.num_truncated), f"{result.seconds:.1f}")
            row = [result.task, result.subset, result.split, measure, f"{100 * score:.2f}", *facts]
            if with_published:
                row += _published(result, measure)
            rows.append(row)
    for task in dict.fromkeys(result.task for result in results if result.subset):
        group = [result for result in results if result.task == task]
        mean = sum(result.main_score for result in group) / len(group)
        total = (
            str(sum(result.num_texts for result in group)),
            str(sum(result.num_truncated for result in group)),
            f"{sum(result.seconds for result in group):.1f}",
        )
        row = [task, "mean", group[0].split, group[0].main_measure, f"{100 * mean:.2f}", *total]
        rows.append([*row, *(["", ""] if with_published else [])])
    common.show_table([*header, *(["published", "difference"] if with_published else [])], rows)


def _published(result: "Result", measure: str) -> list[str]:
    if result.published is None or measure != result.main_measure:
        return ["", ""]
    from polyvec.evaluate.report.wording import signed

    return [f"{100 * result.published:.2f}", signed(result.difference)]
