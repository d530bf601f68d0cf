"""The models of a run by their names, each loaded once, on first use."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyvec.data.texts import read_jsonl
from polyvec.llm.answers import Usage
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.loading import load_language_model
from polyvec.synthesize.spending import Budget, BudgetedLanguageModel
from polyvec.synthesize.step import Tools
from polyvec.synthesize.tuned import MADE, load_made, made_folder

if TYPE_CHECKING:
    from polyvec.data.texts import Record
    from polyvec.interfaces import TextEncoder

LEDGER = "ledger.jsonl"  # a line for each run, with what all runs so far have paid for
MODELS = "models"  # the folder of a run with the models that its steps make
ANSWERS = "answers"  # the folder of a run that keeps the answers


@dataclass(slots=True)
class Models:
    """What a run's steps ask and embed with.

    Every answer is kept in the folder, so that a run that was killed pays for none again. `spent`
    counts what all runs into the folder have paid for.
    """

    folder: Path
    language_model: str
    embedder: "Callable[[str | None], TextEncoder]"
    budget: Budget | None = None
    options: dict[str, Any] = field(default_factory=dict)
    prompt_price: float | None = None
    new_price: float | None = None
    spent: Usage = field(default_factory=Usage)
    usage: Usage = field(default_factory=Usage)
    on_answer: Callable[[], None] = lambda: None
    loaded: dict[str, Any] = field(default_factory=dict)

    def tools(self, texts: "Sequence[Record]", show_progress_bar: bool | None = False) -> Tools:
        made = self.folder / MODELS
        return Tools(
            texts, self.ask, self.embed, show_progress_bar, self.cross_encoder, models=made
        )

    def ask(self, name: str | None) -> LanguageModel:
        """The language model of a name, cached and under the budget; None: the run's."""
        chosen = name or self.language_model
        if chosen not in self.loaded:
            self.loaded[chosen] = self.wrapped(self._load(chosen, name is None))
        found: LanguageModel = self.loaded[chosen]
        return found

    def _load(self, chosen: str, is_own: bool) -> LanguageModel:
        if chosen.startswith(MADE):
            folder = made_folder(self.folder / MODELS, chosen, "model")
            return load_made(folder, self.language_model, self.options)
        # Those of options that servers take differ from those of local models.
        return load_language_model(chosen, **(self.options if is_own else {}))

    def wrapped(self, model: LanguageModel) -> LanguageModel:
        from polyvec.llm.cache import CachedLanguageModel

        model.usage = self.usage  # one ledger for all models of the run
        self.usage.prompt_price, self.usage.new_price = self.prompt_price, self.new_price
        budgeted = BudgetedLanguageModel(model, self.budget, self.spent, self.on_answer)
        return CachedLanguageModel(budgeted, self.folder / ANSWERS)

    def uncached_tools(self, texts: "Sequence[Record]") -> Tools:
        """For a dry run, which asks nothing and writes nothing: the language models as they are."""

        def ask(name: str | None) -> LanguageModel:
            # A model that a step makes is not there yet: it reads and writes as its base does.
            own = name is None or name.startswith(MADE)
            chosen = self.language_model if name is None or own else name
            if chosen not in self.loaded:
                self.loaded[chosen] = self._load(chosen, own)
            found: LanguageModel = self.loaded[chosen]
            return found

        return Tools(texts, ask, self.embed, False, self.cross_encoder)

    @property
    def shown_name(self) -> str:
        """The language model without a password in its URL."""
        return re.sub("//[^/@]*@", "//", self.language_model)

    def embed(self, name: str | None) -> "TextEncoder":
        """The embedder of a name; None: the run's."""
        key = f"embedder {name}"
        if key not in self.loaded:
            if name is not None and name.startswith(MADE):
                name = str(made_folder(self.folder / MODELS, name, "model"))
            self.loaded[key] = self.embedder(name)
        found: TextEncoder = self.loaded[key]
        return found

    def cross_encoder(self, name: str) -> Any:
        from polyvec.train.mining.rescoring import pair_scores

        key = f"cross-encoder {name}"
        if key not in self.loaded:
            self.loaded[key] = pair_scores(name, where="judge")
        return self.loaded[key]


def spent_before(path: Path, spent: Usage) -> None:
    """Add what the last line of a run's ledger says to `spent`."""
    if not path.is_file():
        return
    *_, (_, last) = [(0, {}), *read_jsonl(path)]
    spent.prompts = last.get("prompts", 0)
    spent.prompt_tokens = last.get("prompt_tokens", 0)
    spent.new_tokens = last.get("new_tokens", 0)
