r"""Make training data from texts with a language model, by the steps of a recipe.

RECIPE is a name (see polyvec recipes list) or a file with [[step]] sections. DIR then holds
train.jsonl, which polyvec train reads, rows.jsonl with all that is known of each row,
rejected.jsonl with reasons, and report.html. The same command again, after Ctrl-C, a kill or a
spent budget, goes on where it was: answers are kept in DIR, and none is paid for twice.
SECTION.KEY=VALUE changes a setting, such as step.1.n=2 (the second step).

example: printf '%s\n' 'The Danube flows through ten countries.' \
  'Cats sleep for sixteen hours of the day.' > /tmp/texts.txt; printf '%s\n' '[system]' \
  'name = "mine"' 'paper = "-"' 'tasks = ["retrieval"]' '[embedder]' \
  'backbone = "polyvec/nano-lm"' 'pooling = "mean"' '[[step]]' 'kind = "texts"' '[[step]]' \
  'kind = "generate"' 'prompt = "inpars"' 'max_new_tokens = 8' 'stop = []' 'keep_cut = true' \
  > /tmp/queries.toml; polyvec synthesize /tmp/queries.toml --texts /tmp/texts.txt \
  --model polyvec/nano-lm -o /tmp/my-queries
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.cli.generate_options import price
from polyvec.errors import DataError, GenerationError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from polyvec.data.texts import Record
    from polyvec.interfaces import TextEncoder
    from polyvec.recipe import Recipe
    from polyvec.synthesize.folder import StepReport
    from polyvec.synthesize.models import Models
    from polyvec.synthesize.run import DryRun, Made
    from polyvec.synthesize.step import Step

SHOWN_PROMPTS = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name of a recipe, or a file (.toml)")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="set this in place of the recipe's, such as step.1.n=2 (of the second step)",
    )
    parser.add_argument(
        "--texts", metavar="FILE", type=common.path, help="begin with these texts: a file or folder"
    )
    parser.add_argument("--column", help="read texts from this column")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=common.path, help="write the rows here"
    )
    parser.add_argument("--scale", default="full", help="full (default), small or nano")
    parser.add_argument(
        "--against",
        metavar="PATH",
        action="append",
        default=[],
        help="refuse rows that hold a text of this task's folder or file of texts; repeatable",
    )
    models = parser.add_argument_group("models")
    language_model_options(models)
    models.add_argument(
        "--embedder",
        metavar="NAME",
        help="search and judge with this embedder; default: the recipe's, else all-MiniLM-L6-v2",
    )
    common.where_to_run(models)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print calls, tokens and money, at most, and three prompts; ask nothing",
    )


def language_model_options(group: Any) -> None:
    """Options of what is asked, and of what it may cost."""
    group.add_argument(
        "--model",
        metavar="NAME",
        help="ask this folder, hub id, FILE.gguf or server (http://host/v1#model); "
        "default: SmolLM2-135M-Instruct, at scale nano polyvec/nano-lm",
    )
    group.add_argument(
        "--batch-size",
        type=common.positive,
        metavar="N",
        help="run, or send to a server, N prompts at a time",
    )
    group.add_argument(
        "--budget",
        metavar="CALLS|MONEY",
        help="end after 500 calls, or before 2.50 is spent, in all runs into DIR together",
    )
    for name in ("prompt", "new"):
        group.add_argument(
            f"--{name}-price", type=price, metavar="PRICE", help=f"price of a million {name} tokens"
        )


def run(options: argparse.Namespace) -> None:
    from polyvec.recipe import load_recipe
    from polyvec.synthesize.run import build_steps
    from polyvec.synthesize.sections import STEPS, StepSettings

    recipe = load_recipe(options.recipe, options.overrides)
    settings: tuple[StepSettings, ...] = recipe.at(STEPS, options.scale)
    steps = build_steps(settings, str(recipe.path))
    steps += _held_out(options)
    texts = _texts(options, steps)
    if options.output is None and not options.dry_run:
        raise InputError("--output DIR: say where the rows go, or take --dry-run")
    models = models_of(
        options,
        options.output or Path(),
        lambda name: embedder_of(name, options, recipe),
        "polyvec/nano-lm" if options.scale == "nano" else None,
    )
    if options.dry_run:
        _show(options, models, steps, texts)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    made = _made(options, recipe, models, steps, texts)
    _report(options, recipe, models, made)
    if made.unfinished:
        raise GenerationError(
            f"{options.output}: {made.unfinished}; {len(made.rows):,} rows are written, "
            f"{made.num_trainable:,} of them to train on. The same command with a higher --budget "
            "goes on there"
        )
    print(options.output / "train.jsonl")


def _held_out(options: argparse.Namespace) -> "list[Step]":
    from polyvec.synthesize.run import parts

    if not options.against:
        return []
    settings = {"against": list(options.against)}
    return [parts().build("held_out", settings, where="--against")]


def _texts(options: argparse.Namespace, steps: "list[Step]") -> "list[Record]":
    from polyvec.data.texts import read_texts
    from polyvec.synthesize.run import records
    from polyvec.synthesize.steps.sources import Texts

    if options.texts is None:
        if isinstance(steps[0], Texts):
            raise InputError(f"--texts FILE: the first step of {options.recipe} reads texts")
        return []
    try:
        return records(read_texts(options.texts, column=options.column))
    except DataError as error:
        told = str(error)
        raise DataError(
            told if str(options.texts) in told else f"{options.texts}: {told}"
        ) from None


def models_of(
    options: argparse.Namespace,
    folder: Path,
    embedder: "Callable[[str | None], TextEncoder]",
    default: str | None = None,
) -> "Models":
    """The models of the options, whose answers are kept in the folder."""
    from polyvec.llm.loading import DEFAULT_LANGUAGE_MODEL
    from polyvec.synthesize.models import Models
    from polyvec.synthesize.spending import Budget

    name = options.model or default or DEFAULT_LANGUAGE_MODEL
    is_server = name.startswith(("http://", "https://"))
    how = {"concurrency" if is_server else "batch_size": options.batch_size}
    how |= {"device": options.device, "trust_remote_code": options.trust_remote_code}
    for option in ("device", "trust_remote_code") if is_server else ():
        if how.pop(option):
            raise InputError(f"--{option.replace('_', '-')}: not for a server, which decides it")
    budget = Budget.parse(options.budget) if options.budget else None
    prices = (options.prompt_price, options.new_price)
    if budget is not None and budget.money is not None and prices == (None, None):
        raise InputError("--budget: money needs --prompt-price and --new-price; or give calls")
    given = {key: value for key, value in how.items() if value}
    return Models(folder, name, embedder, budget, given, *prices)


def embedder_of(
    name: str | None, options: argparse.Namespace, recipe: "Recipe | None" = None
) -> "TextEncoder":
    """The embedder of a name, of --embedder, of the recipe, or the default."""
    from polyvec.embed.embedder import Embedder

    chosen = name or options.embedder
    if chosen is None and recipe is not None and "embedder" in recipe.present:
        built: TextEncoder = recipe.build(options.scale)
        return built
    more = {"device": options.device} if options.device else {}
    return Embedder.from_pretrained(*([chosen] if chosen else []), **more)


def _show(
    options: argparse.Namespace, models: "Models", steps: "list[Step]", texts: "list[Record]"
) -> None:
    from polyvec.llm.answers import Usage
    from polyvec.synthesize.run import dry_run

    found = dry_run(steps, models.uncached_tools(texts), num_shown=SHOWN_PROMPTS)
    for prompt in found.shown:
        print(json.dumps({"prompt": prompt}, ensure_ascii=False))
    header = ("step", "rows", "calls", "prompt tokens", "new tokens")
    common.show_table(header, _estimates(found))
    prompt, new = (sum(getattr(e, n) for e in found.steps) for n in ("prompt_tokens", "new_tokens"))
    prices = options.prompt_price, options.new_price
    cost = Usage(0, 0, prompt, new, 0.0, {}, *prices).cost
    line = f"dry run: at most {sum(e.num_calls for e in found.steps):,} calls"
    about = "about " if any(e.is_guess for e in found.steps) else ""
    line += f", {about}{prompt:,} prompt tokens, {new:,} new tokens"
    line += "" if cost is None else f", cost {about}{cost:.6g}"
    if found.skipped:
        line += f"; thought to keep every row: {', '.join(found.skipped)}"
    print(line, file=sys.stderr)


def _estimates(found: "DryRun") -> list[tuple[str, ...]]:
    return [
        (
            f"{each.number:02d}-{each.kind}",
            f"{each.num_rows:,}",
            f"{each.num_calls:,}",
            f"{'about ' if each.is_guess else ''}{each.prompt_tokens:,}",
            f"{each.new_tokens:,}",
        )
        for each in found.steps
    ]


def _made(
    options: argparse.Namespace,
    recipe: "Recipe",
    models: "Models",
    steps: "list[Step]",
    texts: "list[Record]",
) -> "Made":
    from polyvec.llm.ledger import ledger_line
    from polyvec.synthesize.models import LEDGER, spent_before
    from polyvec.synthesize.run import run_steps

    path = options.output / LEDGER
    spent_before(path, models.spent)
    # A key in a URL is nobody's business.
    with ledger_line(path, models.spent, model=models.shown_name, identity=recipe.key) as update:
        models.on_answer = update
        return run_steps(
            steps,
            models.tools(texts, None),
            options.output,
            usage=lambda: models.usage,
            say=lambda report: print(
                f"{report.name}: {report.num_in:,} rows in, {report.num_out:,} out",
                file=sys.stderr,
            ),
        )


def _report(options: argparse.Namespace, recipe: "Recipe", models: "Models", made: "Made") -> None:
    from polyvec.synthesize.page import DIVERSITY, PAGE, diversities, diversity_row, write_page

    facts = {
        "recipe": f"{recipe.key} at scale {options.scale}",
        "language model": models.shown_name,
        "texts": str(options.texts or "none"),
        "rows to train on": f"{made.num_trainable:,}",
        "calls, in all runs": f"{models.spent.prompts:,}",
    }
    if models.spent.cost is not None:
        facts["cost, in all runs"] = f"{models.spent.cost:.6g}"
    facts["compared with"] = ", ".join(options.against) or (
        "no evaluation data: rows may hold their texts; give --against"
    )
    write_page(options.output / PAGE, f"Training data by {recipe.system.name}", made, facts)
    rows = [
        (
            each.name,
            *(f"{n:,}" for n in (each.num_in, each.num_out, each.num_rejected, each.asked)),
            "; ".join(f"{count} {reason}" for reason, count in each.reasons.items()),
        )
        for each in made.reports
    ]
    common.show_table(("step", "in", "out", "rejected", "asked", "why"), rows)
    common.show_table(DIVERSITY, [diversity_row(each) for each in diversities(made.rows)])
    for each in made.reports:
        for warning in _warnings(each, made):
            print(f"polyvec: warning: {each.name}: {warning}", file=sys.stderr)


def _warnings(report: "StepReport", made: "Made") -> "Iterator[str]":
    from polyvec.synthesize.folder import NO_ANSWER

    if "warning" in report.notes:
        yield report.notes["warning"]
    failed = [
        each.reason
        for name, each in made.rejected
        if name == report.name and each.reason.startswith(NO_ANSWER)
    ]
    if failed:
        why = failed[0].removeprefix(NO_ANSWER).lstrip(": ")[:200]
        yield (
            f"{len(failed)} of {report.num_in} rows have no answer, the first because: {why}; the "
            "same command asks them again"
        )
