"""Calculate what a corpus costs: hours, money, disk, memory, machines and queries a second.

Nothing is loaded or computed. Every line says whether its number was measured, extrapolated from
what was measured, or calculated, and from what.

example: polyvec plan --documents 1e9 --tokens 200 --gpus 64 --precision int8
"""

import argparse
import json
from dataclasses import asdict

from polyvec.cli import common

_number = common.number("a positive number", lambda found: found > 0)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--documents", type=_count, required=True, metavar="N", help="plan for N; 1e9 is a number"
    )
    parser.add_argument(
        "--tokens", type=_number, required=True, metavar="N", help="count N a document, on average"
    )
    devices = parser.add_mutually_exclusive_group(required=True)
    devices.add_argument("--gpus", type=common.positive, metavar="N", help="embed on N GPUs")
    devices.add_argument("--cores", type=common.positive, metavar="N", help="embed on N CPU cores")
    parser.add_argument(
        "--model",
        default="all-MiniLM-L6-v2",
        metavar="NAME",
        help="take the speed and dimensions of this model; default: all-MiniLM-L6-v2",
    )
    parser.add_argument(
        "--tokens-per-second", type=_number, metavar="X", help="use your own rate of one device"
    )
    parser.add_argument(
        "--precision",
        default="float32",
        help="store float32 (default), int8, uint8, binary or ubinary",
    )
    parser.add_argument("--truncate-dim", type=common.positive, help="keep this many dimensions")
    for device in ("gpu", "core"):
        parser.add_argument(
            f"--price-{device}-hour", type=_number, metavar="X", help=f"pay X for a {device} hour"
        )
    parser.add_argument(
        "--machine-gb", type=_number, default=64.0, metavar="X", help="store on machines of X GB"
    )
    parser.add_argument(
        "--machine-cores",
        type=common.positive,
        default=16,
        metavar="N",
        help="and of N cores; default: 64 GB, 16 cores",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    from polyvec.bulk.cost import Wanted, cost
    from polyvec.errors import InputError

    device, other = ("gpu", "core") if options.gpus else ("core", "gpu")
    if getattr(options, f"price_{other}_hour") is not None:
        raise InputError(f"--price-{other}-hour: the plan has no {other}s; use --{other}s")
    wanted = Wanted(
        documents=options.documents,
        tokens=options.tokens,
        gpus=options.gpus or 0,
        cores=options.cores or 0,
        model=options.model,
        precision=options.precision,
        dimension=options.truncate_dim,
        tokens_per_s=options.tokens_per_second,
        price_device_hour=getattr(options, f"price_{device}_hour"),
        machine_gb=options.machine_gb,
        machine_cores=options.machine_cores,
    )
    lines = cost(wanted)
    if options.json:
        shown = [{k: v for k, v in asdict(line).items() if k != "shown"} for line in lines]
        print(json.dumps({"wanted": asdict(wanted), "lines": shown}, indent=1))
        return
    rows = [(line.name, line.shown, line.basis, line.source) for line in lines]
    common.show_table(("what", "number", "basis", "from"), rows)


def _count(text: str) -> int:
    found = _number(text)
    if found != int(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(found)
