"""What is kept of a context: a Memory on disk and in programs, a MemoryBatch while computing.

B contexts, M vectors, D the decoder's state size, H heads, K size of a key.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polyvec.errors import DataError, InputError, ModelError
from polyvec.storage.files import atomic_file

FORMAT = "polyvec memory 1"
LONGEST = 1 << 31  # tokens of a context
Pairs = tuple[tuple[Tensor, Tensor], ...]  # keys and values of each layer


@dataclass(frozen=True, slots=True, eq=False)
class MemoryBatch:
    """Memories of several contexts.

    states_BMD: input embeddings of the decoder; None where keys and values are kept.
    pairs: of each layer keys and values, [B, H, M, K]; () where states are.
    real_BM: which of the M are there. next_B: position of the token after the memory.
    lengths: tokens of each context.
    """

    real_BM: Tensor
    next_B: Tensor
    lengths: tuple[int, ...]
    states_BMD: Tensor | None = None
    pairs: Pairs = ()

    @property
    def counts(self) -> list[int]:
        found: list[int] = self.real_BM.sum(1).tolist()
        return found

    def select(self, rows: Sequence[int]) -> "MemoryBatch":
        """The memories of these rows, which may repeat."""
        index = torch.tensor(rows, device=self.real_BM.device)
        return MemoryBatch(
            self.real_BM[index],
            self.next_B[index],
            tuple(self.lengths[row] for row in rows),
            None if self.states_BMD is None else self.states_BMD[index],
            tuple((keys[index], values[index]) for keys, values in self.pairs),
        )

    def detached(self) -> "MemoryBatch":
        return dataclasses.replace(
            self,
            states_BMD=None if self.states_BMD is None else self.states_BMD.detach(),
            pairs=tuple((keys.detach(), values.detach()) for keys, values in self.pairs),
        )

    def means(self) -> Tensor:
        """Mean vector of each memory, [B, D]; UniICL (arXiv:2405.17062) selects by it."""
        if self.states_BMD is None:
            raise InputError("a memory of keys and values has no mean vector; use carrier 'hidden'")
        real = self.real_BM[:, :, None]
        return torch.where(real, self.states_BMD, 0).sum(1) / real.sum(1).clamp(min=1)


def appended(before: MemoryBatch | None, after: MemoryBatch) -> MemoryBatch:
    """One memory behind another in each row."""
    if before is None:
        return after
    states = None
    if before.states_BMD is not None and after.states_BMD is not None:
        states = torch.cat([before.states_BMD, after.states_BMD], 1)
    return MemoryBatch(
        torch.cat([before.real_BM, after.real_BM], 1),
        after.next_B,
        tuple(a + b for a, b in zip(before.lengths, after.lengths, strict=True)),
        states,
        tuple(
            (torch.cat([a[0], b[0]], 2), torch.cat([a[1], b[1]], 2))
            for a, b in zip(before.pairs, after.pairs, strict=True)
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """One context, compressed.

    tensors: "states" [M, D], or "keys" and "values" [L, H, M, K] of all layers.
    model: hash of the compressor that made it, whose decoder alone can read it.
    num_context: tokens of the context. next_position: of the token after the memory.
    """

    tensors: dict[str, Tensor]
    model: str
    num_context: int
    next_position: int

    @property
    def carrier(self) -> str:
        return "hidden" if "states" in self.tensors else "kv"

    def __len__(self) -> int:
        """Vectors, or places of keys and values, that the decoder reads."""
        return next(iter(self.tensors.values())).shape[-2]

    @property
    def sizes(self) -> tuple[int, ...]:
        """[D] of states, [L, H, K] of keys and values."""
        first = next(iter(self.tensors.values()))
        return (*first.shape[:-2], first.shape[-1])

    @property
    def rate(self) -> float:
        """Tokens of the context for each vector."""
        return self.num_context / len(self)

    @property
    def num_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.tensors.values())

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file, with the model's hash, length and rate."""
        facts = {
            "format": FORMAT,
            "model": self.model,
            "num_context": str(self.num_context),
            "next_position": str(self.next_position),
            "num_vectors": str(len(self)),
            "rate": f"{self.rate:.4g}",
        }
        tensors = {name: each.detach().cpu().contiguous() for name, each in self.tensors.items()}
        with atomic_file(Path(path)) as file:
            file.write(save(tensors, facts))

    @classmethod
    def load(cls, path: str | Path) -> "Memory":
        """The memory of a file; DataError for a file that is none."""
        try:
            with safe_open(str(path), "pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not a memory ({' '.join(str(error).split())})") from None
        if facts.get("format") != FORMAT:
            raise DataError(
                f"{path}: a safetensors file, but not a memory: its format is "
                f"{json.dumps(facts.get('format'))}, expected {FORMAT!r}"
            )
        if problem := _problem(tensors):
            raise DataError(f"{path}: not as it was saved, {problem}; compress the context again")
        try:
            num_context, next_position = int(facts["num_context"]), int(facts["next_position"])
        except (KeyError, ValueError):
            raise DataError(f"{path}: its length is missing or not a number") from None
        if not (0 < num_context < LONGEST and 0 < next_position < LONGEST):
            raise DataError(f"{path}: of {num_context} tokens, up to position {next_position}")
        return cls(tensors, facts.get("model", ""), num_context, next_position)

    def check(self, model: str) -> None:
        """Raises ModelError if another model made it."""
        if self.model != model:
            raise ModelError(
                f"the memory was made by another model ({self.model[:12]}...) than this one "
                f"({model[:12]}...): compress the context again with this one"
            )


def _problem(tensors: dict[str, Tensor]) -> str:
    """What is wrong with the tensors of a memory, or nothing."""
    ndim = {("states",): 2, ("keys", "values"): 4}.get(tuple(sorted(tensors)))
    shapes = {tuple(each.shape) for each in tensors.values()}
    if ndim is None:
        return f"it has {', '.join(sorted(tensors)) or 'nothing'}"
    if len(shapes) != 1 or any(each.ndim != ndim or not each.numel() for each in tensors.values()):
        return f"its shapes are {sorted(shapes)}"
    if not all(each.is_floating_point() for each in tensors.values()):
        return "it has whole numbers"
    return "" if all(bool(each.isfinite().all()) for each in tensors.values()) else "not finite"


def unbatched(batch: MemoryBatch, model: str) -> list[Memory]:
    """A Memory for each row, on the CPU."""
    found = []
    for row, count in enumerate(batch.counts):
        places = batch.real_BM[row].nonzero()[:, 0]
        if batch.states_BMD is not None:
            tensors = {"states": batch.states_BMD[row, places]}
        else:
            keys = torch.stack([keys[row][:, places] for keys, _ in batch.pairs])
            values = torch.stack([values[row][:, places] for _, values in batch.pairs])
            tensors = {"keys": keys, "values": values}
        assert count == len(places)
        kept = {name: each.detach().cpu().clone() for name, each in tensors.items()}
        found.append(Memory(kept, model, batch.lengths[row], int(batch.next_B[row])))
    return found


def batched(memories: Sequence[Memory], device: torch.device) -> MemoryBatch:
    """Memories in one batch, padded on the right. Raises InputError for different carriers."""
    carriers = {each.carrier for each in memories}
    if len(carriers) != 1:
        raise InputError(f"memories of {len(carriers)} carriers cannot be read together")
    longest = max(map(len, memories))

    def padded(each: Tensor) -> Tensor:
        short = longest - each.shape[-2]
        return torch.nn.functional.pad(each, (0, 0, 0, short)).to(device)

    counts = torch.tensor([len(each) for each in memories], device=device)
    stacked = {
        name: torch.stack([padded(each.tensors[name]) for each in memories])
        for name in memories[0].tensors
    }
    pairs: Pairs = ()
    if "keys" in stacked:
        pairs = tuple(zip(stacked["keys"].unbind(1), stacked["values"].unbind(1), strict=True))
    return MemoryBatch(
        torch.arange(longest, device=device)[None] < counts[:, None],
        torch.tensor([each.next_position for each in memories], device=device),
        tuple(each.num_context for each in memories),
        stacked.get("states"),
        pairs,
    )


def joined(memories: Sequence[Memory]) -> Memory:
    """Memories of one compressor behind each other as one: documents, or gists that are revealed.

    HD-Gist (hierarchical gists) reads the gists of arguments alone, or with those of chosen values.
    """
    if not memories:
        raise InputError("no memory is given")
    first = memories[0]
    for each in memories[1:]:
        each.check(first.model)
    tensors = {
        name: torch.cat([each.tensors[name] for each in memories], dim=-2) for name in first.tensors
    }
    return Memory(
        tensors,
        first.model,
        sum(each.num_context for each in memories),
        max(each.next_position for each in memories),
    )
