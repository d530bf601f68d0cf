"""The kinds of memory: what of the encoder's reading is kept. MEMORIES names them.

A kind is a module: `forward(encoder, contexts)` returns a MemoryBatch. To add one: the class, its
line in MEMORIES, a recipe that uses it. Its arguments are its settings; `facts` fill themselves.

B contexts, M vectors, T tokens, D state size of the encoder, C input size of the decoder.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.compress.soft.memory import MemoryBatch, appended
from polyvec.compress.soft.prefix import VectorPrefix, like_tokens
from polyvec.compress.soft.reading import Read, Rows, read
from polyvec.embed.backbone.backbone import Backbone
from polyvec.errors import SettingsError
from polyvec.registry import Fact

NOTHING = np.zeros(0, np.int64)
Table = Annotated[Tensor, Fact("table")]  # of the encoder's token embeddings
ConnectorFact = Annotated[nn.Module, Fact("connector")]
Size = Annotated[int, Fact("hidden_size")]
Decoded = Annotated[Tensor, Fact("decoder_table")]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A text to compress: the encoder's tokens of it and of the question (none: not read).

    vectors_IE: off-the-shelf embeddings of it, for the kind "vector".
    pieces: of the kind "blocks": runs of tokens and whether they stay as they are.
    """

    ids: np.ndarray
    query: np.ndarray = field(default_factory=lambda: NOTHING)
    vectors_IE: Tensor | None = None
    pieces: tuple[tuple[np.ndarray, bool], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """What kinds read with: the backbone, its table of token embeddings, and the connector.

    kv: whether keys and values are kept. prefix: tokens at the start of each text (BOS).
    rate: replaces a kind's own stride or ratio for this call.
    """

    backbone: Backbone
    table: nn.Module
    connector: nn.Module
    kv: bool = False
    prefix: tuple[int, ...] = ()
    rate: int | None = None

    @property
    def device(self) -> torch.device:
        return next(self.table.parameters()).device

    def read(self, rows: Rows, numbers: Sequence[np.ndarray], **options: Any) -> Read:
        inputs_BTD, real_BT = rows.padded(numbers)
        return read(self.backbone, inputs_BTD, real_BT, keep=self.kv, **options)

    def keep(
        self,
        found: Read,
        places: Sequence[np.ndarray],
        lengths: Sequence[int],
        *,
        raw: bool = False,
    ) -> MemoryBatch:
        """The states, or keys and values, at these places of each row."""
        counts = np.array([len(each) for each in places])
        most = max(1, int(counts.max()))
        place_BM = np.zeros((len(places), most), np.int64)
        for row, each in enumerate(places):
            place_BM[row, : len(each)] = each
        index_BM = torch.from_numpy(place_BM).to(self.device)
        real_BM = torch.from_numpy(np.arange(most)[None] < counts[:, None]).to(self.device)
        if self.kv:
            return MemoryBatch(real_BM, found.next_B, tuple(lengths), pairs=found.pairs(index_BM))
        states = found.states_BTD.gather(
            1, index_BM[:, :, None].expand(-1, -1, found.states_BTD.shape[-1])
        )
        return self.of_states(states, real_BM, lengths, raw=raw)

    def of_states(
        self, states_BMD: Tensor, real_BM: Tensor, lengths: Sequence[int], *, raw: bool = False
    ) -> MemoryBatch:
        """A memory of states, through the connector unless `raw`."""
        states_BMC = states_BMD if raw else self.connector(states_BMD)
        return MemoryBatch(real_BM, real_BM.sum(1), tuple(lengths), states_BMC)

    def connected(self, memory: MemoryBatch) -> MemoryBatch:
        if memory.states_BMD is None:
            return memory
        return self.of_states(memory.states_BMD, memory.real_BM, memory.lengths)


class Slots(nn.Module):
    """Trained vectors behind the context, whose states (or keys and values) are the memory.

    ICAE's memory slots, Gist's tokens, AutoCompressor's summary tokens, <MEM> of COCOM and PISCO.

    num: of them; or one for each `ratio` tokens of the context. shared: all are the same vector.
    segment: tokens that are read at a time; None: the whole context. combine: what happens to the
    memories of segments: "accumulate": each segment reads those before it, and all are kept
    (AutoCompressor); "replace": each reads the last one, which it replaces (RMT); "independent":
    each is read alone and all are kept (ICAE's spans, COCOM's documents). bptt: segments through
    which gradients flow back, 0: all.
    """

    def __init__(
        self,
        table: Table,
        num: int = 16,
        ratio: int | None = None,
        shared: bool = False,
        segment: int | None = None,
        combine: Literal["accumulate", "replace", "independent"] = "accumulate",
        bptt: int = 2,
    ) -> None:
        super().__init__()
        if num < 1 or (ratio is not None and ratio < 1) or (segment is not None and segment < 1):
            raise SettingsError("memory 'slots': num, ratio and segment are at least 1")
        self.num, self.ratio, self.segment = num, ratio, segment
        self.combine, self.bptt, self.shared = combine, bptt, shared
        rows = 1 if shared else num
        if ratio is not None and not shared:
            raise SettingsError(
                "memory 'slots': a ratio gives no fixed number of slots; set shared = true"
            )
        self.vectors_MD = nn.Parameter(like_tokens(rows, table))

    def slots_of(self, length: int, rate: int | None = None) -> int:
        """How many a segment of so many tokens has."""
        ratio = rate or self.ratio
        if ratio is None:
            return self.num
        return max(1, -(-length // ratio))

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        segments = [_segments(each.ids, self.segment) for each in contexts]
        memory: MemoryBatch | None = None
        for number in range(max(map(len, segments))):
            chunks = [each[number] if number < len(each) else None for each in segments]
            if memory is not None and self.bptt and number % self.bptt == 0:
                memory = memory.detached()
            before = None if self.combine == "independent" else memory
            found = self._segment(encoder, contexts, chunks, before, offset=number)
            memory = found if memory is None else self._combined(memory, found)
        assert memory is not None
        return encoder.connected(memory)

    def _combined(self, before: MemoryBatch, found: MemoryBatch) -> MemoryBatch:
        if self.combine != "replace":
            next_B = torch.maximum(before.next_B, found.next_B)
            return replace(appended(before, found), next_B=next_B)
        # A context that has ended keeps the memory of its last segment.
        ended_B = ~found.real_BM.any(1)
        return _where(ended_B, before, found)

    def _segment(
        self,
        encoder: Encoder,
        contexts: Sequence[Context],
        chunks: Sequence[np.ndarray | None],
        before: MemoryBatch | None,
        offset: int,
    ) -> MemoryBatch:
        rows = Rows(encoder.table)
        vectors = rows.vectors(self.vectors_MD)
        carried = [NOTHING] * len(chunks)
        if before is not None and before.states_BMD is not None:
            carried = rows.memories(before)
        numbers, places = [], []
        for context, chunk, memory in zip(contexts, chunks, carried, strict=True):
            if chunk is None:
                numbers.append(NOTHING)
                places.append(NOTHING)
                continue
            count = self.slots_of(len(chunk), encoder.rate)
            slots = vectors[np.arange(count) % len(vectors)]
            start = encoder.prefix if offset == 0 else ()
            text = rows.tokens(np.concatenate([start, context.query, chunk]))
            numbers.append(np.concatenate([memory, text, slots]))
            places.append(np.arange(len(memory) + len(text), len(memory) + len(text) + count))
        past = None
        start_B = None
        if before is not None and before.pairs:
            past, start_B = (before.pairs, before.real_BM), before.next_B
        elif encoder.kv and offset:
            assert self.segment is not None
            start_B = torch.full((len(chunks),), offset * self.segment, device=encoder.device)
        found = encoder.read(rows, numbers, past=past, start_B=start_B)
        lengths = [0 if chunk is None else len(chunk) for chunk in chunks]
        return encoder.keep(found, places, lengths, raw=True)


class Strided(nn.Module):
    """Every `stride`-th state of the context, and the last one: ⌈n/stride⌉ of n tokens.

    Extensible Tokenization (arXiv:2401.07793), and RCC (arXiv:2406.06110) with `segment`: segments
    are read one by one, each alone. A call may have another stride; strides: drawn from in
    training, one for each batch.
    """

    def __init__(
        self, stride: int = 8, segment: int | None = None, strides: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if stride < 1 or any(each < 1 for each in strides):
            raise SettingsError("memory 'strided': a stride is at least 1")
        self.stride, self.segment, self.strides = stride, segment, tuple(strides)

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        stride = encoder.rate or self.stride
        if self.training and self.strides and encoder.rate is None:
            stride = self.strides[int(torch.randint(len(self.strides), ()))]
        rows = Rows(encoder.table)
        segments = [_segments(each.ids, self.segment) for each in contexts]
        numbers, places, owners = [], [], []
        for row, (context, parts) in enumerate(zip(contexts, segments, strict=True)):
            for part in parts:
                start = np.concatenate([encoder.prefix, context.query]).astype(np.int64)
                numbers.append(rows.tokens(np.concatenate([start, part])))
                places.append(len(start) + strided_places(len(part), stride))
                owners.append(row)
        found = encoder.read(rows, numbers)
        lengths = [len(each) for each in places]
        memory = encoder.keep(found, places, lengths)
        if len(owners) == len(contexts):
            return _with_lengths(memory, contexts)
        if encoder.kv:
            raise SettingsError("memory 'strided': segments need carrier 'hidden'")
        return _with_lengths(regrouped(memory, owners, len(contexts)), contexts)


class Beacons(nn.Module):
    """A trained token behind every `ratio` tokens; what is far sees the beacons alone.

    The context is read in windows: a token sees its own window and the beacons of those before.
    The memory is the beacons' keys and values (Activation Beacon, arXiv:2401.03462), or states.
    ratios: drawn from in training, one for each batch. The paper gives beacons attention weights
    of their own; here they share the model's.
    """

    def __init__(
        self, table: Table, ratio: int = 8, window: int = 64, ratios: Sequence[int] = ()
    ) -> None:
        super().__init__()
        if ratio < 1 or window < ratio:
            raise SettingsError(f"memory 'beacons': window {window} is below ratio {ratio}")
        self.ratio, self.window, self.ratios = ratio, window, tuple(ratios)
        self.vector_1D = nn.Parameter(like_tokens(1, table))

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        ratio = encoder.rate or self.ratio
        if self.training and self.ratios and encoder.rate is None:
            ratio = self.ratios[int(torch.randint(len(self.ratios), ()))]
        rows = Rows(encoder.table)
        (beacon,) = rows.vectors(self.vector_1D)
        numbers, places, segments = [], [], []
        for context in contexts:
            text = rows.tokens(np.concatenate([encoder.prefix, context.query, context.ids]))
            row, kinds = interleaved(text, int(beacon), ratio, self.window)
            numbers.append(row)
            segments.append(kinds)
            places.append(np.flatnonzero(kinds % 2))
        longest = max(map(len, numbers))
        segment_BT = np.zeros((len(numbers), longest), np.int64)
        for place, kinds in enumerate(segments):
            segment_BT[place, : len(kinds)] = kinds
        found = encoder.read(
            rows,
            numbers,
            segments_BT=torch.from_numpy(segment_BT).to(encoder.device),
            blocked=beacon_blocks(int(segment_BT.max()) // 2 + 1),
        )
        return _with_lengths(encoder.keep(found, places, [0] * len(contexts)), contexts)


class Soft(nn.Module):
    """The same trained vectors whatever the context is: prompt tuning (arXiv:2104.08691).

    Trained to give what one hard prompt gives, prompt compression (PC, arXiv:2210.03162).
    """

    def __init__(self, decoder_table: Decoded, num: int = 8) -> None:
        super().__init__()
        self.vectors_MC = nn.Parameter(like_tokens(num, decoder_table))

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        states_BMC = self.vectors_MC.expand(len(contexts), -1, -1)
        real_BM = torch.ones(states_BMC.shape[:2], dtype=torch.bool, device=states_BMC.device)
        return encoder.of_states(states_BMC, real_BM, [len(c.ids) for c in contexts], raw=True)


class Vector(nn.Module):
    """Off-the-shelf embeddings of the context, each as `num` input embeddings: xRAG, PE-Rank, ELM.

    num_layers: of the map; 1 is linear.
    """

    def __init__(
        self,
        vector_size: Annotated[int, Fact("vector_size")],
        decoder_table: Decoded,
        num: int = 1,
        num_layers: int = 2,
        hidden: int | None = None,
        matched: bool = True,
    ) -> None:
        super().__init__()
        self.prefix = VectorPrefix(
            vector_size,
            decoder_table.shape[1],
            num,
            num_layers=num_layers,
            hidden=hidden,
            like=decoder_table if matched else None,
        )

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        vectors = [each.vectors_IE for each in contexts]
        assert all(each is not None for each in vectors)
        counts = [len(each) for each in vectors if each is not None]
        padded_BIE = nn.utils.rnn.pad_sequence([v for v in vectors if v is not None], True)
        # Of inference mode, in which embedders compute.
        states_BMC = self.prefix(padded_BIE.to(encoder.device).clone())
        most = states_BMC.shape[1]
        counts_B = torch.tensor(counts, device=states_BMC.device) * self.prefix.num_tokens
        real_BM = torch.arange(most, device=states_BMC.device)[None] < counts_B[:, None]
        return encoder.of_states(states_BMC, real_BM, [len(c.ids) for c in contexts], raw=True)


# ---- what kinds share ---------------------------------------------------------------------------


def strided_places(length: int, stride: int) -> np.ndarray:
    """The last token of every `stride`, and the last of all."""
    found = np.arange(stride - 1, length, stride)
    return found if length % stride == 0 else np.append(found, length - 1)


def interleaved(
    text: np.ndarray, beacon: int, ratio: int, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """The text with a beacon behind every `ratio` tokens, and each place's segment.

    Segment 2w are tokens of window w, 2w + 1 its beacons. The last beacon may stand for fewer.
    """
    row: list[int] = []
    kinds: list[int] = []
    for number, start in enumerate(range(0, len(text), window)):
        chunk = text[start : start + window]
        for place in range(0, len(chunk), ratio):
            part = chunk[place : place + ratio].tolist()
            row += [*part, beacon]
            kinds += [2 * number] * len(part) + [2 * number + 1]
    return np.array(row, np.int64), np.array(kinds, np.int64)


def beacon_blocks(num_windows: int) -> tuple[tuple[int, int], ...]:
    """Which segment does not see which: nothing sees the tokens of an earlier window."""
    return tuple(
        (2 * later + kind, 2 * earlier)
        for earlier, later in itertools.combinations(range(num_windows), 2)
        for kind in (0, 1)
    )


def regrouped(memory: MemoryBatch, owners: Sequence[int], count: int) -> MemoryBatch:
    """Memories of parts as those of their contexts, one behind another, [count, M, C]."""
    assert memory.states_BMD is not None
    size, real = memory.states_BMD.shape[1], memory.real_BM.cpu().numpy()
    mine: list[list[int]] = [[] for _ in range(count)]
    for part, (owner, there) in enumerate(zip(owners, real, strict=True)):
        mine[owner] += (part * size + np.flatnonzero(there)).tolist()
    most = max(1, *map(len, mine))
    index = torch.zeros(count, most, dtype=torch.long)
    for row, each in enumerate(mine):
        index[row, : len(each)] = torch.tensor(each)
    counts = torch.tensor([len(each) for each in mine])
    real_BM = (torch.arange(most)[None] < counts[:, None]).to(memory.real_BM.device)
    states = memory.states_BMD.flatten(0, 1)[index.to(memory.real_BM.device)]
    return MemoryBatch(real_BM, real_BM.sum(1), (0,) * count, states)


def _with_lengths(memory: MemoryBatch, contexts: Sequence[Context]) -> MemoryBatch:
    return replace(memory, lengths=tuple(len(each.ids) for each in contexts))


def _where(first_B: Tensor, a: MemoryBatch, b: MemoryBatch) -> MemoryBatch:
    """Rows of `a` where `first_B`, else of `b`; memories of one width."""
    most = max(a.real_BM.shape[1], b.real_BM.shape[1])

    def wide(each: Tensor, dim: int) -> Tensor:
        short = most - each.shape[dim]
        shape = [*each.shape[:dim], short, *each.shape[dim + 1 :]]
        return torch.cat([each, each.new_zeros(shape)], dim)

    def pick(x: Tensor, y: Tensor, dim: int) -> Tensor:
        x, y = wide(x, dim), wide(y, dim)
        return torch.where(first_B.view(-1, *[1] * (x.ndim - 1)), x, y)

    lengths = tuple(x + y for x, y in zip(a.lengths, b.lengths, strict=True))
    states = None
    if a.states_BMD is not None and b.states_BMD is not None:
        states = pick(a.states_BMD, b.states_BMD, 1)
    pairs = tuple(
        (pick(x[0], y[0], 2), pick(x[1], y[1], 2)) for x, y in zip(a.pairs, b.pairs, strict=True)
    )
    real = pick(a.real_BM, b.real_BM, 1)
    return MemoryBatch(real, torch.where(first_B, a.next_B, b.next_B), lengths, states, pairs)


def _segments(ids: np.ndarray, size: int | None) -> list[np.ndarray]:
    """The context in segments of `size` tokens; an empty one is one empty segment."""
    if size is None or len(ids) <= size:
        return [ids]
    return [ids[start : start + size] for start in range(0, len(ids), size)]
