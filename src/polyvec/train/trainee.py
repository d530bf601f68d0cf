"""What is trained: an embedder and the heads of a task, with a forward that computes pieces."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from polyvec.embed.embedder import Embedder
from polyvec.train.engine import Piece
from polyvec.train.task import Job, Task

EMBEDDER = "embedder."


class Trainee(nn.Module):
    """An embedder and what a task trains beside it.

    All of a step's computation that needs weights of the embedder goes through `forward`, so that
    wrappers (FSDP, autocast, torch.compile) see it.
    """

    # transformers' Trainer would otherwise divide losses by a number of labels.
    accepts_loss_kwargs = False

    def __init__(self, embedder: Embedder, task: Task) -> None:
        super().__init__()
        self.embedder = embedder
        self.task, self.heads = task, task.heads
        self.jobs: Mapping[str, Job] = task.jobs

    def forward(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The results of pieces, a row for each of their texts."""
        return [self._result(piece) for piece in pieces]

    def _result(self, piece: Piece) -> Tensor:
        result = self.jobs[piece.job](self.embedder, piece.payload)
        # A piece without rows keeps this process in step with others that have one more.
        return result if piece.num_rows else result[:0]

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of layers, which FSDP wraps one by one; transformers' name for them."""
        found: set[str] = set()
        for model in self._models():
            found |= set(model._no_split_modules or ())
        return sorted(found)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Keep a layer's input only, and compute the layer again in the backward pass."""
        for model in self._models():
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)(**options)

    # transformers' older name.
    gradient_checkpointing_enable = activation_checkpointing_enable

    def _models(self) -> Iterator[PreTrainedModel]:
        """The transformers models, not those inside of others."""
        found: list[PreTrainedModel] = []
        for module in self.embedder.modules():
            inside = any(module is part for model in found for part in model.modules())
            if isinstance(module, PreTrainedModel) and not inside:
                found.append(module)
        return iter(found)

    def kept(self) -> Callable[[str], bool]:
        """Whether a checkpoint keeps the entry of this name: all but the embedder's frozen weights.

        Those are where the stage began, and most of a model under an adapter.
        """
        frozen = {
            name
            for name, each in self.named_parameters(remove_duplicate=False)
            if name.startswith(EMBEDDER) and not each.requires_grad
        }
        return lambda name: name not in frozen
