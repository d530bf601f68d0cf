r"""Audit what a model's vectors give away: attacks beside defences beside utility, as a page.

Texts like yours are split: most train the attackers, the others are attacked. FOLDER gets
audit.html, audit.json and the trained inverter; a run that was stopped goes on there. Without
--data, utility is how much similarities of your own texts change.

example: seq 90 | sed 's/.*/Ticket & is about door & of the house./' > /tmp/notes.txt; \
  polyvec audit all-MiniLM-L6-v2 --texts /tmp/notes.txt -o /tmp/audit --quick --steps 20
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.cli import common
from polyvec.errors import DataError, InputError

if TYPE_CHECKING:
    from polyvec.invert.audit.run import Audit, AuditSettings

PAGE, FIGURES = "audit.html", "audit.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="folder, hub id, GGUF file, or recipe (file, or name with --scale)"
    )
    parser.add_argument(
        "--texts", required=True, metavar="FILE", help="attack texts of this file or folder"
    )
    parser.add_argument("--column", help="read texts from this column")
    parser.add_argument("--label", metavar="COLUMN", help="probe for the attribute in this column")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", type=common.path, help="write here"
    )
    parser.add_argument(
        "--quick", action="store_true", help="attack 100 texts, train 400 steps; parts of --data"
    )
    parser.add_argument(
        "--data", metavar="FOLDER", type=common.path, help="measure utility on sets of this folder"
    )
    parser.add_argument("--sts", default="stsb", help="pairs with a similarity; default: stsb")
    parser.add_argument("--retrieval", default="scifact", help="retrieval set; default: scifact")
    parser.add_argument(
        "--defence",
        action="append",
        metavar="NAME",
        help="try this defence, as gaussian:sigma=0.05; repeatable; default: ten of them",
    )
    parser.add_argument(
        "--inverter", metavar="FOLDER", type=common.path, help="attack with this trained inverter"
    )
    parser.add_argument("--steps", type=common.positive, help="train the inverter so long")
    parser.add_argument(
        "--retrain",
        type=common.positive,
        metavar="STEPS",
        help="train the inverter on, so long, on the vectors of each defence; default: not at all",
    )
    parser.add_argument("--num-test", type=common.positive, help="attack so many texts")
    parser.add_argument(
        "--show-texts", action="store_true", help="show texts in the page as they are"
    )
    parser.add_argument("--seed", type=common.seed, default=0, help="draw with it; default: 0")
    common.how_to_run(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.embed.formats.titles import model_title
    from polyvec.invert.audit.page import write_page
    from polyvec.invert.audit.run import Auditor, needs_evaluate
    from polyvec.invert.audit.utility import task_sets
    from polyvec.invert.audit.verdict import verdict
    from polyvec.invert.inverter import Inverter
    from polyvec.storage.files import atomic_file

    began = time.perf_counter()
    needs_evaluate()
    folder: Path = options.output
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: exists and is not a folder; give another path")
    texts, labels = _texts(options)
    settings = _settings(options)
    sets = task_sets(
        options.data, options.sts, options.retrieval, quick=options.quick, seed=options.seed
    )
    model = common.load_model(options)
    auditor = Auditor(model, texts, settings, folder, labels=labels, say=_say)
    inverter = None
    if options.inverter is not None:
        inverter = Inverter.from_pretrained(options.inverter, auditor.plain)
    folder.mkdir(parents=True, exist_ok=True)
    audit: Audit = auditor.run(sets, inverter)
    name = model_title(options.model, options.scale)
    with atomic_file(folder / FIGURES, "w") as file:
        facts = {"model": name, "seconds": round(time.perf_counter() - began)}
        json.dump({**facts, **audit.as_json(texts=options.show_texts)}, file, indent=1)
        file.write("\n")
    write_page(folder / PAGE, name, audit, show_texts=options.show_texts)
    for line in verdict(audit):
        print(line)
    _say(f"{folder / PAGE}")


def _settings(options: argparse.Namespace) -> "AuditSettings":
    from polyvec.invert.audit.run import NO_DEFENCE, AuditSettings

    names = ("steps", "retrain", "num_test", "seed")
    given = {name: getattr(options, name) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    if options.defence:
        # What is lost and what is protected are counted from the undefended vectors.
        changes["defences"] = tuple(dict.fromkeys([NO_DEFENCE, *options.defence]))
    return AuditSettings.quick(**changes) if options.quick else AuditSettings(**changes)


def _texts(options: argparse.Namespace) -> tuple[list[str], list[str] | None]:
    from polyvec.data.texts import read_texts

    texts = [each.text for each in read_texts(options.texts, column=options.column)]
    if options.label is None:
        return texts, None
    labels = [each.text for each in read_texts(options.texts, column=options.label)]
    if len(labels) != len(texts):
        raise InputError(f"--label {options.label}: {len(labels)} labels of {len(texts)} texts")
    return texts, labels


def _say(line: str) -> None:
    print(line, file=sys.stderr)
