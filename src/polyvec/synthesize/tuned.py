"""Language models and embedders that steps make, under names that later steps use: "run:NAME".

They lie in the folder of the run:

models/NAME/        made.json and weights, whole or not there
models/NAME.ckpt    how far a step has come that was interrupted
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.embed.progress import progress
from polyvec.errors import DataError, SettingsError, known
from polyvec.storage.files import atomic_file

if TYPE_CHECKING:
    import torch

    from polyvec.llm.language_model import LanguageModel
    from polyvec.llm.local import LocalLanguageModel
    from polyvec.synthesize.step import Step

MADE = "run:"
DESCRIPTION, SOFT_PROMPT = "made.json", "soft_prompt.safetensors"
CHECKPOINT = ".ckpt"


def check_name(name: str, where: str) -> None:
    """SettingsError for what is no plain name of a folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise SettingsError(f"{where}: name {name!r} is not letters, digits, - and _")


def made_folder(models: Path | None, name: str, where: str) -> Path:
    """Where "run:NAME" lies; SettingsError if no step made it."""
    short = name.removeprefix(MADE)
    check_name(short, where)
    folder = (models or Path()) / short
    if models is None or not (folder / DESCRIPTION).is_file():
        there = sorted(p.parent.name for p in models.glob(f"*/{DESCRIPTION}")) if models else []
        raise SettingsError(f"{where}: no step before made {name!r}.{known(short, there)}")
    return folder


def load_made(folder: Path, own: str, options: Mapping[str, Any]) -> "LanguageModel":
    """A language model that a step made; `options` are those of the run's `own` model."""
    from safetensors.torch import load_file

    from polyvec.llm.local import LocalLanguageModel
    from polyvec.llm.soft_prompt import with_soft_prompt

    described = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    match described["kind"]:
        case "soft_prompt":
            base = described["base"]
            local = LocalLanguageModel.load(base, **(options if base == own else {}))
            return with_soft_prompt(local, load_file(folder / SOFT_PROMPT)["prompt_PD"])
        case "language_model":
            return LocalLanguageModel.load(folder, **options)
    raise SettingsError(f"run:{folder.name} is an {described['kind']}, not a language model")


def local_model(model: "LanguageModel", where: str) -> "LocalLanguageModel":
    """The model of this machine inside a cache and a budget; SettingsError for a server."""
    from polyvec.llm.language_model import WrappedLanguageModel
    from polyvec.llm.local import LocalLanguageModel

    while isinstance(model, WrappedLanguageModel):
        model = model.model
    if not isinstance(model, LocalLanguageModel):
        raise SettingsError(
            f"{where}: tunes a model of this machine, not {model.identity}; give a folder or hub "
            "id with --model"
        )
    return model


def counted_by(model: "LanguageModel") -> Callable[[int], None]:
    """The function that counts so many calls in the budget around a model, if it has one.

    For steps that use the model inside; see BudgetedLanguageModel.take.
    """
    from polyvec.llm.language_model import WrappedLanguageModel
    from polyvec.synthesize.spending import BudgetedLanguageModel

    while isinstance(model, WrappedLanguageModel):
        if isinstance(model, BudgetedLanguageModel):
            return model.take
        model = model.model
    return lambda num: None


@contextlib.contextmanager
def tuning_progress(name: str, total: int, wanted: bool | None) -> Iterator[Callable[[str], None]]:
    """A bar on stderr; the function that advances it by one, with these words beside it."""
    last = ""
    with progress(total, wanted, name=name, bar_from=2, shown=lambda speed: last) as advance:

        def say(words: str) -> None:
            nonlocal last
            last = words
            advance(1)

        yield say


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a step has come: tensors and plain values in one file that is whole or not there.

    key: what the step depends on; a file of another key is not read.
    """

    path: Path
    key: str

    def save(self, tensors: "Mapping[str, torch.Tensor]", values: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        self.path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
        told = {"key": self.key, "values": json.dumps(dict(values))}
        with atomic_file(self.path) as file:
            file.write(save(plain, told))

    def load(self) -> "tuple[dict[str, torch.Tensor], dict[str, Any]] | None":
        """Tensors and values; None if there is no checkpoint of this key."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            raise DataError(f"{self.path} is damaged; remove it to begin the step again") from None
        return (tensors, json.loads(told["values"])) if told.get("key") == self.key else None


def optimizer_tensors(optimizer: "torch.optim.Optimizer") -> "dict[str, torch.Tensor]":
    """Its state, by names for a checkpoint."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{k}": value for i, own in state.items() for k, value in own.items()}


def restore_optimizer(
    optimizer: "torch.optim.Optimizer", tensors: "Mapping[str, torch.Tensor]"
) -> None:
    """Put what `optimizer_tensors` gave back."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, place, key = name.split(".")
            state.setdefault(int(place), {})[key] = value
    optimizer.load_state_dict({**whole, "state": state})


def describe(folder: Path, kind: str, **values: Any) -> None:
    """Write what a folder of `models` holds."""
    text = json.dumps({"kind": kind, **values}, ensure_ascii=False, indent=1)
    (folder / DESCRIPTION).write_text(text, "utf-8")


def check_made(steps: "Sequence[Step]", where: str) -> None:
    """SettingsError if two steps make models of one name, or a step uses one that none before made.

    So a wrong name is told before anything is written or tuned.
    """
    made: list[str] = []
    for number, step in enumerate(steps, 1):
        for name in _named_in(step.own_settings()):
            if name.removeprefix(MADE) not in made:
                raise SettingsError(
                    f"{where}: [step {number}]: no step before makes {name!r}."
                    f"{known(name.removeprefix(MADE), made)}"
                )
        if step.makes is not None:
            if step.makes in made:
                raise SettingsError(
                    f"{where}: two steps make {MADE}{step.makes}; give one another name"
                )
            made.append(step.makes)


def _named_in(value: Any) -> Iterator[str]:
    """The settings "model", "embedder" and "name" that name a made model, at any depth."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if isinstance(each, str):
                if key in ("model", "embedder", "name") and each.startswith(MADE):
                    yield each
            else:
                yield from _named_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _named_in(each)
