"""What a step is: a function of rows and settings, in a table by name."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.errors import DataError, SettingsError
from polyvec.llm.answers import GenerationSettings
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.prompts import Prompt
from polyvec.registry import Registry
from polyvec.synthesize.folder import file_hash
from polyvec.synthesize.rows import Changed, Row

if TYPE_CHECKING:
    from polyvec.data.texts import Record
    from polyvec.interfaces import TextEncoder


def _no_model(name: str | None) -> Any:
    raise SettingsError("this step needs a model; none was given")


@dataclass(slots=True)
class Tools:
    """What steps may use: the texts of the run, and models by name (None: those of the run)."""

    texts: "Sequence[Record]" = ()
    language_model: Callable[[str | None], LanguageModel] = _no_model
    embedder: "Callable[[str | None], TextEncoder]" = _no_model
    show_progress_bar: bool | None = False
    # Scores [P] of pairs by a cross-encoder's name; see train.mining.rescoring.
    cross_encoder: Callable[[str], Any] = _no_model
    loaded: dict[str, Any] = field(default_factory=dict)
    # Where steps put the models that they make (tuned.py); None without a run.
    models: Path | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a step would ask a language model: for a dry run.

    choices: it asks only which of these is likelier, and nothing is written.
    """

    prompts: list[Prompt]
    settings: GenerationSettings
    model: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def num_calls(self) -> int:
        return len(self.prompts)

    @property
    def max_new_tokens(self) -> int:
        """Of all prompts together, at most."""
        each = 1 if self.choices else self.settings.n * self.settings.max_new_tokens
        return len(self.prompts) * each


class Step(abc.ABC):
    """A part of STEPS: a frozen dataclass whose fields are its settings."""

    # Whether it costs nothing and needs no model, so that a dry run does it.
    free = False

    @abc.abstractmethod
    def run(self, rows: Sequence[Row], tools: Tools) -> Changed:
        """The rows that it keeps or makes, in a fixed order, and those that it rejects."""

    def own_settings(self) -> dict[str, Any]:
        """The settings by name."""
        names = getattr(type(self), "__dataclass_fields__", ())
        return {name: getattr(self, name) for name in names}

    def asks(self, rows: Sequence[Row], tools: Tools) -> Asked | None:
        """What these rows would ask a language model; None if they ask nothing."""
        return None

    def check(self) -> None:
        """Raises DataError for a file that is not there; before the first step costs anything."""
        for path in self._files():
            if not Path(path).exists():
                raise DataError(f"{path}: no such file")

    def _files(self) -> list[str]:
        named = (getattr(self, name, None) for name in ("demonstrations", "corpus"))
        return [path for path in named if path is not None]

    def depends(self, tools: Tools) -> list[str]:
        """What its rows depend on beside its settings: hashes of files, identities of models."""
        found = [file_hash(path) for path in self._files()]
        if self.uses(tools) == "language_model":
            found.append(tools.language_model(getattr(self, "model", None)).identity)
        elif self.uses(tools) == "embedder":
            found.append(tools.embedder(getattr(self, "model", None)).fingerprint())
        return found

    def uses(self, tools: Tools) -> str | None:
        """The kind of model that it runs: "language_model", "embedder" or None."""
        return None

    @property
    def makes(self) -> str | None:
        """The name of the model that it makes, "run:NAME" to later steps; None: it makes none."""
        return None

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        """The most rows that could come out, with placeholders for texts that a model writes."""
        return list(rows)


STEPS: Registry[type[Step]] = Registry(
    "step",
    accepts=lambda part: isinstance(part, type) and issubclass(part, Step),
    expected="a subclass of Step",
)
