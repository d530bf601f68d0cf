"""Options that several verbs share."""

import argparse
import contextlib
import math
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from polyvec.errors import IndexStoreError, InputError, UnknownModelError

if TYPE_CHECKING:
    from polyvec.data.texts import Record
    from polyvec.embed.embedder import Embedder
    from polyvec.index.engines.interface import Description
    from polyvec.interfaces import PromptChoice


NUMBER = re.compile(r"[+-]?[\d.,/%]+")
# A setting of a recipe: section.key=value.
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.[^\s=.]+)*=.*", re.DOTALL)


def model_option(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--model",
        metavar="NAME",
        help="load this folder, hub id, GGUF file or recipe (.toml), or ask the API of "
        "openai:NAME, cohere:NAME or http://host/v1#NAME; default: all-MiniLM-L6-v2",
    )
    chosen.add_argument(
        "--recipe", metavar="NAME", help="build this recipe, by name (prompteol) or file"
    )
    how_to_run(parser)


def where_to_run(parser: "argparse._ActionsContainer") -> None:
    """Options of every model on this machine, whether it embeds or writes."""
    parser.add_argument(
        "--device", help="run on cpu, cuda, cuda:1 or mps; default: the fastest available"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with the model; read it first",
    )


def how_to_run(parser: argparse.ArgumentParser) -> None:
    """Options of every verb that loads an embedder."""
    where_to_run(parser)
    parser.add_argument(
        "--attention",
        help="use causal, bidirectional, last-K, from-K or prefix; default: the model's own",
    )
    parser.add_argument(
        "--dtype",
        help="compute in float32, bfloat16 or float16; auto: as the weights are stored; fast: in "
        "8-bit integers or bfloat16 where that is faster and near",
    )
    parser.add_argument(
        "--max-seq-length", type=positive, metavar="N", help="read this many tokens of a text"
    )
    parser.add_argument(
        "--pooling", help="pool by mean, first, last or another; default: the model's own"
    )
    parser.add_argument(
        "--scale", help="build a recipe at this scale: full (default), small or nano"
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="print how the model runs and what the leak probe found",
    )


def prompt_options(parser: argparse.ArgumentParser) -> None:
    """Options of the verbs that embed: what is put before a text, and what of it is read."""
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", type=text, help="put this text before every input")
    prompts.add_argument("--prompt-name", help="use this stored prompt of the model")
    parser.add_argument(
        "--role",
        choices=("query", "document"),
        help="use this side of the model's prompts or template",
    )
    parser.add_argument(
        "--truncate",
        choices=("warn", "error", "silent"),
        default="warn",
        help="of texts that are longer than the model reads: warn (default), error or silent",
    )


def prompt_choice(options: argparse.Namespace) -> "PromptChoice":
    return {
        "prompt": options.prompt,
        "prompt_name": options.prompt_name,
        "role": options.role,
    }


def loaded_with(options: argparse.Namespace) -> str:
    """The options that change how a model is loaded, as an index keeps them."""
    names = ("dtype", "pooling", "max_seq_length", "truncate_dim")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return shlex.join(
        word
        for name, value in given.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    )


def input_options(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    parser.add_argument(
        "file",
        nargs="*" if many else "?",
        help="read texts from this file or folder; default, or -: standard input",
    )
    parser.add_argument(
        "--column", help="read texts from this column (.jsonl, .json, .csv, .tsv, .parquet)"
    )
    parser.add_argument("--id-column", help="read ids from this column; default: _id, id or docid")
    parser.add_argument(
        "--batch-size", type=positive, help="limit the texts per batch, to save memory"
    )


def read_input(
    options: argparse.Namespace, *, metadata: bool | Sequence[str] = False
) -> "Iterator[Record]":
    """Records from FILE, or from the lines of standard input."""
    from polyvec.data.texts import read_texts

    if options.file not in (None, "-"):
        return read_texts(
            options.file,
            column=options.column,
            id_column=options.id_column,
            metadata=metadata,
        )
    stream = standard_input(options)
    return read_texts(stream, column=options.column, id_column=options.id_column)


def count_input(options: argparse.Namespace) -> int | None:
    """The records of FILE, all read once, so that a malformed one is known before any is embedded.

    None for a stream, which can be read only once.
    """
    name = options.file
    if name in (None, "-") or not (Path(name).is_file() or Path(name).is_dir()):
        return None
    return sum(1 for _ in read_input(options))


def standard_input(options: argparse.Namespace) -> IO[bytes]:
    """The open stream; InputError if nothing is piped into it."""
    if sys.stdin is None:
        raise InputError("no FILE, and standard input is closed")
    if sys.stdin.isatty():
        raise InputError(
            f"no FILE, and standard input is a terminal; see polyvec {options.verb} --help"
        )
    return sys.stdin.buffer


def kind_table(option: str, text: str) -> dict[str, Any]:
    """The table of "KIND KEY=VALUE ...": values are TOML's, or else texts."""
    kind, *settings = text.split()
    found: dict[str, Any] = {"kind": kind}
    for each in settings:
        name, equals, value = each.partition("=")
        if not equals:
            raise InputError(f"{option} {text!r}: {each!r} is not KEY=VALUE")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            found[name] = value
    return found


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on a terminal; elsewhere tab-separated lines, which scripts read in full."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    cells = [list(row) for row in rows]
    plain = bool(os.environ.get("NO_COLOR"))  # rich drops colours for it, but keeps bold
    table = Table(header_style="none" if plain else "table.header")
    columns = zip(*cells, strict=True) if cells else [()] * len(header)
    for name, column in zip(header, columns, strict=True):
        if any(column) and all(NUMBER.fullmatch(cell) for cell in column if cell):
            table.add_column(name, justify="right", no_wrap=True, min_width=max(map(len, column)))
        else:
            table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console(markup=False)
    # A table that is wider than the terminal has lines that wrap; rich would cut its numbers.
    console.width = max(
        console.width,
        Measurement.get(console, console.options.update(max_width=10_000), table).minimum,
    )
    console.print(table)


def not_empty(text: str) -> str:
    """The text; "" comes from an unset variable of the shell, and names nothing."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty (an unset variable?)")
    return text


def text(given: str) -> str:
    """The text, which may be "". A byte that is not UTF-8 is a lone surrogate: no text."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"the byte after character {error.start} is not UTF-8"
        ) from None
    return given


def path(text: str) -> Path:
    return Path(not_empty(text))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def number(what: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """An option's type: a finite number that fits, which is called so in the error."""

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and fits(found)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return found

    return read


def seed(text: str) -> int:
    """The generators of numpy and torch take no negative seeds."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def cache_is_writable(folder: Path) -> bool:
    """Whether the user's own cache can be written; warns if not: a verb goes on without it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return True
    reason = "cannot be written" if there.is_dir() else "is not a folder"
    print(
        f"polyvec: warning: going on without a cache: {there} {reason}; set another with --cache",
        file=sys.stderr,
    )
    return False


def check_model(options: argparse.Namespace) -> None:
    """Raises the error of `load_model` for a model that is not there; loads no weights.

    A model of the hub is downloaded.
    """
    from polyvec.embed.formats.sources import DEFAULT_MODEL, model_folder
    from polyvec.embed.schemes import scheme_of
    from polyvec.recipe import load_recipe

    name = getattr(options, "recipe", None) or options.model or DEFAULT_MODEL
    if is_recipe(options):
        load_recipe(name)
    elif scheme_of(name) is not None:
        _from_pretrained(name, None, options)  # looks for a key, and asks nothing
    else:
        with _recipe_hint(name):
            model_folder(name, trust_remote_code=options.trust_remote_code)


def load_model(options: argparse.Namespace, *, hybrid: bool = False) -> "Embedder":
    """The embedder of --model: a folder, a hub id, a GGUF file, a recipe file, a model behind an
    API (a TextEncoder without weights), or the default.

    A recipe that fuses rankings has no single vectors: only with `hybrid=True` is it accepted.
    """
    from torch import nn

    from polyvec.embed.formats.sources import DEFAULT_MODEL

    name = getattr(options, "recipe", None) or options.model or DEFAULT_MODEL
    device = _device(options.device)
    if is_recipe(options):
        embedder = _from_recipe(name, options, hybrid)
        embedder = embedder.to(device) if device else embedder
    elif options.scale:
        raise InputError(
            f"--scale {options.scale}: {name} is not a recipe; only recipes have scales; polyvec "
            "recipes list prints their names"
        )
    else:
        embedder = _from_pretrained(name, device, options)
    for name in ("max_seq_length", "backend"):
        value = getattr(options, name, None)
        if value is None:
            continue
        if not isinstance(embedder, nn.Module):
            raise InputError(
                f"--{name.replace('_', '-')}: not for models behind an API, nor recipes that fuse "
                "several embedders"
            )
        setattr(embedder, name, value)
    if options.verbose:
        for line in embedder.described():
            print(line, file=sys.stderr)
    return embedder


def load_truncated(options: argparse.Namespace) -> "Embedder":
    """`load_model` for an index: --truncate-dim is a setting of the model, as search reads it."""
    embedder = load_model(options)
    if options.truncate_dim is not None:
        embedder.truncate_dim = options.truncate_dim
    return embedder


def as_built(options: argparse.Namespace, made: "Description") -> None:
    """Fill in the options that built an index, where the user names no other model."""
    if (options.recipe or options.model) and model_name(options) != made.model:
        return
    if made.scale:
        options.recipe, options.model = made.model, None
    elif not options.recipe:
        options.model = options.model or made.model or None
    options.scale = options.scale or made.scale or None
    options.attention = options.attention or made.attention or None
    fill_in(options, made.options)


def fill_in(options: argparse.Namespace, stored: str) -> None:
    """Takes over what `loaded_with` gave, where the user gives no other."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    how_to_run(parser)
    parser.add_argument("--truncate-dim", type=positive)
    try:
        found = vars(parser.parse_args(shlex.split(stored)))
    except (argparse.ArgumentError, ValueError, SystemExit):
        raise IndexStoreError(f"the index was built with unknown options: {stored!r}") from None
    for name, value in found.items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)


def _from_pretrained(name: str, device: str | None, options: argparse.Namespace) -> "Embedder":
    from polyvec.embed.embedder import Embedder

    with _recipe_hint(name):
        return Embedder.from_pretrained(
            name,
            device=device,
            attention=options.attention,
            dtype=options.dtype,
            pooling=options.pooling,
            trust_remote_code=getattr(options, "trust_remote_code", False),
        )


@contextlib.contextmanager
def _recipe_hint(name: str) -> "Iterator[None]":
    """Says of a model that is not found that there is a recipe of its name."""
    from polyvec.recipe import recipe_names

    try:
        yield
    except UnknownModelError as error:
        if name not in recipe_names():
            raise
        # The scale is named, as the paper's own model may be a download of many gigabytes.
        raise UnknownModelError(
            f"{error}; there is a recipe of this name: {name} --scale full, small or nano"
        ) from None


def _from_recipe(name: str, options: argparse.Namespace, hybrid: bool) -> "Embedder":
    from polyvec.embed.sections import embedder_settings
    from polyvec.index.sections import HYBRID
    from polyvec.recipe import load_recipe

    for option in ("attention", "dtype", "pooling"):
        if getattr(options, option):
            raise InputError(f"--{option}: not for recipes, which set it themselves")
    recipe = load_recipe(name)
    fused = recipe[HYBRID]
    if fused is not None and not hybrid:
        raise InputError(
            f"{name}: fuses the rankings of {1 + len(fused.members)} embedders and has "
            f"no single vectors; use polyvec evaluate, or a recipe of its own: "
            f"{', '.join(fused.members)}"
        )
    embedder_settings(recipe, options.scale or "full")
    embedder: Embedder = recipe.build(options.scale or "full")
    return embedder


def is_recipe(options: argparse.Namespace) -> bool:
    """Whether the model is a recipe's: --recipe NAME, a file .toml, or a name with a scale."""
    from polyvec.recipe import recipe_names

    if getattr(options, "recipe", None) or str(options.model).endswith(".toml"):
        return True
    named = bool(options.scale) and options.model in recipe_names()
    return named and not Path(options.model).exists()


def model_name(options: argparse.Namespace) -> str:
    """The model's name in stored files; a file or folder by its absolute path."""
    from polyvec.embed.formats.sources import DEFAULT_MODEL

    recipe = getattr(options, "recipe", None)
    name = recipe or options.model or DEFAULT_MODEL
    if recipe and not recipe.endswith(".toml"):
        return recipe  # a folder that happens to have its name is none of its business
    # Links stay: the hub's cache keeps the parts of a split file under their hashes.
    return os.path.abspath(name) if Path(name).exists() else name  # noqa: PTH100


def _device(name: str | None) -> str | None:
    if name is None:
        return None
    import torch

    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {reason}") from None
    return name
