r"""Keep what matters of a text: fewer words, to an exact number of tokens.

Input: FILE (.txt, .jsonl, .csv ... or a folder) or lines of standard input, which together are one
context; with --each every text is its own. Output: the compressed text; with --json a line for
each context with its text, tokens and kept pieces. Tokens are those of --tokenizer, the model that
will read the text. A method is a recipe (see docs/compression.md) or a scorer: contrastive, dense,
graph, lexical, llm, position, question_likelihood, random, self_information ...

example: printf '%s\n' 'The key lies in the red box.' 'Cats sleep all day.' | \
  polyvec compress --question 'Where is the key?' --tokens 10 --method dense --unit sentence
"""

import argparse
import contextlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common, compress_memory
from polyvec.errors import InputError, SettingsError, known

if TYPE_CHECKING:
    from polyvec.compress.text.compressor import TextCompressor
    from polyvec.compress.text.document import Compressed
    from polyvec.compress.text.writers import TextWriter

METHODS = ("recomp", "selective-context")  # with a question, without one


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", help="read texts from this file or folder; default, or -: standard input"
    )
    parser.add_argument(
        "--column", help="read texts from this column (.jsonl, .json, .csv, .tsv, .parquet)"
    )
    parser.add_argument("--id-column", help=argparse.SUPPRESS)
    parser.add_argument("-q", "--question", help="keep what helps to answer this question")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=_whole, metavar="N", help="keep at most N tokens")
    budget.add_argument("--rate", type=_share, metavar="R", help="keep this share of the tokens")
    parser.add_argument("--threshold", type=float, help="keep units with at least this score")
    parser.add_argument(
        "--method",
        metavar="NAME",
        help=f"a recipe or a scorer; default: {METHODS[0]}, without a question {METHODS[1]}",
    )
    parser.add_argument("--scale", default="small", help="full, small (default) or nano")
    parser.add_argument(
        "--unit", help="keep whole tokens, words, phrases, sentences or passages (singular)"
    )
    parser.add_argument("--model", help="score or write with this model; default: the method's")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="count the tokens of this model; default: the method's, else SmolLM2's",
    )
    parser.add_argument(
        "--keep", metavar="WORD", action="append", default=[], help="always keep it; repeatable"
    )
    parser.add_argument("--keep-digits", action="store_true", help="always keep numbers")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="fill what whole sentences leave of the budget with words of the next",
    )
    parser.add_argument("--each", action="store_true", help="compress every text by itself")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument(
        "--show", action="store_true", help="print the original, what was dropped in red, on stderr"
    )
    parser.add_argument(
        "--html", metavar="FILE", type=common.path, help="write the same as an HTML page"
    )
    parser.add_argument(
        "--memory",
        metavar="DIR",
        type=common.path,
        help="make vectors with the soft compressor of this folder; -o is then a folder",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=common.path, help="write here")


def run(options: argparse.Namespace) -> None:
    from polyvec.compress.text.show import write_page
    from polyvec.storage.files import atomic_file, check_target

    if options.memory is not None:
        compress_memory.run(options, _contexts(options))
        return
    paths = {"--output": options.output, "--html": options.html}
    targets = {name: check_target(path) for name, path in paths.items() if path is not None}
    if options.file not in (None, "-") and Path(options.file).exists():
        targets["the input"] = Path(os.path.realpath(options.file))
    for (one, path), (other, same) in itertools.combinations(targets.items(), 2):
        if path == same:
            raise InputError(f"{path}: {one} and {other} are the same file; not overwritten")
    contexts = _contexts(options)
    if not contexts:
        raise InputError("the context is empty; there is nothing to compress")
    compressor = build(options)
    budget = {"tokens": options.tokens, "rate": options.rate, "threshold": options.threshold}
    kept = []
    with contextlib.ExitStack() as stack:
        out = sys.stdout
        if options.output is not None:
            out = stack.enter_context(atomic_file(options.output, "w"))
        for number, each in enumerate(contexts, 1):
            try:
                found = compressor.compress(each, options.question, **budget)
            except InputError as error:
                where = f"text {number} of {len(contexts)}: " if options.each else ""
                raise InputError(f"{where}{error}") from None
            # At once: who ends a long run has the lines so far.
            print(_line(found) if options.json else found.text, file=out, flush=True)
            _show(options, found)
            if options.html is not None:
                kept.append(found)
    if options.html is not None:
        write_page(options.html, kept, options.question)


def build(options: argparse.Namespace) -> "TextCompressor | TextWriter":
    """The compressor of --method, with the options that replace its settings."""
    import dataclasses

    from polyvec.compress.text import sections
    from polyvec.compress.text.scorer import load_scorers
    from polyvec.recipe import load_recipe, recipe_names

    name = options.method or METHODS[options.question is None]
    if name in load_scorers():
        settings = sections.TextCompressorSettings(scorer={"kind": name})
    elif name in recipe_names() or name.endswith(".toml"):
        recipe = load_recipe(name)
        found = recipe.at(sections.TEXT_COMPRESSOR, options.scale)
        if found is None:
            raise SettingsError(f"{recipe.path}: has no section [text_compressor]; not a method")
        settings = found
    else:
        raise SettingsError(f"--method {name!r} is not known.{known(name, methods())}")
    changes: dict[str, Any] = {}
    if options.model is not None:
        part = "writer" if settings.scorer is None else "scorer"
        changes[part] = {**(getattr(settings, part) or {}), "model": options.model}
    for option in ("unit", "tokenizer"):
        if getattr(options, option) is not None:
            changes[option] = getattr(options, option)
    if options.keep or options.keep_digits:
        changes["keep_words"] = (*settings.keep_words, *options.keep)
        changes["keep_digits"] = settings.keep_digits or options.keep_digits
    if options.exact:
        changes["exact"] = True
    if settings.writer is not None and set(changes) - {"writer", "tokenizer"}:
        raise InputError(
            f"--method {name} writes a text anew: --unit, --keep and --exact do nothing"
        )
    return sections.build(dataclasses.replace(settings, **changes), None, options.scale)


def methods() -> list[str]:
    """Names of all recipes with the section, and of all scorers."""
    from polyvec.compress.text.scorer import load_scorers
    from polyvec.compress.text.sections import TEXT_COMPRESSOR
    from polyvec.recipe import all_recipes

    recipes = [each.key for each in all_recipes() if each[TEXT_COMPRESSOR] is not None]
    return [*recipes, *load_scorers()]


def _contexts(options: argparse.Namespace) -> list[list[str]]:
    from polyvec.data.texts import kind_of

    texts = [record.text for record in common.read_input(options)]
    lines = options.file in (None, "-") or kind_of(Path(options.file)) == "txt"
    if options.each:
        return [[text] for text in texts if text.strip()]
    # Lines are one text, whose empty lines separate passages; records are passages.
    return [["\n".join(texts)]] if lines else [texts]


def _line(found: "Compressed") -> str:
    row = {
        "text": found.text,
        "num_tokens_in": found.num_tokens_in,
        "num_tokens": found.num_tokens,
        "kept": [] if found.written else [list(span) for span in found.kept],
        "written": found.written,
        "seconds": round(found.seconds, 3),
    }
    return json.dumps(row, ensure_ascii=False)


def _show(options: argparse.Namespace, found: "Compressed") -> None:
    from polyvec.compress.text.show import coloured, facts

    if options.show:
        plain = bool(os.environ.get("NO_COLOR")) or not sys.stderr.isatty()
        print(coloured(found, colours=not plain), file=sys.stderr)
    print(facts(found), file=sys.stderr)
    for note in found.notes:
        print(f"polyvec: note: {note}", file=sys.stderr)


def _whole(text: str) -> int:
    """A number of tokens; 0 is told by the compressor, in the same words as in Python."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of the tokens") from None
