"""Score a model on data sets: folders of sentence pairs, or of corpus, queries and qrels.

FOLDER holds <split>.jsonl with sentence1, sentence2, score, or corpus.jsonl, queries.jsonl and
qrels/<split>.tsv (BEIR's form); each file may be gzipped. Scores are times 100.

example: polyvec evaluate sentence-transformers/all-MiniLM-L6-v2 --help
"""

import argparse
import sys

from polyvec.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder, hub id, or recipe file (.toml)")
    parser.add_argument("folder", nargs="+", help="data sets")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="keep scores and hashes")
    parser.add_argument("--batch-size", type=common.positive, help="most texts in a batch (memory)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the best there is")


def run(options: argparse.Namespace) -> None:
    from polyvec.data.sets import read_set
    from polyvec.evaluate.tasks import evaluate, write_results

    # All data is read before anything is computed: a wrong folder costs no minutes.
    sets = [read_set(folder, options.split) for folder in options.folder]
    embedder = common.load_model(options)
    results = []
    for folder, data in zip(options.folder, sets, strict=True):
        print(f"{data.name} ({data.split})", file=sys.stderr)
        result = evaluate(embedder, folder, options.split, batch_size=options.batch_size, data=data)
        results.append(result)
        if options.output:
            write_results(options.output, common.model_name(options), results)
    _show(results)


def _show(results) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("data", "split", "measure", "score", "texts", "cut", "seconds")
    for result in results:
        for name, score in result.scores.items():
            main = name == result.main_measure
            shown = f"[bold]{score * 100:.2f}[/bold]" if main else f"{score * 100:.2f}"
            facts = (str(result.num_texts), str(result.num_truncated), f"{result.seconds:.1f}")
            first = (result.task, result.split) if main else ("", "")
            table.add_row(*first, name, shown, *(facts if main else ("", "", "")))
    Console(width=None if sys.stdout.isatty() else 100).print(table)
