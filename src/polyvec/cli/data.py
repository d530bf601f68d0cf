r"""Count what a folder of data holds, find test texts in its training texts; import public data.

`import` writes a public data set (STS-B's tab-separated files, BEIR's zip files, MTEB's and other
data sets of the Hugging Face hub) as a folder that `evaluate`, `stats` and `train` read.

`stats` reads every .jsonl, .csv, .tsv, .parquet and .txt (each may be gzipped) in FOLDER and its
subfolders, or one file. Tables: rows of each file; lengths, duplicates and languages of each
text field; labels and numbers; judgements of retrieval sets; what dev and test share with
train (by equal texts and by n-grams of words; with --neighbours also by vectors), and the
worst pairs. With --against, FOLDER is searched for the texts of another folder or file.

example: mkdir -p /tmp/mail; printf '%s\n' > /tmp/mail/train.jsonl \
  '{"text": "the parcel came late", "label": "complaint"}' \
  '{"text": "many thanks for your help", "label": "praise"}'; \
  printf '%s\n' '{"text": "The parcel came late!", "label": "complaint"}' > /tmp/mail/test.jsonl; \
  polyvec data stats /tmp/mail
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.cli import common, data_import
from polyvec.errors import InputError

if TYPE_CHECKING:
    from polyvec.data.overlap.splits import Embed, SplitOverlap
    from polyvec.data.stats.statistics import FolderStats, Spread

SHOWN_LABELS = 5  # most frequent ones, and as many of the least frequent
SHOWN_LANGUAGES = 5
SHOWN_CHARACTERS = 120  # per text in the table of pairs
FROM_SHARE = 0.005  # below half a per cent, guesses are mostly errors
MODEL_OPTIONS = (
    *("model", "device", "attention", "scale", "verbose", "batch_size"),
    *("dtype", "max_seq_length", "pooling"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    stats = actions.add_parser("stats", help="count rows, lengths, languages, duplicates, overlap")
    stats.add_argument("folder", help="read this folder of data, or one file")
    stats.add_argument(
        "--against", metavar="FOLDER", help="search FOLDER for the texts of this test set"
    )
    stats.add_argument(
        "--ngram", type=common.positive, metavar="N", help="compare n-grams of N words; default: 13"
    )
    stats.add_argument(
        "--pairs",
        type=common.positive,
        default=5,
        help="print this many of the worst pairs per field; default: 5",
    )
    stats.add_argument(
        "--guess", help="guess the language (default, if py3langid is installed) or the script"
    )
    stats.add_argument(
        "--tokenizer", metavar="MODEL", help="count tokens, and texts longer than MODEL reads"
    )
    stats.add_argument(
        "-o", "--output", metavar="FILE.json", help="write all figures and texts to this file"
    )
    stats.add_argument(
        "--neighbours", action="store_true", help="embed all texts and compare their vectors"
    )
    stats.add_argument(
        "--batch-size", type=common.positive, help="limit the texts per batch, to save memory"
    )
    common.model_option(stats)
    data_import.arguments(
        actions.add_parser("import", help="write a public data set as a folder to evaluate on")
    )


def run(options: argparse.Namespace) -> None:
    {"stats": _stats, "import": data_import.run}[options.action](options)


def _stats(options: argparse.Namespace) -> None:
    from polyvec.data.overlap.overlap import NGRAM
    from polyvec.data.overlap.splits import split_overlaps
    from polyvec.data.stats.languages import guesser
    from polyvec.data.stats.statistics import folder_stats
    from polyvec.storage.files import check_target

    if options.output is not None:
        check_target(options.output)
    if not options.neighbours and (name := _given(options)):
        raise InputError(f"--{name.replace('_', '-')} has no effect without --neighbours")
    guess = guesser(options.guess)
    count, limit = _counter(options) if options.tokenizer else (None, None)
    with _bar("reading") as progress:
        stats = folder_stats(
            options.folder, guess=guess, count_tokens=count, max_tokens=limit, progress=progress
        )
        against = None
        if options.against is not None:
            against = folder_stats(options.against, guess="script", progress=progress)
    embed = None
    if options.neighbours:
        from polyvec.index.exact import top_k

        embed = _embed(options)
    with _bar("comparing", shown=embed is None) as progress:
        overlaps = split_overlaps(
            stats,
            against,
            n=options.ngram or NGRAM,
            neighbours=(embed, top_k) if embed else None,
            num_pairs=options.pairs,
            progress=progress,
        )
    if options.neighbours and not overlaps:
        raise InputError(
            f"{options.folder}: has no train and test files to compare; name a test set: --against"
        )
    if options.output is not None:
        _write(options.output, stats, overlaps)
    _show(stats, overlaps)


def _given(options: argparse.Namespace) -> str | None:
    return next((name for name in MODEL_OPTIONS if getattr(options, name)), None)


def _counter(options: argparse.Namespace) -> tuple[Callable[[list[str]], list[int]], int | None]:
    """A function for token counts, special tokens included, prompts not; and the model's limit."""
    from polyvec.embed.inputs.spans import Span

    asked = {**vars(options), "model": options.tokenizer, "verbose": False}
    embedder = common.load_model(argparse.Namespace(**asked))
    tokenizer = getattr(embedder, "text_tokenizer", None)
    if tokenizer is None:
        raise InputError(f"--tokenizer {options.tokenizer}: a model behind an API has none here")

    def count(texts: list[str]) -> list[int]:
        return [tokens.full_length for tokens in tokenizer.encode([(Span(t),) for t in texts])]

    return count, embedder.max_seq_length


def _embed(options: argparse.Namespace) -> "Embed":
    """A function for the vectors of --model, which loads at the first call."""
    load = functools.cache(lambda: common.load_model(options))
    return lambda texts: load().encode(texts, batch_size=options.batch_size)


@contextlib.contextmanager
def _bar(what: str, *, shown: bool = True) -> Iterator[Callable[[str, int], None]]:
    """Show the file and the number of rows read so far on stderr, if it is a terminal.

    Hidden while texts are embedded, which shows a progress bar itself.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda name, rows: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what)
        total = 0

        def advance(name: str, rows: int) -> None:
            nonlocal total
            total += rows
            bar.update(task, description=f"{what} {name}: {total:,} rows")

        yield advance


# ---- output -------------------------------------------------------------------------------------


def _write(path: str, stats: "FolderStats", overlaps: "Sequence[SplitOverlap]") -> None:
    from polyvec.storage.files import atomic_file

    found = {**dataclasses.asdict(stats), "overlaps": [dataclasses.asdict(o) for o in overlaps]}
    with atomic_file(Path(path), "w") as file:
        json.dump(found, file, ensure_ascii=False, indent=1)
        file.write("\n")


def _show(stats: "FolderStats", overlaps: "Sequence[SplitOverlap]") -> None:
    """Print all tables that have rows."""
    tables = (
        _files(stats),
        _texts(stats),
        _labels(stats),
        _numbers(stats),
        _retrieval(stats),
        _overlaps(overlaps),
        _pairs(overlaps),
    )
    shown = False
    for header, rows in tables:
        if rows:
            print(end="\n" if shown else "")
            common.show_table(header, rows)
            shown = True
    for line in _remarks(stats, overlaps):
        print(line, file=sys.stderr)


Table = tuple[Sequence[str], list[Sequence[str]]]


def _files(stats: "FolderStats") -> Table:
    rows: list[Sequence[str]] = []
    for file in stats.files:
        texts = ", ".join(text.name for text in file.texts)
        labels = ", ".join(label.name for label in file.labels)
        others = ", ".join((*(number.name for number in file.numbers), *file.others))
        rows.append((file.name, f"{file.num_rows}", texts, labels, others))
    return ("file", "rows", "texts", "labels", "other fields"), rows


def _texts(stats: "FolderStats") -> Table:
    tokens = any(text.tokens for file in stats.files for text in file.texts)
    spread = "min/median/mean/p95/max"
    header = ["file", "field", "texts", "empty", "repeated", "repeated but for case"]
    header += [f"characters {spread}", f"words {spread}"]
    header += [f"tokens {spread}", "too long"] if tokens else []
    rows: list[Sequence[str]] = []
    for file in stats.files:
        for text in file.texts:
            counts = (text.num_texts, text.num_empty, text.num_duplicates, text.num_near_duplicates)
            row = [file.name, text.name, *map(str, counts)]
            row += [_spread(text.characters), _spread(text.words)]
            if tokens:
                row += [_spread(text.tokens), _or_blank(text.num_too_long)]
            rows.append([*row, _languages(text.languages)])
    return [*header, f"{stats.guess}s"], rows


def _languages(shares: Any) -> str:
    shown = [(name, share) for name, share in shares.items() if share >= FROM_SHARE]
    named = [f"{name} {100 * share:.0f}%" for name, share in shown[:SHOWN_LANGUAGES]]
    return ", ".join(named) + (", ..." if len(shown) > SHOWN_LANGUAGES else "")


def _labels(stats: "FolderStats") -> Table:
    rows: list[Sequence[str]] = []
    for file in stats.files:
        for label in file.labels:
            counts = [(_line(name), count) for name, count in label.counts.items()]
            some = len(counts) if label.is_language else SHOWN_LABELS
            most, least = counts[:some], counts[some:][-SHOWN_LABELS:]
            counted = [
                ", ".join(f"{name} {count}" for name, count in each) for each in (most, least)
            ]
            rows.append(
                (file.name, label.name, f"{label.num_values}", f"{label.num_labels}", *counted)
            )
    return ("file", "field", "values", "different", "most frequent", "least frequent"), rows


def _numbers(stats: "FolderStats") -> Table:
    rows: list[Sequence[str]] = [
        (file.name, n.name, f"{n.num_values}", f"{n.min:.6g}", f"{n.mean:.6g}", f"{n.max:.6g}")
        for file in stats.files
        for n in file.numbers
    ]
    return ("file", "field", "values", "min", "mean", "max"), rows


def _retrieval(stats: "FolderStats") -> Table:
    header = ["judged in", "passages in", "queries in", "passages", "queries", "judgements"]
    header += ["judged queries", "not judged", "without positive", "a query min/mean/max"]
    header += ["grades", "missing passages", "missing queries"]
    rows: list[Sequence[str]] = []
    for r in stats.retrieval:
        low, mean, high = r.per_query
        sizes = (r.num_passages, r.num_queries, r.num_judgements)
        judged = (r.num_judged, r.num_unjudged, r.num_without_positive)
        grades = ", ".join(f"{grade}: {count}" for grade, count in r.grades.items())
        row = [r.qrels, r.corpus, r.queries, *map(str, (*sizes, *judged))]
        row += [f"{low}/{mean:.2f}/{high}", grades]
        rows.append([*row, f"{r.num_missing_passages}", f"{r.num_missing_queries}"])
    return header, rows


def _overlaps(overlaps: "Sequence[SplitOverlap]") -> Table:
    header = ["train", "test", "field", "train texts", "texts", "equal", "same words"]
    n = overlaps[0].n if overlaps else 0
    near = next((o.num_near for o in overlaps if o.num_near), None) or {}
    header += [f"any {n}-gram", "%", f"{n}-grams shared %", *(f"cosine from {t}" for t in near)]
    rows: list[Sequence[str]] = []
    for o in overlaps:
        counts = (o.num_train, o.num_texts, o.num_exact, o.num_same)
        share = "" if o.mean_ngram_share is None else f"{100 * o.mean_ngram_share:.2f}"
        any_ngram = "" if o.num_ngram is None else f"{100 * o.num_ngram / o.num_texts:.2f}"
        row = [o.train, o.test, o.field, *map(str, counts), _or_blank(o.num_ngram)]
        row += [any_ngram, share, *(_or_blank((o.num_near or {}).get(t)) for t in near)]
        rows.append(row)
    return header, rows


def _pairs(overlaps: "Sequence[SplitOverlap]") -> Table:
    rows: list[Sequence[str]] = []
    for pair in (pair for o in overlaps for pair in o.worst):
        texts = (_cut(pair.test_text), _cut(pair.train_text))
        places = (pair.test_place, pair.train_place)
        rows.append((pair.how, f"{pair.score:.3f}", *places, *texts))
    return ("found by", "score", "test", "train", "test text", "train text"), rows


def _remarks(stats: "FolderStats", overlaps: "Sequence[SplitOverlap]") -> Iterator[str]:
    if stats.guess == "script":
        yield "reporting scripts only; for languages: pip install 'polyvec[data]'"
    if stats.unread:
        yield f"not read: {', '.join(stats.unread)}"
    for r in stats.retrieval:
        if r.first_missing:
            yield (
                f"polyvec: warning: {r.qrels}: {r.num_missing_passages} judged passages and "
                f"{r.num_missing_queries} queries are not in {r.corpus} and {r.queries} "
                f"(first: {r.first_missing})"
            )
        if r.num_repeated_ids:
            yield f"polyvec: warning: {r.corpus}, {r.queries}: {r.num_repeated_ids} duplicate ids"
    for (train, test), found in _by_parts(overlaps).items():
        texts = [o for o in found if o.num_ngram is not None]
        whole = [o for o in found if o.num_ngram is None]
        num_same, num_ngram = sum(o.num_same for o in texts), sum(o.num_ngram or 0 for o in texts)
        if num_same or num_ngram:
            rows = "".join(f", and {o.num_same} of {o.num_texts} whole rows" for o in whole)
            yield (
                f"polyvec: warning: {test}: {num_same} of {sum(o.num_texts for o in texts)} texts "
                f"are in {train}, {num_ngram} share {found[0].n}-grams with it{rows}"
            )


def _by_parts(overlaps: "Sequence[SplitOverlap]") -> "dict[tuple[str, str], list[SplitOverlap]]":
    found: dict[tuple[str, str], list[SplitOverlap]] = {}
    for o in overlaps:
        found.setdefault((o.train, o.test), []).append(o)
    return found


def _spread(spread: "Spread | None") -> str:
    if spread is None:
        return ""
    low, middle, high, most = (
        f"{x:.0f}" for x in (spread.min, spread.median, spread.p95, spread.max)
    )
    return f"{low}/{middle}/{spread.mean:.1f}/{high}/{most}"


def _or_blank(number: int | None) -> str:
    return "" if number is None else str(number)


def _line(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str) -> str:
    line = _line(text)
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 3]}..."
