"""A CrossEncoder as a list of modules: of one, the classifier with its tokenizer."""

from typing import Any, Never

from polyvec.errors import InputError
from polyvec.sentence_transformers.containers import NoPlaceError
from polyvec.sentence_transformers.views import Transformer


class Head(Transformer):
    """`model[0]`: the sequence classifier and its tokenizer."""

    @property
    def auto_model(self) -> Any:
        """transformers' model."""
        return self.embedder.model

    model = auto_model

    @property
    def do_lower_case(self) -> bool:
        """False: the tokenizer does what it does."""
        return False

    def get_embedding_dimension(self) -> int:
        """Size of a token's state."""
        return int(self.auto_model.config.hidden_size)

    get_word_embedding_dimension = get_embedding_dimension

    def parameters(self) -> Any:
        """The model's weights."""
        return self.auto_model.parameters()


class Classifier:
    """nn.Sequential's methods, of which those that change the list raise InputError."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [Head(self)][place]
        if place not in (0, -1):
            raise NoPlaceError(f"there is no module {place!r}; this model has 1, model[0]")
        return Head(self)

    def __iter__(self) -> Any:
        return iter([Head(self)])

    def _first_module(self) -> Head:
        return Head(self)

    _last_module = _first_module

    def _refused(self, *positional: Any, **options: Any) -> Never:
        """Raises InputError: a cross encoder is one sequence classifier."""
        raise InputError(
            "a CrossEncoder is one sequence classifier, to which no modules can be added; for "
            "scores of several modules use sentence_transformers.CrossEncoder"
        )

    append = extend = insert = pop = add_module = register_module = _refused
    __setitem__ = __delitem__ = __add__ = __iadd__ = _refused
