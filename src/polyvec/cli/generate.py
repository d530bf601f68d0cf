r"""Ask a language model about each row of a file, or each line of standard input.

Input: one text per line, or FILE.txt, .jsonl, .json, .csv, .tsv, .parquet (or .gz). Output: the
rows with all their fields and the model's answer, in the order of the input, as JSON lines.

The template's slots are fields of the rows; a line of text is the field "text". A model with a
chat template is asked in a chat; others continue the text, as with --plain. Answers are cached:
the same command again, even after Ctrl-C, asks only what was not answered. A row without an answer
has the field "error", and the exit status is then 2. A server's key is read from the environment:
POLYVEC_API_KEY, or, for OpenAI's own server, OPENAI_API_KEY.

example: echo 'Once upon a time' | \
  polyvec generate --model polyvec/nano-lm --plain --max-new-tokens 8
"""

import argparse
import contextlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polyvec.cli import common
from polyvec.cli.generate_options import SHOWN_PROMPTS, arguments
from polyvec.errors import DataError, GenerationError, InputError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from polyvec.llm.answers import Completion, GenerationSettings
    from polyvec.llm.language_model import LanguageModel
    from polyvec.llm.rows import Columns, Row, RowPrompt

    Rows = Iterator[tuple[str, Row]]

__all__ = ["arguments", "run"]


def run(options: argparse.Namespace) -> None:
    if options.output == "-":
        options.output = None
    settings = _settings(options)
    columns = _columns(options, settings)
    _check_files(options)
    num_rows = _count(options, columns)
    rows = _rows(options)
    first = next(rows, None)  # before weights load, so that a wrong file fails at once
    prompt = _prompt(options, None if first is None else first[1])
    if first is not None:
        _check_first(prompt, columns, *first)
        rows = itertools.chain([first], rows)
    model = _model(options)
    prompt = _as_the_model_takes_it(prompt, options, model)
    if options.dry_run:
        _show(options, model, rows, prompt, settings)
    else:
        _answer(options, model, rows, num_rows, prompt, settings)


def _answer(
    options: argparse.Namespace,
    model: "LanguageModel",
    rows: "Rows",
    total: int | None,
    prompt: "RowPrompt",
    settings: "GenerationSettings",
) -> None:
    from polyvec.llm.ledger import summary
    from polyvec.llm.rows import answered_rows

    num_rows, failed, first_error = 0, 0, ""
    with _output(options.output) as write, _watched(options, model, total) as on_answer:
        for row in answered_rows(
            model, rows, prompt, settings, answer=options.field, on_answer=on_answer
        ):
            write(row)
            num_rows += 1
            if "error" in row:
                failed += 1
                first_error = first_error or row["error"]
    line = f"{options.output or 'standard output'}: {summary(model.usage, num_rows)}"
    if failed:
        raise GenerationError(
            f"{line}; {failed} of {num_rows} rows have an error and no answer, the first: "
            f"{first_error}"
        )
    print(line, file=sys.stderr)


def _show(
    options: argparse.Namespace,
    model: "LanguageModel",
    rows: "Rows",
    prompt: "RowPrompt",
    settings: "GenerationSettings",
) -> None:
    """Print the first prompts as JSON lines, and what all of them will cost at most."""
    from polyvec.llm.answers import Usage
    from polyvec.llm.rows import count_prompts

    found = count_prompts(model, rows, prompt, num_shown=SHOWN_PROMPTS)
    for each in found.shown:
        print(json.dumps({"prompt": each}, ensure_ascii=False))
    new = found.num_prompts * settings.n * settings.max_new_tokens
    prices = options.prompt_price, options.new_price
    most = Usage(0, 0, found.tokens or 0, new, 0.0, {}, *prices).cost
    line = f"dry run: {found.num_rows} rows; "
    line += "an unknown number of" if found.tokens is None else f"{found.tokens:,}"
    line += f" prompt tokens, at most {new:,} new tokens"
    if most is not None and found.tokens is not None:
        line += f", cost at most {most:.6g}"
    if found.first_error:
        line += f"; {found.num_rows - found.num_prompts} without a prompt, the first: "
        line += found.first_error
    print(line, file=sys.stderr)


# ---- what is asked ------------------------------------------------------------------------------


def _settings(options: argparse.Namespace) -> "GenerationSettings":
    from polyvec.llm.answers import GenerationSettings

    for name in ("top_p", "seed"):
        if getattr(options, name) is not None and options.temperature == 0:
            raise InputError(f"--{name.replace('_', '-')}: does nothing at temperature 0")
    return GenerationSettings(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=1.0 if options.top_p is None else options.top_p,
        stop=tuple(options.stop),
        n=options.n,
        seed=options.seed or 0,
        schema=None if options.schema is None else _schema(Path(options.schema)),
    )


def _columns(options: argparse.Namespace, settings: "GenerationSettings") -> "Columns":
    from polyvec.llm.rows import Columns

    return Columns(options.field, settings.n > 1, settings.schema is not None)


def _schema(path: Path) -> dict[str, Any]:
    from polyvec.data.strict_json import strict_json
    from polyvec.llm.schema import check_schema

    try:
        schema = strict_json(_text(path))
        check_schema(schema)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    return cast("dict[str, Any]", schema)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _rows(options: argparse.Namespace) -> "Rows":
    from polyvec.data.texts import read_rows

    if options.file not in (None, "-"):
        return read_rows(options.file, kind=options.format)
    return read_rows(common.standard_input(options), kind=options.format)


def _prompt(options: argparse.Namespace, row: "Row | None") -> "RowPrompt":
    from polyvec.data.texts import TEXT_COLUMNS
    from polyvec.llm.rows import RowPrompt
    from polyvec.llm.slots import SlotTemplate

    template, where = options.template, "--template"
    if options.template_file is not None:
        where = options.template_file
        template = _text(Path(where)).removesuffix("\n")
    elif template is None:
        name = next((name for name in TEXT_COLUMNS if name in (row or {})), "text")
        template = f"{{{name}}}"
    system = None
    if options.system is not None:
        if options.plain:
            raise InputError("--system: --plain sends no chat that it could begin")
        system = SlotTemplate.parse(options.system, "--system")
    return RowPrompt(SlotTemplate.parse(template, where), system, options.plain)


def _count(options: argparse.Namespace, columns: "Columns") -> int | None:
    """The rows of a file, all read once, so that a malformed one is known before any is asked.

    None for a stream, which can be read only once.
    """
    from polyvec.data.texts import json_line

    if options.file in (None, "-") or not Path(options.file).is_file():
        return None
    count = 0
    for where, row in _rows(options):
        columns.check(row, where)
        try:
            json_line(row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        count += 1
    return count


def _check_first(prompt: "RowPrompt", columns: "Columns", where: str, row: "Row") -> None:
    """A slot or a field that fits no row is an error before anything is asked."""
    from polyvec.data.texts import json_line

    prompt.template.check(row.keys(), "--template")
    if prompt.system is not None:
        prompt.system.check(row.keys(), "--system")
    if not prompt.slots:
        raise InputError(
            f"--template: no slot, so all rows would ask the same; known: {', '.join(row)}"
        )
    json_line(row)  # DataError if it cannot be written
    columns.check(row, where)


def _model(options: argparse.Namespace) -> "LanguageModel":
    from polyvec.llm.cache import CachedLanguageModel, default_folder
    from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL, load_language_model

    name = options.model or DEFAULT_LANGUAGE_MODEL
    is_server = name.startswith(("http://", "https://"))
    how: dict[str, Any] = {
        "device": options.device,
        "timeout_s": options.timeout,
        "trust_remote_code": options.trust_remote_code,
        "concurrency" if is_server else "batch_size": options.batch_size,
    }
    for option in ("device", "trust_remote_code") if is_server else ():
        if how[option]:
            raise InputError(f"--{option.replace('_', '-')}: not for a server, which decides it")
    if options.timeout and not is_server:
        raise InputError("--timeout: only for a server")
    given = {key: value for key, value in how.items() if value}
    model = load_language_model(name, **given)
    model.usage.prompt_price, model.usage.new_price = options.prompt_price, options.new_price
    if options.cache == "none":
        return model
    if options.cache is None and not common.cache_is_writable(default_folder()):
        return model
    return CachedLanguageModel(model, options.cache)


def _as_the_model_takes_it(
    prompt: "RowPrompt", options: argparse.Namespace, model: "LanguageModel"
) -> "RowPrompt":
    from dataclasses import replace

    if model.takes_chats:
        return prompt
    if prompt.system is not None:
        raise InputError(f"--system: {options.model} has no chat template; put it in --template")
    return replace(prompt, plain=True)


# ---- where it goes ------------------------------------------------------------------------------


def _check_files(options: argparse.Namespace) -> None:
    from polyvec.storage.files import check_target

    if options.output is not None:
        check_target(options.output)
        if Path(options.output).suffix != ".jsonl":
            raise DataError(f"{options.output}: rows are written as JSON lines, FILE.jsonl")
    if options.ledger is not None:
        check_target(options.ledger)
    named = [("input", options.file), ("output", options.output), ("ledger", options.ledger)]
    files = [(what, Path(path).resolve()) for what, path in named if path not in (None, "-")]
    for (what, path), (other, same) in itertools.combinations(files, 2):
        if path == same or (path.exists() and same.exists() and path.samefile(same)):
            raise InputError(f"{path}: {what} and {other} are the same file; not overwritten")


@contextlib.contextmanager
def _output(path: str | None) -> "Iterator[Callable[[dict[str, Any]], object]]":
    """A function that writes a row; a file appears when all are written."""
    from polyvec.data.texts import json_line
    from polyvec.storage.files import atomic_file

    if path is not None:
        with atomic_file(Path(path)) as file:
            yield lambda row: file.write(json_line(row))
        return
    try:
        yield _print
    finally:
        sys.stdout.flush()


def _print(row: dict[str, Any]) -> None:
    from polyvec.data.texts import json_line

    sys.stdout.write(json_line(row).decode())
    sys.stdout.flush()  # the next program in the pipe need not wait


@contextlib.contextmanager
def _watched(
    options: argparse.Namespace, model: "LanguageModel", total: int | None
) -> "Iterator[Callable[[Completion], None]]":
    """What each answer advances: the bar on a terminal, and the line of the ledger."""
    from polyvec.llm.ledger import ledger_line
    from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL
    from polyvec.llm.progress import generation_progress

    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(generation_progress(total, None, model.usage))
        update = None
        if options.ledger is not None:
            name = re.sub("//[^/@]*@", "//", options.model or DEFAULT_LANGUAGE_MODEL)
            update = stack.enter_context(
                ledger_line(options.ledger, model.usage, model=name, identity=model.identity)
            )

        def on_answer(completion: "Completion") -> None:
            advance(completion)
            if update is not None:
                update()

        yield on_answer
