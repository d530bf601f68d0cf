"""The options of `polyvec generate`."""

import argparse

from polyvec.cli import common

KINDS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")
SHOWN_PROMPTS = 3

price = common.number("a price of 0 or more", lambda found: found >= 0)
_seconds = common.number("a number of seconds above 0", lambda found: found > 0)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", help="read rows from this file; default, or -: standard input"
    )
    parser.add_argument("-o", "--output", metavar="FILE.jsonl", help="write rows to this file")
    parser.add_argument(
        "--format", choices=KINDS, help="read this format; default: by FILE's suffix, else txt"
    )
    _prompt_options(parser)
    _model_options(parser)
    _settings_options(parser)
    parser.add_argument(
        "--field",
        type=common.text,
        default="answer",
        metavar="NAME",
        help="write answers here; default: answer",
    )
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="keep answers in this folder, or none; default: polyvec's part of the user's cache",
    )
    parser.add_argument(
        "--ledger", metavar="FILE.jsonl", help="append a line with this run's tokens and cost"
    )
    parser.add_argument(
        "--prompt-price", type=price, metavar="PRICE", help="price of a million prompt tokens"
    )
    parser.add_argument(
        "--new-price", type=price, metavar="PRICE", help="price of a million new tokens"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=f"print the first {SHOWN_PROMPTS} prompts, count tokens and ask nothing",
    )


def _prompt_options(parser: argparse.ArgumentParser) -> None:
    template = parser.add_mutually_exclusive_group()
    template.add_argument(
        "--template",
        type=common.text,
        metavar="TEXT",
        help="ask this; {NAME} is a field, {{ a brace; default: {text}",
    )
    template.add_argument("--template-file", metavar="FILE", help="read the template from FILE")
    parser.add_argument(
        "--system",
        type=common.text,
        metavar="TEXT",
        help="put this message first; it may have slots",
    )
    parser.add_argument(
        "--plain", action="store_true", help="let the model continue the text, without a chat"
    )


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="ask this folder, hub id, FILE.gguf or server (http://host/v1#model); "
        "default: SmolLM2-135M-Instruct",
    )
    common.where_to_run(parser)
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="wait so long for a server's reply; default: 600",
    )
    parser.add_argument(
        "--batch-size",
        type=common.positive,
        metavar="N",
        help="run, or send to a server, N prompts at a time",
    )


def _settings_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-new-tokens",
        type=common.positive,
        default=256,
        metavar="N",
        help="cut answers after N tokens; default: 256",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="draw tokens; default: 0, the likeliest one",
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens that sum to P"
    )
    parser.add_argument(
        "--stop",
        type=common.text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end answers before this; repeatable",
    )
    parser.add_argument(
        "--n", type=common.positive, default=1, metavar="N", help="draw N answers for each row"
    )
    parser.add_argument(
        "--seed", type=common.seed, metavar="N", help="draw other answers; default: 0"
    )
    parser.add_argument("--schema", metavar="FILE.json", help="write values of this JSON schema")
