r"""Score a model on data sets: folders of sentence pairs, or of corpus, queries and qrels.

FOLDER holds <split>.jsonl with sentence1, sentence2, score, or corpus.jsonl, queries.jsonl and
qrels/<split>.tsv (BEIR's form); each file may be gzipped. Scores are times 100, and "cut" is
the number of texts that were longer than the model reads.

example: mkdir -p /tmp/pairs; printf '%s\n' > /tmp/pairs/test.jsonl \
  '{"sentence1": "a cat", "sentence2": "a kitten", "score": 5}' \
  '{"sentence1": "a cat", "sentence2": "a spoon", "score": 1}'; \
  polyvec evaluate all-MiniLM-L6-v2 /tmp/pairs
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
    common.how_to_run(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.data.files import check_target
    from polyvec.data.sets import read_set
    from polyvec.evaluate.tasks import evaluate, write_results

    if options.output is not None:
        check_target(options.output)
    # All data is read before anything is computed: a wrong folder costs no minutes.
    sets = [read_set(folder, options.split) for folder in options.folder]
    embedder = common.load_model(options, hybrid=True)
    results = []
    for folder, data in zip(options.folder, sets, strict=True):
        print(f"{data.name} ({data.split})", file=sys.stderr)
        result = evaluate(embedder, folder, options.split, batch_size=options.batch_size, data=data)
        results.append(result)
        if options.output is not None:
            write_results(options.output, common.model_name(options), results)
    _show(results)


def _show(results) -> None:
    header = ("data", "split", "measure", "score", "texts", "cut", "seconds")
    rows = []
    for result in results:
        facts = (str(result.num_texts), str(result.num_truncated), f"{result.seconds:.1f}")
        for name, score in result.scores.items():
            rows.append((result.task, result.split, name, f"{score * 100:.2f}", *facts))
    common.show_table(header, rows)
