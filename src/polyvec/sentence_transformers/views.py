"""What `model[0]`, `model[1]`, ... give: the parts of an Embedder under their modules' names.

A part can be read, and its settings changed; it computes nothing by itself.
"""

from typing import Any

from torch import Tensor, nn

# sentence-transformers' names of our poolings.
MODES = {
    "first": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
}


class View:
    """A part of a model; `embedder` is the model itself, a SentenceTransformer of ours."""

    def __init__(self, embedder: Any) -> None:
        self.embedder = embedder

    def parameters(self) -> Any:
        """The weights of the part."""
        return iter(())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get_config_dict()})"

    def get_config_dict(self) -> dict[str, Any]:
        """The part's settings."""
        return {}


class Transformer(View):
    """The backbone and its tokenizer: `model[0]`."""

    modalities = ("text",)

    @property
    def auto_model(self) -> Any:
        """transformers' model."""
        return self.embedder.backbone.model

    model = auto_model

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.auto_model.config

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.embedder.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.embedder.tokenizer = tokenizer

    processor = tokenizer

    @property
    def max_seq_length(self) -> int | None:
        """Most tokens that are read."""
        return self.embedder.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self.embedder.max_seq_length = value

    @property
    def do_lower_case(self) -> bool:
        """Whether texts are lower-cased before the tokenizer."""
        return self.embedder.text_tokenizer.lower_case

    def preprocess(self, inputs: Any, prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """`model.preprocess`."""
        return self.embedder.preprocess(inputs, prompt, **options)

    tokenize = preprocess

    def get_embedding_dimension(self) -> int:
        """Size of a token's state."""
        return self.embedder.token_dimension

    get_word_embedding_dimension = get_embedding_dimension

    def parameters(self) -> Any:
        """The backbone's weights."""
        return self.embedder.backbone.parameters()

    def get_config_dict(self) -> dict[str, Any]:
        """Length and class of the model."""
        return {
            "max_seq_length": self.max_seq_length,
            "architecture": type(self.auto_model).__name__,
        }


class Pooling(View):
    """The pooling: `model[1]`."""

    @property
    def include_prompt(self) -> bool:
        """Whether the prompt's tokens are pooled."""
        return self.embedder.pool_prompt

    @include_prompt.setter
    def include_prompt(self, value: bool) -> None:
        self.embedder.set_pooling_include_prompt(value)

    @property
    def pooling_mode(self) -> str | tuple[str, ...]:
        """sentence-transformers' name of the pooling, or several; of a module its class."""
        if self.embedder.pooling_module is not None:
            return type(self.embedder.pooling_module).__name__
        names = tuple(MODES.get(name, name) for name in self.embedder.pooling)
        return names if len(names) > 1 else names[0]

    def get_pooling_mode_str(self) -> str:
        """The names, joined by "+"."""
        mode = self.pooling_mode
        return mode if isinstance(mode, str) else "+".join(mode)

    def get_embedding_dimension(self) -> int:
        """Numbers in a pooled vector."""
        return self.embedder._pooled_dimension

    get_sentence_embedding_dimension = get_embedding_dimension

    def get_config_dict(self) -> dict[str, Any]:
        """As sentence-transformers writes it."""
        return {
            "embedding_dimension": self.get_embedding_dimension(),
            "pooling_mode": self.pooling_mode,
            "include_prompt": self.include_prompt,
        }


class Projection(View):
    """A dense layer, normalisation or other step after the pooling."""

    def __init__(self, embedder: Any, step: nn.Module) -> None:
        super().__init__(embedder)
        self.step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["step"], name)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features with their vectors after this step."""
        return {**features, "sentence_embedding": self.step(features["sentence_embedding"])}

    __call__ = forward

    def parameters(self) -> Any:
        """The step's weights."""
        return self.step.parameters()

    def __repr__(self) -> str:
        return repr(self.step)


def views_of(embedder: Any) -> list[View]:
    """The parts in order: transformer, pooling, projections."""
    steps: list[View] = [Projection(embedder, step) for step in embedder.projections]
    return [Transformer(embedder), Pooling(embedder), *steps]
