"""PEFT adapters of a model of the door: the methods that transformers' models have."""

from typing import Any

from transformers.integrations.peft import PeftAdapterMixin

from polyvec.errors import InputError


class Adapters:
    """Each method is that of transformers' model.

    Raises InputError for a model that is none of transformers', as static embeddings.
    """

    transformers_model: Any

    def has_peft_compatible_model(self) -> bool:
        """Whether transformers' model takes adapters."""
        return isinstance(self.transformers_model, PeftAdapterMixin)

    def check_peft_compatible_model(self) -> None:
        """Raises InputError for a model that takes no adapters."""
        if not self.has_peft_compatible_model():
            kind = type(self.transformers_model).__name__
            raise InputError(f"adapters are for models of transformers; this one is a {kind}")

    def _peft(self, method: str, *positional: Any, **options: Any) -> Any:
        self.check_peft_compatible_model()
        return getattr(self.transformers_model, method)(*positional, **options)

    def add_adapter(self, *positional: Any, **options: Any) -> None:
        """Add a PEFT adapter to transformers' model."""
        self._peft("add_adapter", *positional, **options)

    def load_adapter(self, *positional: Any, **options: Any) -> None:
        """Load a PEFT adapter into transformers' model."""
        self._peft("load_adapter", *positional, **options)

    def set_adapter(self, *positional: Any, **options: Any) -> None:
        """Choose the adapters that are used."""
        self._peft("set_adapter", *positional, **options)

    def enable_adapters(self) -> None:
        """Use the adapters."""
        self._peft("enable_adapters")

    def disable_adapters(self) -> None:
        """Compute without the adapters."""
        self._peft("disable_adapters")

    def active_adapters(self) -> list[str]:
        """The names of the adapters that are used."""
        return list(self._peft("active_adapters"))

    def active_adapter(self) -> str:
        """The name of the adapter that is used; of several the first."""
        return self.active_adapters()[0]

    def delete_adapter(self, *positional: Any, **options: Any) -> None:
        """Remove an adapter."""
        self._peft("delete_adapter", *positional, **options)

    def get_adapter_state_dict(self, *positional: Any, **options: Any) -> Any:
        """An adapter's weights."""
        return self._peft("get_adapter_state_dict", *positional, **options)
