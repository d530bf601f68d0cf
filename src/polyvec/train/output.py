"""The folder of a run: whether a run can begin there or go on, and with which settings."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from polyvec.errors import DataError, SettingsError
from polyvec.storage.files import LOCK, atomic_file
from polyvec.train.checkpoints import DATA, json_object, last_checkpoint

RECIPE, STAGES, FINAL, DONE = "recipe.json", "stages", "final", "done.json"
MINED_FROM = ("data", "mining", "seed")  # settings that mined negatives depend on


def check_output(output: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Raises DataError or SettingsError unless a run can begin, or go on, in the folder.

    A run goes on with the settings that it began with, but for those of stages that have not
    trained yet: a mistake in the third stage does not cost the first two.
    """
    if not resume:
        if output.exists() and not output.is_dir():
            raise DataError(f"{output}: a file, not a folder; give another folder")
        if output.exists() and not _unused(output):
            raise DataError(f"{output}: not empty; pass --resume to go on, or give another folder")
        return
    file = output / RECIPE
    if not file.is_file():
        raise DataError(f"{output}: no run to resume, it has no {RECIPE}")
    begun = num_begun(output)
    before = _stages_cut(json_object(file, "Start a new run in another folder"), begun)
    other = difference(before, _stages_cut(_as_json(settings), begun))
    if other:
        raise SettingsError(
            f"{file}: the run has other settings than this recipe: {other}. Change it back, or "
            "start a new run in another folder"
        )


def write_recipe(output: Path, command: str, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Write recipe.json; of a resumed run only if stages that have not trained yet were changed.

    What such a stage had mined from other data or by another model is removed.
    """
    if resume:
        before, now = json_object(output / RECIPE, ""), _as_json(settings)
        if not difference(_stages_cut(before), _stages_cut(now)):
            return
        _remove_outdated(output, _stages(before), _stages(now))
    with atomic_file(output / RECIPE, "w") as stream:
        json.dump({"command": command, **settings}, stream, indent=1)


def num_begun(output: Path) -> int:
    """Number of the last stage, counted from 1, that has trained weights on disk; 0: none has."""
    found = [0]
    for folder in (output / STAGES).glob("*-*"):
        number = folder.name.partition("-")[0]
        trained = last_checkpoint(folder) is not None or (folder / FINAL / DONE).is_file()
        if number.isdecimal() and trained:
            found.append(int(number))
    return max(found)


def _remove_outdated(output: Path, before: list[Any], now: list[Any]) -> None:
    """Folders of stages that have not trained, from the first on that would mine otherwise."""
    outdated = False
    for place in range(num_begun(output), len(before)):
        was, is_now = before[place], now[place] if place < len(now) else {}
        if outdated or any(was.get(name) != is_now.get(name) for name in MINED_FROM):
            for folder in (output / STAGES).glob(f"{place + 1}-*"):
                shutil.rmtree(folder)
        outdated = outdated or was != is_now


def _stages(settings: Mapping[str, Any]) -> list[Any]:
    recipe = settings.get("recipe")
    found = recipe.get("stage") if isinstance(recipe, Mapping) else None
    return found if isinstance(found, list) else []


def _stages_cut(settings: Mapping[str, Any], count: int | None = None) -> dict[str, Any]:
    """The settings with the first `count` stages alone, and without the command."""
    found = {**settings, "command": None}
    if _stages(settings):
        found["recipe"] = {**found["recipe"], "stage": _stages(settings)[:count]}
    return found


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def difference(before: Any, now: Any, name: str = "") -> str:
    """The first setting that differs, by the name it has on the command line; "" if none does."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys: Iterable[Any] = dict.fromkeys([*before, *now])
        pairs = ((key, before.get(key), now.get(key)) for key in keys)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = ((place, *each) for place, each in enumerate(zip(before, now, strict=True)))
    else:
        was, is_now = ("not set" if each is None else json.dumps(each) for each in (before, now))
        return "" if before == now else f"{name.removeprefix('recipe.')} is {is_now}, was {was}"
    found = (difference(was, is_now, f"{name}.{key}".lstrip(".")) for key, was, is_now in pairs)
    return next(filter(None, found), "")


def _unused(output: Path) -> bool:
    """Whether the folder is empty, or of a run that stopped before it had trained anything."""
    names = {path.name for path in output.rglob("*") if not path.is_dir()}
    if names <= {LOCK}:
        return True
    ours = (output / RECIPE).is_file() and names <= {RECIPE, DATA, LOCK}
    return ours and {"command", "scale", "recipe"} <= json_object(output / RECIPE, "").keys()
