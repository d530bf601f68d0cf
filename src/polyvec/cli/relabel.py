r"""Find negatives that match their query, and positives that do not, in training data.

PAIRS is a file or folder of training data in any form that polyvec reads, with negatives, or the
name of a set with --data. Each --judge is a kind and its settings: "guide relative_margin=0.05",
"guide threshold=0.6" (an embedder, --embedder), "cross_encoder name=FOLDER threshold=0.5", "llm
prompt=followir" (--model). Several are a cascade from cheap to dear: each looks only at what those
before it have flagged, and what all flag is treated. With --agree any,
what one of them flags is treated. The table has the estimated rates before and after.

example: printf '%s\n' '{"query": "a cat", "pos": ["a kitten"], "neg": ["a small cat", "a car"]}' \
  '{"query": "a car", "pos": ["a vehicle"], "neg": ["a cat"]}' > /tmp/to_judge.jsonl; \
  polyvec relabel /tmp/to_judge.jsonl --judge "guide absolute_margin=0" -o /tmp/relabelled.jsonl
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.cli import common
from polyvec.cli.synthesize import language_model_options
from polyvec.errors import GenerationError, InputError

if TYPE_CHECKING:
    from polyvec.synthesize.models import Models
    from polyvec.synthesize.relabel import Relabelled, SideReport
    from polyvec.synthesize.steps.judging import JudgeStep


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pairs", help="file or folder of training data, or a set's name")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.jsonl",
        type=common.path,
        required=True,
        help="write the rows here: query, pos, neg",
    )
    parser.add_argument(
        "--rejected",
        metavar="FILE.jsonl",
        type=common.path,
        help="write what is left out here, with its reason",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", metavar="DATA", type=common.path, help="folder of the named data sets"
    )
    data.add_argument("--format", help="form of PAIRS; default: what its columns show")
    data.add_argument("--limit", type=common.positive, help="so many rows, drawn by seed")
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="'KIND KEY=VALUE ...'",
        help="judge by this; repeatable: a cascade; default: 'guide relative_margin=0.05'",
    )
    judging.add_argument(
        "--of",
        choices=("negatives", "positive", "both"),
        default="negatives",
        help="judge negatives (default), the positive or both",
    )
    judging.add_argument(
        "--then",
        choices=("drop", "relabel", "drop_row"),
        default="drop",
        help="drop a negative that matches (default), make it a positive, or drop its row",
    )
    judging.add_argument(
        "--agree",
        choices=("all", "any"),
        default="all",
        help="flag what all judges flag (default), or what any of them does",
    )
    judging.add_argument(
        "--keep", type=common.positive, metavar="N", help="of the negatives left, the first N"
    )
    judging.add_argument(
        "--accuracy",
        type=float,
        metavar="SHARE",
        help="how often the judges are right; default: found on known pairs of the file",
    )
    models = parser.add_argument_group("models")
    language_model_options(models)
    models.add_argument("--embedder", metavar="NAME", help="the guide; default: all-MiniLM-L6-v2")
    common.where_to_run(models)


def run(options: argparse.Namespace) -> None:
    from polyvec.data.training.sources import named_sets, training_rows
    from polyvec.storage.files import check_target
    from polyvec.synthesize.folder import write_rows
    from polyvec.synthesize.relabel import check_accuracy, relabel, rows_of, training_lines

    for path in filter(None, (options.output, options.rejected)):
        check_target(path)
        if Path(options.pairs).exists() and path.exists() and path.samefile(options.pairs):
            raise InputError(f"{path}: is read here, too; give another name")
    step = _step(options)
    accuracy = None if options.accuracy is None else check_accuracy(options.accuracy)
    key = "path" if Path(options.pairs).exists() or options.pairs not in named_sets() else "name"
    more = {name: getattr(options, name) for name in ("format", "limit")}
    table = {key: options.pairs, **{name: value for name, value in more.items() if value}}
    rows = rows_of(training_rows(table, options.data or os.environ.get("POLYVEC_DATA")))
    models = _models(options)
    try:
        found = relabel(rows, step, models.tools(()), accuracy=accuracy, wanted=options.keep)
    except GenerationError as error:
        if options.budget and "budget" in str(error):
            raise GenerationError(
                f"{error}; nothing is written. The same command with a higher --budget asks only "
                "the rest"
            ) from None
        raise
    write_rows(options.output, training_lines(found.changed.kept))
    if options.rejected is not None:
        lines = ({"reason": r.reason, "row": r.row.as_json()} for r in found.changed.rejected)
        write_rows(options.rejected, lines)
    _show(options, found)


def _step(options: argparse.Namespace) -> "JudgeStep":
    from polyvec.synthesize.run import parts

    judges = [
        common.kind_table("--judge", text)
        for text in options.judge or ["guide relative_margin=0.05"]
    ]
    settings = {"judges": judges, "of": options.of, "then": options.then, "keep": options.keep}
    settings["agree"] = options.agree
    given = {name: value for name, value in settings.items() if value is not None}
    step: JudgeStep = parts().build("judge", given, where="--judge")
    return step


def _models(options: argparse.Namespace) -> "Models":
    from polyvec.cli.synthesize import embedder_of, models_of
    from polyvec.llm.cache import default_folder

    # Answers go to the user's cache: the output is a file.
    return models_of(options, default_folder().parent, lambda name: embedder_of(name, options))


def _show(options: argparse.Namespace, found: "Relabelled") -> None:
    accuracy = found.accuracy
    told = "unknown: one positive a query says nothing of margins; give --accuracy"
    if accuracy is not None:
        told = f"{100 * accuracy.of_relevant:.1f} % of matching texts, "
        told += f"{100 * accuracy.of_irrelevant:.1f} % of others"
        told += " (on known pairs of the file, which are easier)" if found.calibrated else ""
    rows = [("the judges are right of", told), ("rows", f"{len(found.changed.kept):,}")]
    for name, side in (("negatives", found.negatives), ("positives", found.positives)):
        if side is not None:
            rows += _side(name, side)
    if options.keep:
        rows.append((f"rows with fewer than {options.keep} negatives", f"{found.num_short:,}"))
    common.show_table(("relabelled", ""), rows)


def _side(name: str, side: "SideReport") -> list[tuple[str, str]]:
    flagged = f"{side.num_flagged:,} of {side.num_texts:,}"
    rows = [(f"{name} flagged", flagged)]
    if side.before is not None and side.after is not None:
        rows.append((f"false {name}, estimated before", f"{100 * side.before:.1f} %"))
        rows.append((f"false {name}, estimated after", f"{100 * side.after:.1f} %"))
    return rows
