"""What a recipe's [embedder] section may say; plain values, so that reading it needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """The parts of an embedder by name.

    `backbone` is a folder or hub id whose transformer and tokenizer are taken, not its
    pooling. `pooling` names one of embed/pooling.py, or several to lie side by side.
    `pool_prompt` says whether a prompt's states are pooled; it must be said where there
    are prompts, since both are in use and the wrong one is silent (SILENT row 12).
    """

    backbone: str
    pooling: str | tuple[str, ...] = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    pool_prompt: bool | None = None
    similarity: str = "cosine"
    truncate_dim: int | None = None
