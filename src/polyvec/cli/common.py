"""Options that several verbs share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from polyvec.errors import InputError

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder


def model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="folder, hub id, or recipe file (.toml); default: all-MiniLM-L6-v2",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the best there is")


def input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--column", help="where the text stands in .jsonl, .csv, .parquet")
    parser.add_argument("--id-column", help="where the id stands; default: _id, id or docid")
    parser.add_argument("--batch-size", type=positive, help="most texts in a batch (memory)")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def load_model(options: argparse.Namespace) -> "Embedder":
    """The embedder of --model: a folder, a hub id, a recipe file, or the default."""
    from polyvec.embed.embedder import Embedder
    from polyvec.embed.sources import DEFAULT_MODEL
    from polyvec.recipe import load_recipe

    name = options.model or DEFAULT_MODEL
    if name.endswith(".toml"):
        embedder = load_recipe(name).build()
        return embedder.to(options.device) if options.device else embedder
    return Embedder.from_pretrained(name, device=_device(options.device))


def model_name(options: argparse.Namespace) -> str:
    """What to call the model in stored files; folders by absolute path."""
    from polyvec.embed.sources import DEFAULT_MODEL

    name = options.model or DEFAULT_MODEL
    return str(Path(name).resolve()) if Path(name).exists() else name


def _device(name: str | None) -> str | None:
    if name is None:
        return None
    import torch

    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {reason}") from None
    return name
