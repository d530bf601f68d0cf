"""Tasks by name or from folders, a model that mteb finds by name, and an evaluation."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mteb
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from mteb.models.model_implementations import MODEL_REGISTRY
from mteb.results import ModelResult

from polyvec.data.tasks.folder import read_folder
from polyvec.data.tasks.sets import TaskSet
from polyvec.errors import DataError, InputError, SettingsError
from polyvec.evaluate.mteb_bridge.encoder import Instructions, MtebEncoder
from polyvec.evaluate.mteb_bridge.local import local_task
from polyvec.interfaces import TextEncoder

UNREACHED = (ConnectionError, DatasetNotFoundError, HfHubHTTPError, LocalEntryNotFoundError)


def mteb_tasks(
    tasks: Any, *, languages: Sequence[str] | None = None, split: str = "test"
) -> list[mteb.AbsTask]:
    """Tasks of names, folders, data sets of ours, or mteb's own objects; one, or several.

    A name is that of an official task; a folder (with a "/" in it, if it is named like a task) is
    read at `split`, and a data set becomes a local task. `languages` selects subsets of official
    tasks. Raises SettingsError for an unknown name, and for a task without a subset in these
    languages, which mteb would skip silently.
    """
    single = isinstance(tasks, (str, Path, mteb.AbsTask, TaskSet))
    return [_task(each, languages, split) for each in ([tasks] if single else tasks)]


def run_mteb(
    embedder: TextEncoder,
    tasks: Any,
    *,
    name: str | Path | None = None,
    instructions: Instructions = "slot",
    languages: Sequence[str] | None = None,
    split: str = "test",
    cache: str | Path | None = None,
    **options: Any,
) -> ModelResult:
    """`mteb.evaluate` of a model; `cache` is a folder for mteb's results, None for no cache.

    Tasks are those of `mteb_tasks`, `options` those of `mteb.evaluate`. Raises DataError if the
    data of an official task, which is on the hub, cannot be downloaded.

    >>> run_mteb(embedder, ["STS12", "data/my-pairs"], cache="results")  # doctest: +SKIP
    """
    encoder = MtebEncoder(embedder, name, instructions=instructions)
    found = mteb_tasks(tasks, languages=languages, split=split)
    results = mteb.ResultCache(cache) if cache is not None else None
    with reachable():
        return mteb.evaluate(encoder, found, cache=results, **options)


def register(
    embedder: TextEncoder, name: str | Path | None = None, *, instructions: Instructions = "slot"
) -> str:
    """Add a model to mteb's registry, so that `mteb.get_model` and its command line find it.

    Returns its name there. Raises SettingsError for the name of one of mteb's own models.
    """
    encoder = MtebEncoder(embedder, name, instructions=instructions)

    def load(
        model_name: str, revision: str | None = None, device: Any = None, **unknown: Any
    ) -> MtebEncoder:
        if set(unknown) - {"instructions"}:
            raise InputError(f"{model_name}: {', '.join(unknown)}: set it on the model")
        # mteb's command line always passes a device; the model stays where its owner put it.
        return encoder

    registered = MODEL_REGISTRY.get(encoder.name)
    if registered is not None and getattr(registered.loader, "__module__", "") != __name__:
        raise SettingsError(
            f"{encoder.name!r} is one of mteb's own models; give another name, such as "
            f"'polyvec/{encoder.name.split('/')[-1]}'"
        )
    MODEL_REGISTRY[encoder.name] = encoder.mteb_model_meta.model_copy(update={"loader": load})
    return encoder.name


def is_folder(task: object) -> bool:
    """Whether a task is a folder with data; a bare name that mteb knows is that of its task."""
    if not isinstance(task, str | Path) or not Path(task).is_dir():
        return False
    return isinstance(task, Path) or "/" in task or _unknown(task) is not None


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Turns errors of the hub into a DataError of one line."""
    try:
        yield
    except UNREACHED as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        raise DataError(
            f"mteb: {reason}. Official tasks download their data from the Hugging Face hub: run "
            "with network access and without HF_HUB_OFFLINE, or give the folder of a local copy"
        ) from None


def _task(task: Any, languages: Sequence[str] | None, split: str) -> mteb.AbsTask:
    if isinstance(task, mteb.AbsTask):
        return task
    if isinstance(task, TaskSet):
        return local_task(task)
    if is_folder(task):
        return local_task(read_folder(task, split))
    if isinstance(task, Path):
        raise DataError(f"{task}: no such folder")
    if not isinstance(task, str):
        raise InputError(f"{type(task).__name__} is not a task; expected name, folder or data set")
    reason = _unknown(task)
    if reason is not None:
        raise SettingsError(f"mteb task {reason}")
    try:
        return mteb.get_task(task, languages=languages)
    except ValueError as error:
        raise SettingsError(f"mteb: {error}") from None


def _unknown(name: str) -> str | None:
    """None for the name of an official task, else mteb's message."""
    try:
        mteb.get_task(name)
    except KeyError as error:
        return str(error.args[0]).removeprefix("KeyError: ")
    return None


def folders_and_names(tasks: Iterable[str] | None) -> tuple[list[str], list[str]]:
    """The folders and the names among tasks, each in order."""
    given = list(tasks or ())
    return [t for t in given if is_folder(t)], [t for t in given if not is_folder(t)]
