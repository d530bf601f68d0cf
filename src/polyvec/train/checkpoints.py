"""Checkpoints on disk: weights by name, which one is the newest, whether it is whole.

Also the mark of the data that a run began with: batches are a function of the data, so a run
that went on with other rows would be neither the old run nor a new one.
"""

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from polyvec.data.training.dataset import TrainingData
from polyvec.errors import DataError, ModelError, TrainingError
from polyvec.storage.files import atomic_file

WEIGHTS, STATE, DATA = "model.safetensors", "trainer_state.json", "data.json"


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Tensors by name; those that share memory (tied weights) once."""
    found, seen = {}, set()
    for name, each in state.items():
        key = (each.data_ptr(), each.shape, each.stride()) if each.numel() else name
        if key not in seen:
            seen.add(key)
            found[name] = each.detach().contiguous().cpu()
    save_file(found, path, metadata={"format": "pt"})


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Weights of a checkpoint; ModelError if they belong to another model."""
    path = checkpoint / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{checkpoint}: not a checkpoint, it has no {WEIGHTS}")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: damaged ({error})") from None
    own = model.state_dict()
    wrong = [
        name for name, each in state.items() if name not in own or each.shape != own[name].shape
    ]
    if wrong:
        raise ModelError(
            f"{path}: {wrong[0]} is not a weight of this model, or has another shape; was it "
            "written by another recipe?"
        )
    if any(hasattr(each, "full_tensor") for each in own.values()):
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(model, dict(state), options=options)
        return
    model.load_state_dict(state, strict=False)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage."""
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and (path / STATE).is_file()
    ]
    return max(found, key=checkpoint_step, default=None)


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def check_whole(checkpoint: Path, files: Iterable[str]) -> None:
    """Raises TrainingError unless weights, state and these files are there and can be opened.

    A checkpoint is written whole; what is not has been damaged since. transformers would go on
    without a file that is missing, to other weights than those of a run that was not stopped.
    """
    if not checkpoint.is_dir():
        raise TrainingError(f"{checkpoint}: no such checkpoint")
    for name in (STATE, WEIGHTS, *files):
        if not _opens(checkpoint / name):
            raise TrainingError(
                f"{checkpoint / name}: missing or damaged. Remove {checkpoint} to go on from the "
                "checkpoint before it, or, without one, from the start"
            )


def _opens(path: Path) -> bool:
    """Whether the file has a beginning and an end of its kind."""
    if not path.is_file():
        return False
    if path.suffix == ".json":
        return isinstance(json_object(path, "").get("global_step"), int)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    return zipfile.is_zipfile(path)


def json_object(path: Path, remedy: str) -> dict[str, object]:
    """The object of a JSON file; {} without a remedy, else DataError, if it has none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        if remedy:
            raise DataError(f"{path}: damaged, not a JSON object. {remedy}")
        return {}
    return found


def mark_data(folder: Path, data: TrainingData) -> None:
    """Write down which data a run in the folder begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / DATA, "w") as stream:
        json.dump(_mark(data), stream, indent=1)


def check_data(folder: Path, data: TrainingData) -> None:
    """Raises DataError if the data are not those that the run in the folder began with."""
    if not (folder / DATA).is_file():
        return
    before, now = json_object(folder / DATA, "Start a new run in another folder"), _mark(data)
    if before == now:
        return
    names = {*before, *now}
    name = min(each for each in names if before.get(each) != now.get(each))
    raise DataError(
        f"{folder}: the data set {name!r} is not as it was when the run began ("
        f"{_rows(before.get(name))} then, {_rows(now.get(name))} now). Bring it back, or start a "
        "new run in another folder"
    )


def _mark(data: TrainingData) -> dict[str, object]:
    """Of each data set the number of its rows, and a hash of all their fields."""
    return {
        each.name: {"rows": len(each.rows), "hash": digest}
        for each, digest in zip(data.sets, data.digests(), strict=True)
    }


def _rows(mark: object) -> str:
    if not isinstance(mark, dict):
        return "none"
    return f"{mark.get('rows')} rows with hash {str(mark.get('hash'))[:8]}"
