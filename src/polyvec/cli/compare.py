r"""Two models on the same data sets: which differences stand?

Paired tests over the items of each data set (pairs of sentences: Spearman; queries: nDCG@10): a
95 % interval of the difference by bootstrap, and the p-value of a permutation test. Scores are
times 100; the difference is the second model's score minus the first's.

example: mkdir -p /tmp/pairs; printf '%s\n' > /tmp/pairs/test.jsonl \
  '{"sentence1": "a cat", "sentence2": "a kitten", "score": 5}' \
  '{"sentence1": "a cat", "sentence2": "a spoon", "score": 1}' \
  '{"sentence1": "a dog", "sentence2": "the dog", "score": 4}'; \
  polyvec compare all-MiniLM-L6-v2 all-MiniLM-L6-v2 --tasks /tmp/pairs
"""

import argparse
import sys

from polyvec.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="folder, hub id, or recipe file (.toml)")
    parser.add_argument("second", help="the model that it is compared with")
    parser.add_argument("--tasks", nargs="+", metavar="FOLDER", required=True, help="data sets")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--samples", type=common.positive, default=1000, help="default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; default: 0")
    parser.add_argument("--batch-size", type=common.positive, help="most texts in a batch (memory)")
    common.how_to_run(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.data.sets import read_set
    from polyvec.evaluate.significance import compare
    from polyvec.evaluate.tasks import item_scores

    # All data is read before anything is computed: a wrong folder costs no minutes.
    sets = [read_set(folder, options.split) for folder in options.tasks]
    items: list[list] = []
    for model in (options.first, options.second):
        embedder = common.load_model(argparse.Namespace(**{**vars(options), "model": model}))
        items.append([])
        for data in sets:
            print(f"{model}: {data.name} ({data.split})", file=sys.stderr)
            items[-1].append(item_scores(embedder, data, batch_size=options.batch_size))
    rows = []
    for data, (a, statistic), (b, _) in zip(sets, *items, strict=True):
        found = compare(a, b, statistic, num_samples=options.samples, seed=options.seed)
        rows.append((data.name, data.split, *_figures(found)))
    header = ("data", "split", "first", "second", "difference", "95 % from", "to", "p", "items")
    common.show_table((*header, "stands"), rows)


def _figures(found) -> tuple[str, ...]:
    scores = (f"{100 * found.a:.2f}", f"{100 * found.b:.2f}", f"{100 * found.difference:+.2f}")
    interval = (f"{100 * found.low:+.2f}", f"{100 * found.high:+.2f}", f"{found.p_value:.3f}")
    return (*scores, *interval, str(found.num_items), "yes" if found.stands else "no")
