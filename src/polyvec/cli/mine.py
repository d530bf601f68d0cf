r"""Find hard negatives for pairs: documents that look like a query's positives and are not.

PAIRS is a file or folder of training data in any form that polyvec reads, or the name of a set with
--data. All documents of the data are searched, the corpus of a BEIR folder, and --corpus. The table
at the end shows how similar positives and negatives are, and how many negatives may be positives
that nobody labelled.

example: printf '%s\n' '{"anchor": "a cat", "positive": "a kitten"}' \
  '{"anchor": "a car", "positive": "a vehicle"}' > /tmp/mine_pairs.jsonl; \
  polyvec mine /tmp/mine_pairs.jsonl --num-negatives 1 --output /tmp/mined.jsonl
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.cli.evaluate import cache_of
from polyvec.errors import InputError, known

if TYPE_CHECKING:
    from polyvec.data.training.sources import TrainingSet
    from polyvec.interfaces import TextEncoder
    from polyvec.train.mining.miner import Mined
    from polyvec.train.mining.report import Relevant
    from polyvec.train.mining.settings import MiningSettings

FORMATS = ("rows", "n-tuple", "triplet", "labeled-pair", "labeled-list")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pairs", help="file or folder of queries with positives, or a set's name")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=common.path,
        required=True,
        help="write rows here (.jsonl)",
    )
    parser.add_argument(
        "--output-format",
        default="rows",
        help="rows (default; query, pos, neg) or sentence-transformers' n-tuple, triplet, "
        "labeled-pair, labeled-list",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", metavar="DATA", type=common.path, help="folder of the named data sets"
    )
    data.add_argument("--format", help="form of PAIRS; default: what its columns show")
    data.add_argument("--split", help="qrels of a BEIR folder; default: train")
    data.add_argument(
        "--limit", type=common.positive, help="mine for this many rows, drawn by seed"
    )
    data.add_argument("--corpus", help="search these texts, too: a file, or a BEIR folder")
    data.add_argument(
        "--relevant",
        metavar="FILE",
        help="all judgements, in any form of PAIRS: count the negatives that are relevant",
    )
    _mining_options(parser.add_argument_group("mining"))
    run = parser.add_argument_group("model")
    common.model_option(parser)
    run.add_argument("--batch-size", type=common.positive, help="texts per batch, to save memory")
    run.add_argument("--cache", metavar="FOLDER", help="folder of cached vectors")
    run.add_argument("--no-cache", action="store_true", help="do not cache vectors")


def _mining_options(group: Any) -> None:
    """The keys of a stage's `mining` table, by the same names."""
    group.add_argument("--candidates", help="embedder (default) or bm25")
    group.add_argument("--num-negatives", type=int, help="take this many for a query; default: 3")
    group.add_argument("--range-min", type=int, help="skip this many of the best candidates")
    group.add_argument("--range-max", type=int, help="take none beyond this rank")
    group.add_argument("--max-score", type=float, help="refuse candidates that score higher")
    group.add_argument("--min-score", type=float, help="refuse candidates that score lower")
    group.add_argument(
        "--absolute-margin", type=float, help="refuse scores within this of the positive's"
    )
    group.add_argument(
        "--relative-margin",
        type=float,
        help="refuse scores within this share of the positive's; 0.05 is NV-Retriever's 95 %%",
    )
    group.add_argument("--sampling-strategy", help="top (default), random or simans")
    group.add_argument("--simans-a", type=float, help="how narrow SimANS' peak is")
    group.add_argument("--simans-b", type=float, help="where it is, from the positive's score")
    group.add_argument(
        "--cross-encoder", metavar="NAME", help="score candidates anew with this cross-encoder"
    )
    group.add_argument(
        "--output-scores", action="store_true", default=None, help="write scores, too"
    )
    group.add_argument("--seed", type=common.seed, help="of random choices; default: 42")


def run(options: argparse.Namespace) -> None:
    from polyvec.storage.files import check_target
    from polyvec.train.mining.settings import MiningSettings, mining_settings

    if options.output_format not in FORMATS:
        name = options.output_format
        raise InputError(f"--output-format {name!r} is not known.{known(name, FORMATS)}")
    if not options.output.name.endswith(".jsonl"):
        raise InputError(f"--output {options.output}: expected a name that ends in .jsonl")
    check_target(options.output)
    for each in filter(None, (options.pairs, options.corpus, options.relevant)):
        if options.output.exists() and Path(each).exists() and options.output.samefile(each):
            raise InputError(f"--output {options.output}: is read here, too; give another name")
    names = {each.name for each in dataclasses.fields(MiningSettings)}
    given = {k: v for k, v in vars(options).items() if k in names and v is not None}
    given.pop("model", None)
    settings = mining_settings({**given, "keep_negatives": options.output_format == "rows"})
    sets = _sets(options, settings)
    relevant = _relevant(options)
    mined = _mined(options, settings, sets)
    _write(options, mined)
    for each in mined.values():
        _show(each, relevant, len(mined) > 1)


def _table(options: argparse.Namespace, path: str) -> dict[str, Any]:
    """The `data` table of a path, or of a set's name."""
    from polyvec.data.training.sources import named_sets

    key = "path" if Path(path).exists() or path not in named_sets() else "name"
    more = {name: getattr(options, name) for name in ("format", "split", "limit")}
    return {key: path, **{name: value for name, value in more.items() if value is not None}}


def _sets(options: argparse.Namespace, settings: "MiningSettings") -> "list[TrainingSet]":
    from polyvec.data.training.sources import training_sets

    data = options.data or os.environ.get("POLYVEC_DATA")
    return training_sets(_table(options, options.pairs), data, seed=settings.seed, where="PAIRS")


def _relevant(options: argparse.Namespace) -> "Relevant | None":
    from polyvec.data.training.sources import training_rows
    from polyvec.train.mining.report import relevant_of

    if options.relevant is None:
        return None
    table = {k: v for k, v in _table(options, options.relevant).items() if k != "limit"}
    return relevant_of(training_rows(table, options.data))


def _mined(
    options: argparse.Namespace, settings: "MiningSettings", sets: "list[TrainingSet]"
) -> "dict[str, Mined]":
    from polyvec.interfaces import RunOptions
    from polyvec.train.mining.candidates import CANDIDATES, Tools
    from polyvec.train.mining.miner import mine

    CANDIDATES.find(settings.candidates, where="mining")
    embedder: TextEncoder | None = None
    if settings.candidates == "embedder":
        embedder = common.load_model(options)
    elif options.model or options.recipe:
        raise InputError(f"--candidates {settings.candidates} uses no model; leave out --model")
    run_options = RunOptions(options.batch_size, truncate="silent")
    tools = Tools(embedder, cache_of(options), run_options)
    return {each.name: mine(each, settings, tools=tools) for each in sets}


def _write(options: argparse.Namespace, mined: "dict[str, Mined]") -> None:
    from polyvec.train.mining.writing import write

    num_lines = write(mined, options.output, options.output_format)
    print(f"{options.output}: {num_lines} rows", file=sys.stderr)


def _show(mined: "Mined", relevant: "Relevant | None", named: bool) -> None:
    from polyvec.train.mining.report import facts, quantiles

    name = mined.texts.name if named else ""
    common.show_table((name or "mined", ""), facts(mined, relevant).items())
    rows = [(name, *(f"{each:.4f}" for each in values)) for name, *values in quantiles(mined)]
    common.show_table(("score", "positive", "negative", "difference"), rows)
