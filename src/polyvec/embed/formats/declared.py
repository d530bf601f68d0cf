"""What the modules of a folder declare, before a transformer is loaded."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from polyvec.embed.formats.routing import Module
from polyvec.embed.pooling.base import PoolingModule
from polyvec.embed.pooling.modules import WeightedLayers
from polyvec.embed.pooling.steps import TokenSteps
from polyvec.errors import ModelError


@dataclass(slots=True)
class Declared:
    """What a model folder declares, beside the transformer itself."""

    pooling: tuple[str, ...] | PoolingModule | None = None
    pool_prompt: bool = True
    layers: WeightedLayers | None = None
    steps: list[nn.Module] = field(default_factory=list)  # over tokens, before the pooling
    projections: list[nn.Module] = field(default_factory=list)
    transformer: Path | None = None
    own_transformer: Module | None = None  # of the folder's own code
    static: Path | None = None
    sparse_static: Path | None = None
    masked: bool = False
    words: Path | None = None
    bag_of_words: Path | None = None
    routes: "dict[str, Declared]" = field(default_factory=dict)  # by task; of a Router
    default_route: str | None = None
    routed: bool = False  # one of several routes
    loaded: dict[Path, nn.Module] = field(default_factory=dict)

    @property
    def input(self) -> Path:
        """The folder of the first module; ModelError if there is none."""
        found = (
            self.transformer or self.static or self.sparse_static or self.words or self.bag_of_words
        )
        if found is None:
            raise ModelError("modules.json: a route of the Router starts with no Transformer")
        return found

    @property
    def pooled_layers(self) -> WeightedLayers | None:
        """The weights of layers, where no steps over tokens take them over."""
        return None if isinstance(self.pooling, TokenSteps) else self.layers

    @property
    def is_table(self) -> bool:
        """Whether it starts from a table of vectors and no transformer."""
        return not (self.static is self.words is self.bag_of_words is None)

    def pool_by(self, pooling: tuple[str, ...] | PoolingModule) -> None:
        """Pool what the steps over tokens give, where there are any."""
        if self.steps and isinstance(pooling, PoolingModule):
            raise ModelError(
                f"{type(pooling).__name__} reads the backbone's states, but this model goes over "
                f"them with {type(self.steps[0]).__name__} first"
            )
        if self.steps and not isinstance(pooling, PoolingModule):
            self.pooling = TokenSteps(self.steps, pooling, self.layers)
        else:
            self.pooling = pooling

    @property
    def is_sparse(self) -> bool:
        """Whether the vectors are mostly zeros."""
        return any(part_kind(part) == "sparse" for part in (self.pooling, *self.projections))


def part_kind(part: object) -> str:
    """What a pooling or projection declares: "sparse" or "dense"."""
    return str(getattr(part, "output_kind", "dense"))
