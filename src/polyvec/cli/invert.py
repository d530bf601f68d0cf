r"""Write the texts that an inverter finds for vectors: an audit of your own embedder.

VECTORS is a file of polyvec embed (.npy, .safetensors, .jsonl, .parquet) or an index of polyvec
index. DIR is what a recipe with [inverter] left in RUN/model, or polyvec audit in
FOLDER/inverter/run/model. With --model, the victim, the nearest of several texts is kept and its
cosine printed; without it, the likeliest. A line for each vector.

example: polyvec invert /tmp/pets --inverter /tmp/audit/inverter/run/model --model all-MiniLM-L6-v2
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.cli import common
from polyvec.errors import InputError

if TYPE_CHECKING:
    import numpy as np


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vectors", metavar="VECTORS", help="file of vectors, or folder of an index")
    parser.add_argument(
        "--inverter", required=True, metavar="DIR", type=common.path, help="invert with this one"
    )
    parser.add_argument("--beams", type=common.positive, metavar="N", help="write N texts for each")
    parser.add_argument(
        "--steps", type=int, default=0, metavar="N", help="correct N times (needs a corrector)"
    )
    parser.add_argument("--limit", type=common.positive, metavar="N", help="the first N vectors")
    parser.add_argument("--json", action="store_true", help="print JSON lines, with cosines")
    parser.add_argument("-o", "--output", metavar="FILE", type=common.path, help="write here")
    common.model_option(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.invert.inverter import Inverter
    from polyvec.storage.files import atomic_file, check_target

    if options.output is not None:
        check_target(options.output)
    if options.steps < 0:
        raise InputError(f"--steps {options.steps}: expected a whole number from 0")
    vectors_NE, fingerprint = _vectors(options.vectors)
    victim = None
    if options.model is not None or options.recipe is not None:
        victim = common.load_model(options)
    inverter = Inverter.from_pretrained(options.inverter, victim)
    if fingerprint is not None:
        inverter.check_model(fingerprint)
    found = inverter.invert(vectors_NE[: options.limit], beams=options.beams, steps=options.steps)
    lines = [
        json.dumps({"text": each.text, "cosine": each.cosine}, ensure_ascii=False)
        if options.json
        else " ".join(each.text.split())  # one line a vector
        for each in found
    ]
    text = "".join(f"{line}\n" for line in lines)
    if options.output is None:
        sys.stdout.write(text)
    else:
        with atomic_file(options.output, "w") as file:
            file.write(text)
    if victim is not None and found:
        mean = sum(each.cosine or 0.0 for each in found) / len(found)
        print(f"{len(found)} texts, mean cosine {mean:.3f}", file=sys.stderr)


def _vectors(name: str) -> "tuple[np.ndarray, str | None]":
    """The vectors, and of an index the fingerprint of its model."""
    from polyvec.index.store import Index
    from polyvec.storage.vector_files import read_vectors

    if Path(name).is_dir():
        index = Index.open(name)
        return index.vectors_NE, index.description.model_sha256
    return read_vectors(name), None
