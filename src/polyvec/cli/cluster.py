r"""Group texts, name the groups, and draw a map of them.

Input: FILE (.txt, .jsonl, .csv ... or a folder) or lines of standard input. Output: a table of the
groups. With --output DIR also texts.jsonl (the group of each text), groups.jsonl, calls.jsonl (all
that a language model was asked, and what each answer changed), report.json and map.html. --llm
names groups, and with --feedback improves them: "label", "triplet share=0.2", "reassign
num_queries=100" ...; repeatable, in order (docs/clustering.md). A recipe with a section
[clustering] (--recipe) sets all of this. Answers are kept, so that none is paid for twice.

example: printf '%s\n' 'my card is lost' 'I lost my card' 'what is the rate' 'tell me the rate' | \
  polyvec cluster --k 2 --output /tmp/my-groups
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common
from polyvec.cli.generate_options import price
from polyvec.errors import DataError, InputError, known

if TYPE_CHECKING:
    import numpy as np

    from polyvec.cluster.clusterer import Clusters, TextClusterer
    from polyvec.cluster.sections import ClusteringSettings
    from polyvec.llm.language_model import LanguageModel
    from polyvec.synthesize.models import Models

TEXTS, GROUPS, CALLS = "texts.jsonl", "groups.jsonl", "calls.jsonl"
REPORT, MAP, LEDGER = "report.json", "map.html", "ledger.jsonl"
NUM_CENTRAL = 3  # texts of a group that groups.jsonl shows
SECONDS_A_DAY = 86_400


def arguments(parser: argparse.ArgumentParser) -> None:
    common.input_options(parser)
    parser.add_argument(
        "--label-column", metavar="NAME", help="compare the groups with the labels of this column"
    )
    parser.add_argument(
        "--date-column", metavar="NAME", help="read when a text was written (ISO 8601) from here"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=common.path, help="write groups, calls and map here"
    )
    grouping = parser.add_argument_group("grouping")
    grouping.add_argument("--k", type=_number_or_auto, help="make so many groups; default: auto")
    grouping.add_argument(
        "--choose-by",
        choices=("silhouette", "stability", "granularity"),
        help="choose k by silhouette (default), stability, or pairs that the language model judges",
    )
    grouping.add_argument(
        "--method",
        metavar="'KIND KEY=VALUE ...'",
        help="group by kmeans (default), agglomerative, hdbscan, spectral or peaks (dated texts)",
    )
    grouping.add_argument("--seed", type=common.seed, default=0, help="default: 0")
    asking = parser.add_argument_group("language model")
    asking.add_argument(
        "--llm",
        metavar="NAME",
        help="ask this folder, hub id, FILE.gguf or server (http://host/v1#model)",
    )
    asking.add_argument(
        "--feedback",
        action="append",
        metavar="'KIND KEY=VALUE ...'",
        help="ask for label, keyphrase, triplet, pair, reassign or merge; repeatable, in order",
    )
    asking.add_argument("--noun", help='what a text is: "customer utterance"; default: text')
    asking.add_argument("--facet", help='what groups share: "intent"; default: topic')
    asking.add_argument(
        "--answers",
        choices=("text", "likelihood"),
        help="read what the model writes (default), or take the choice that it finds likelier",
    )
    asking.add_argument(
        "--max-characters",
        type=common.positive,
        metavar="N",
        help="show this many characters of a text in prompts; default: 1500",
    )
    asking.add_argument(
        "--no-names", action="store_true", help="name groups by their keywords alone"
    )
    asking.add_argument(
        "--budget", metavar="CALLS|MONEY", help="end after 500 calls, or before 2.50 is spent"
    )
    for name in ("prompt", "new"):
        asking.add_argument(
            f"--{name}-price", type=price, metavar="PRICE", help=f"price of a million {name} tokens"
        )
    common.model_option(parser)


def run(options: argparse.Namespace) -> None:
    from polyvec.storage.files import held

    if options.output is None:
        _run(options)
        return
    _check_output(options)
    options.output.mkdir(parents=True, exist_ok=True)
    with held(options.output, "writing"):
        _run(options)


def _check_output(options: argparse.Namespace) -> None:
    """InputError if what is read would be written over."""
    if options.file in (None, "-"):
        return
    read, folder = Path(options.file).resolve(), options.output.resolve()
    written = [folder, *(folder / name for name in (TEXTS, GROUPS, CALLS, REPORT, MAP, LEDGER))]
    if read in written:
        raise InputError(
            f"--output {options.output}: {options.file} would be written over; give another folder"
        )


def _run(options: argparse.Namespace) -> None:
    from polyvec.cluster.measuring import agreement, inner

    ids, texts, labels, days = _read(options)
    settings = _settings(options)
    models = _models(options)
    with _ledger(options, models):
        found = _clusterer(options, settings, models).fit(texts, days=days)
    measures = inner(found.grouping)
    if labels is not None:
        measures = {**agreement(found.labels, labels), **measures}
    if options.output is not None:
        _write(options, ids, found, measures, models)
    _show(found, measures, models)


def _read(
    options: argparse.Namespace,
) -> "tuple[list[str], list[str], list[Any] | None, np.ndarray | None]":
    """Ids, texts, and labels and days where columns are named."""
    records = list(common.read_input(options))
    columns = {name: getattr(options, f"{name}_column") for name in ("label", "date")}
    given = {name: column for name, column in columns.items() if column}
    values: dict[str, list[Any]] = {}
    if given:
        from polyvec.data.texts import read_rows

        if options.file in (None, "-") or Path(options.file).is_dir():
            raise InputError(f"--{next(iter(given))}-column needs a FILE with columns")
        rows = list(read_rows(options.file))
        for name, column in given.items():
            values[name] = [_column(where, row, column, name) for where, row in rows]
    days = None
    if "date" in values:
        import numpy as np

        days = np.array(values["date"])
    return (
        [each.id for each in records],
        [each.text for each in records],
        values.get("label"),
        days,
    )


def _column(where: str, row: dict[str, Any], column: str, name: str) -> Any:
    value = row.get(column)
    if column not in row:
        raise DataError(f"{where}: no {name} column {column!r}.{known(column, row)}")
    if value is None or value == "":
        raise DataError(f"{where}: {column!r} is empty; each text needs a {name}")
    if name == "label":
        return str(value)
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        # Without a zone it is UTC: the same days on every machine.
        zoned = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        return zoned.timestamp() / SECONDS_A_DAY
    except (ValueError, OverflowError, OSError):
        raise DataError(
            f"{where}: {column!r} is {str(value)[:40]!r}, not a date such as 2026-03-01"
        ) from None


def _settings(options: argparse.Namespace) -> "ClusteringSettings":
    """The recipe's, with the options that replace its settings."""
    from polyvec.cluster.clusterer import algorithm
    from polyvec.cluster.sections import CLUSTERING, ClusteringSettings
    from polyvec.recipe import load_recipe

    settings: ClusteringSettings | None = None
    if common.is_recipe(options):
        recipe = load_recipe(options.recipe or options.model)
        settings = recipe.at(CLUSTERING, options.scale or "full")
    settings = settings or ClusteringSettings()
    changes: dict[str, Any] = {
        name: value
        for name in ("k", "choose_by", "noun", "facet", "answers", "max_characters")
        if (value := getattr(options, name)) is not None
    }
    if options.method is not None:
        changes["method"] = common.kind_table("--method", options.method)
    if options.feedback is not None:
        changes["feedback"] = tuple(
            common.kind_table("--feedback", each) for each in options.feedback
        )
    if options.no_names:
        changes["name"] = False
    found = dataclasses.replace(settings, **changes)
    needs_k = algorithm(found.method).needs_k
    if found.k is None and needs_k:
        found = dataclasses.replace(found, k="auto")
    elif options.method is not None and options.k is None and not needs_k:
        found = dataclasses.replace(found, k=None)  # the recipe's was for its own method
    if found.k != "auto" and options.choose_by is None:
        found = dataclasses.replace(found, choose_by="silhouette")  # nothing is to be chosen
    asks_k = found.k == "auto" and found.choose_by == "granularity"
    if options.llm is not None and not (found.feedback or found.name or asks_k):
        raise InputError("--llm: nothing to ask; give --feedback, or leave --no-names out")
    return found


def _models(options: argparse.Namespace) -> "Models | None":
    """The language model of --llm, whose answers are kept in DIR, else in the user's cache."""
    from polyvec.llm.cache import default_folder
    from polyvec.synthesize.models import Models, spent_before
    from polyvec.synthesize.spending import Budget

    if options.llm is None:
        for name in ("budget", "prompt_price", "new_price", "answers"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')}: nothing is asked without --llm")
        return None
    server = options.llm.startswith(("http://", "https://"))
    more = {} if server or not options.device else {"device": options.device}
    if not server and options.trust_remote_code:
        more["trust_remote_code"] = True
    budget = Budget.parse(options.budget) if options.budget else None
    prices = (options.prompt_price, options.new_price)
    if budget is not None and budget.money is not None and prices == (None, None):
        raise InputError("--budget: money needs --prompt-price and --new-price; or give calls")
    folder = options.output or default_folder().parent

    def no_embedder(name: str | None) -> Any:
        raise AssertionError

    models = Models(folder, options.llm, no_embedder, budget, more, *prices)
    if options.output is not None:
        spent_before(options.output / LEDGER, models.spent)
    return models


def _clusterer(
    options: argparse.Namespace, settings: "ClusteringSettings", models: "Models | None"
) -> "TextClusterer":
    from polyvec.cluster.clusterer import TextClusterer

    own = {each.name: getattr(settings, each.name) for each in dataclasses.fields(settings)}
    model: LanguageModel | None = models.ask(None) if models else None
    # Settings are checked before the embedder is loaded.
    TextClusterer(**own, seed=options.seed, language_model=model)
    embedder = common.load_model(options)
    return TextClusterer(
        **own,
        seed=options.seed,
        embedder=embedder,
        language_model=model,
        show_progress_bar=None,
    )


def _write(
    options: argparse.Namespace,
    ids: list[str],
    found: "Clusters",
    measures: dict[str, float],
    models: "Models | None",
) -> None:
    from polyvec.cluster.page import write_page
    from polyvec.cluster.uncertainty import prototypes
    from polyvec.storage.files import atomic_file
    from polyvec.synthesize.folder import write_rows

    folder: Path = options.output
    labels = found.labels.tolist()
    write_rows(
        folder / TEXTS,
        (
            {"id": i, "text": text, "group": g, "name": found.names[g] if g >= 0 else None}
            for i, text, g in zip(ids, found.texts, labels, strict=True)
        ),
    )
    central = prototypes(found.vectors, found.labels, NUM_CENTRAL)
    write_rows(
        folder / GROUPS,
        (
            {
                "group": group,
                "name": name,
                "size": found.sizes[group],
                "keywords": found.keywords[group],
                "central": [found.texts[each] for each in central[group]],
            }
            for group, name in enumerate(found.names)
        ),
    )
    write_rows(folder / CALLS, (each.as_json() for each in found.calls))
    report: dict[str, Any] = {"measures": measures, **_spent(found, models)}
    if found.choice is not None:
        report["k"] = dataclasses.asdict(found.choice)
    with atomic_file(folder / REPORT, "w") as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
        file.write("\n")
    facts = {"texts": f"{len(found.texts):,}", "groups": f"{len(found.names):,}"}
    facts |= {name: f"{value:.3f}" for name, value in measures.items()}
    facts |= {"calls": f"{len(found.calls):,}"} if found.calls else {}
    name = Path(options.file).name if options.file not in (None, "-") else "texts"
    write_page(folder / MAP, f"Groups of {name}", found, facts, seed=options.seed)


@contextlib.contextmanager
def _ledger(options: argparse.Namespace, models: "Models | None") -> Iterator[None]:
    """Each answer is in DIR's ledger at once, so that a run that is ended keeps to the budget."""
    from polyvec.llm.ledger import ledger_line

    if models is None or options.output is None:
        yield
        return
    path = options.output / LEDGER
    with ledger_line(path, models.spent, model=models.shown_name, identity="cluster") as update:
        models.on_answer = update
        yield


def _spent(found: "Clusters", models: "Models | None") -> dict[str, Any]:
    if models is None:
        return {}
    told: dict[str, Any] = {
        "language_model": models.shown_name,
        "questions": len(found.calls),
        "paid_calls": models.spent.prompts,
        "without_a_usable_answer": dict(found.problems),
    }
    if models.spent.cost is not None:
        told["cost"] = models.spent.cost
    return told


def _show(found: "Clusters", measures: dict[str, float], models: "Models | None") -> None:
    rows = [
        (str(group), f"{found.sizes[group]:,}", name, ", ".join(found.keywords[group]))
        for group, name in enumerate(found.names)
    ]
    outside = int((found.labels < 0).sum())
    rows += [("-1", f"{outside:,}", "in no group", "")] if outside else []
    common.show_table(("group", "texts", "name", "keywords"), rows)
    told = [f"{name} {value:.3f}" for name, value in measures.items()]
    if found.choice is not None:
        says = [f"{name} {k}" for name, k in found.choice.says.items()]
        told.append(f"k {found.choice.k} by {found.choice.by} ({', '.join(says)})")
    if models is not None:
        told.append(f"{len(found.calls):,} calls, {models.spent.prompts:,} paid for so far")
        if models.spent.cost is not None:
            told.append(f"cost {models.spent.cost:.6g}")
    print("; ".join(told), file=sys.stderr)
    for problem, count in found.problems.items():
        print(f"polyvec: warning: {count:,} answers without effect: {problem}", file=sys.stderr)


def _number_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number from 2 nor auto")
    return int(text)
