"""Batches as transformers' loop counts them: by number, through the run."""

from collections.abc import Iterator

from torch.utils.data import Dataset, Sampler

from polyvec.data.training.batches import Batches
from polyvec.data.training.rows import TrainingRow


class Sample(Sampler[list[int]]):
    """The numbers of the batches of the epoch that the loop is in, counted through the run.

    As many in each epoch as in the first: transformers counts on it.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches, self.epoch, self.length = batches, 0, len(batches.epoch(0))

    @property
    def batch_sampler(self) -> "Sample":
        """Itself: transformers sets the epoch of what is wrapped under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        start = self.epoch * self.length
        return iter([[number] for number in range(start, start + self.length)])

    def rows(self, number: int) -> list[TrainingRow]:
        """The rows of a batch of the run."""
        epoch, place = divmod(number, self.length)
        return self.batches.rows(epoch, place % len(self.batches.epoch(epoch)))


class Numbers(Dataset[int]):
    """A data set of numbers: each is its own item. Its length is that of the rows."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> int:
        return number
