"""sentence-transformers' trainers for our models.

They are used as they are: their losses, samplers and columns need no second implementation.
Changed is what knows their modules: checkpoints are read by our classes, and a model card is
polyvec's own.
"""

from typing import Any

from polyvec.sentence_transformers.installed import attribute


class _OurModels:
    """What differs for a model that isn't a chain of sentence-transformers' modules."""

    model: Any

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Nothing: our models write a card of their own."""

    def create_model_card(self, *positional: Any, **options: Any) -> None:
        """Nothing: it is written with the model."""

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        kind = type(self.model)
        loaded = kind(checkpoint_path, device=str(self.model.device))
        self.model.load_state_dict(loaded.state_dict())


def __getattr__(name: str) -> Any:
    if not name.endswith("Trainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    theirs = attribute("sentence_transformers", name)
    made = type(name, (_OurModels, theirs), {"__module__": __name__, "__doc__": theirs.__doc__})
    globals()[name] = made
    return made
