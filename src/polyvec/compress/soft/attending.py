"""Kinds of memory with attention of their own: pooled n-grams, digests, blocks with raw names.

B contexts, M vectors, T tokens, D state size, H heads, K size of a head.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.compress.soft.encoding import Context, Encoder, Size, Table
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.prefix import like_tokens
from polyvec.compress.soft.reading import Rows, read
from polyvec.compress.soft.slots import Slots
from polyvec.errors import SettingsError

# Names of tools, functions and parameters: words with an underscore, a dot or capitals inside,
# and words before a bracket.
NAMES = r"\b\w+(?:[_.]\w+)+\b|\b[a-z]+[A-Z]\w*\b|\b\w+(?=\()"


class CrossBlock(nn.Module):
    """Attention of some states over others, then a gated feed-forward layer; both with a residual.

    Keys and queries are rotated by their positions (RoPE), states are normalised (RMSNorm).
    identity: the block begins as the identity.
    """

    def __init__(
        self, size: int, num_heads: int, *, rotate: bool = True, identity: bool = False
    ) -> None:
        super().__init__()
        if size % num_heads:
            raise SettingsError(f"{num_heads} heads do not divide states of {size}")
        self.num_heads, self.rotate = num_heads, rotate
        self.norm_query, self.norm_key = nn.RMSNorm(size), nn.RMSNorm(size)
        self.norm_out = nn.RMSNorm(size)
        self.query, self.key, self.value, self.out = (
            nn.Linear(size, size, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(size, 2 * size, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * size, size, bias=False)
        if identity:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.down.weight)

    def forward(self, query_BMD: Tensor, states_BTD: Tensor, seen_BMT: Tensor) -> Tensor:
        """The query's states, [B, M, D]; `seen_BMT` says what each of them sees."""
        q, k = self.norm_query(query_BMD), self.norm_key(states_BTD)
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, q), (self.key, k), (self.value, k))
        )
        if self.rotate:
            q, k = rotated(q), rotated(k)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BMT[:, None])
        query_BMD = query_BMD + self.out(found.transpose(1, 2).flatten(2))
        x = self.norm_out(query_BMD)
        found_BMD: Tensor = query_BMD + self.down(F.silu(self.gate(x)) * self.up(x))
        return found_BMD


def rotated(x_BHTK: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), in halves."""
    half = x_BHTK.shape[-1] // 2
    speed = base ** (-torch.arange(half, device=x_BHTK.device) / half)
    angle_TK = torch.arange(x_BHTK.shape[2], device=x_BHTK.device)[:, None] * speed
    cos, sin = angle_TK.cos().to(x_BHTK.dtype), angle_TK.sin().to(x_BHTK.dtype)
    a, b, rest = x_BHTK[..., :half], x_BHTK[..., half : 2 * half], x_BHTK[..., 2 * half :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


class Digest(nn.Module):
    """Digest tokens that attend to the context's word embeddings, in blocks of their own.

    IC-Former (Wang et al. 2024, arXiv:2406.13618): no language model reads the context, so the
    cost is linear in its length.
    """

    def __init__(
        self, table: Table, num: int = 16, num_layers: int = 3, num_heads: int = 4
    ) -> None:
        super().__init__()
        self.vectors_MD = nn.Parameter(like_tokens(num, table))
        size = table.shape[1]
        self.blocks = nn.ModuleList(CrossBlock(size, num_heads) for _ in range(num_layers))

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        rows = Rows(encoder.table)
        numbers = [
            rows.tokens(np.concatenate([encoder.prefix, each.query, each.ids])) for each in contexts
        ]
        words_BTD, real_BT = rows.padded(numbers)
        states_BMD = self.vectors_MD.expand(len(contexts), -1, -1)
        seen_BMT = real_BT[:, None].expand(-1, states_BMD.shape[1], -1)
        for block in self.blocks:
            states_BMD = block(states_BMD, words_BTD, seen_BMT)
        real_BM = torch.ones(states_BMD.shape[:2], dtype=torch.bool, device=real_BT.device)
        return encoder.of_states(states_BMD, real_BM, [len(each.ids) for each in contexts])


class Pooled(nn.Module):
    """A vector for each n-gram of the context: the weighted mean of its states.

    weights "query": softmax over the n-gram of (W_q mean(query)) · (W_k state) / √K, in each head
    for its part of the state (QGC, arXiv:2406.02376), then `review` blocks in which the vectors
    attend to question, context and each other. weights "mean": all alike, as windows of ReadOnce
    (arXiv:2010.12854), which `step` apart may overlap.
    """

    takes_rate = True

    def __init__(
        self,
        hidden_size: Size,
        size: int = 4,
        step: int | None = None,
        weights: Literal["query", "mean"] = "query",
        num_heads: int = 4,
        review: int = 1,
    ) -> None:
        super().__init__()
        if size < 1 or hidden_size % num_heads:
            raise SettingsError("memory 'pooled': size is at least 1, heads divide the states")
        self.size, self.step, self.weighted = size, step or size, weights == "query"
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size, bias=False) if self.weighted else None
        self.key = nn.Linear(hidden_size, hidden_size, bias=False) if self.weighted else None
        self.blocks = nn.ModuleList(
            CrossBlock(hidden_size, num_heads, rotate=False, identity=True) for _ in range(review)
        )

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        memory, _ = self.pooled(encoder, contexts)
        return memory

    def weights(self, encoder: Encoder, contexts: Sequence[Context]) -> list[Tensor]:
        """Of each context the weights of its n-grams' tokens, [n-grams, size], mean of the heads.

        Those of an n-gram add up to 1; places behind the context's end have 0.
        """
        return self.pooled(encoder, contexts)[1]

    def pooled(
        self, encoder: Encoder, contexts: Sequence[Context]
    ) -> tuple[MemoryBatch, list[Tensor]]:
        """The memory, and each context's weights."""
        if encoder.kv:
            raise SettingsError("memory 'pooled' has states only; use carrier 'hidden'")
        if self.weighted and any(not len(each.query) for each in contexts):
            raise SettingsError("memory 'pooled': weights by the query need a question")
        rows = Rows(encoder.table)
        numbers = [
            rows.tokens(np.concatenate([encoder.prefix, each.query, each.ids])) for each in contexts
        ]
        inputs_BTD, real_BT = rows.padded(numbers)
        states_BTD = read(encoder.backbone, inputs_BTD, real_BT).states_BTD
        size = encoder.rate or self.size
        step = size if encoder.rate or self.step == self.size else self.step
        vectors, weights = [], []
        for row, context in enumerate(contexts):
            start = len(encoder.prefix)
            middle, stop = start + len(context.query), len(numbers[row])
            query_D = states_BTD[row, start:middle].mean(0) if self.weighted else None
            found_ND, weights_NG = self._windows(states_BTD[row, middle:stop], query_D, size, step)
            vectors.append(found_ND)
            weights.append(weights_NG)
        states_BMD = nn.utils.rnn.pad_sequence(vectors, batch_first=True)
        counts_B = torch.tensor([len(each) for each in vectors], device=real_BT.device)
        most = states_BMD.shape[1]
        real_BM = torch.arange(most, device=real_BT.device)[None] < counts_B[:, None]
        if self.blocks:
            # Padding sees the text, too: what it becomes is not read.
            seen = torch.cat([real_BT, real_BM], 1)[:, None].expand(-1, most, -1)
            for block in self.blocks:
                states_BMD = block(states_BMD, torch.cat([states_BTD, states_BMD], 1), seen)
        return encoder.of_states(states_BMD, real_BM, [len(c.ids) for c in contexts]), weights

    def _windows(
        self, states_TD: Tensor, query_D: Tensor | None, size: int, step: int
    ) -> tuple[Tensor, Tensor]:
        count = max(1, -(-max(0, len(states_TD) - size) // step) + 1)
        place_NG = torch.arange(count)[:, None] * step + torch.arange(size)[None]
        there_NG = (place_NG < len(states_TD)).to(states_TD.device)
        place_NG = place_NG.clamp(max=max(0, len(states_TD) - 1)).to(states_TD.device)
        states_NGHK = states_TD[place_NG].unflatten(-1, (self.num_heads, -1))
        if query_D is None or self.query is None or self.key is None:
            scores_NGH = states_NGHK.new_zeros(states_NGHK.shape[:3])
        else:
            query_HK = self.query(query_D).unflatten(0, (self.num_heads, -1))
            key_NGHK = self.key(states_TD[place_NG]).unflatten(-1, (self.num_heads, -1))
            scores_NGH = (key_NGHK * query_HK).sum(-1) / query_HK.shape[-1] ** 0.5
        scores_NGH = scores_NGH.float().masked_fill(~there_NG[:, :, None], -torch.inf)
        weights_NGH = scores_NGH.softmax(1).to(states_TD.dtype)
        found_ND = (weights_NGH[..., None] * states_NGHK).sum(1).flatten(1)
        return found_ND, weights_NGH.mean(2)


class Blocks(nn.Module):
    """Names stay as they are; the text between them is cut into blocks, each compressed alone.

    SCC for tool documentation (arXiv:2407.02043): what is kept has as many vectors as the names
    have tokens, and `num` for each block of `size` tokens, in the order of the text; a block of at
    most `num` tokens stays, too. names: a regular expression of what stays; "" keeps nothing.
    """

    takes_rate = True

    def __init__(self, table: Table, num: int = 2, size: int = 16, names: str = NAMES) -> None:
        super().__init__()
        if num < 1 or size < 1:
            raise SettingsError("memory 'blocks': num and size are at least 1")
        try:
            self.names = re.compile(names) if names else None
        except re.error as error:
            raise SettingsError(
                f"memory 'blocks': names is no regular expression ({error})"
            ) from None
        self.size = size
        self.slots = Slots(table, num=num)

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """The text in runs, and whether each stays as it is."""
        found, start = [], 0
        for match in self.names.finditer(text) if self.names else ():
            if not match[0]:
                continue
            begin = match.start()
            if begin and text[begin - 1] == " ":  # a token begins with the space before it
                begin -= 1
            found += [(text[start:begin], False)] if text[start:begin] else []
            found.append((text[begin : match.end()], True))
            start = match.end()
        return [*found, (text[start:], False)] if text[start:] else found

    def forward(self, encoder: Encoder, contexts: Sequence[Context]) -> MemoryBatch:
        if encoder.kv:
            raise SettingsError("memory 'blocks' mixes names and states; use carrier 'hidden'")
        size = encoder.rate or self.size
        parts: list[tuple[int, np.ndarray, bool]] = []
        for row, context in enumerate(contexts):
            for ids, stays in context.pieces or ((context.ids, False),):
                cut = [ids] if stays else [ids[at : at + size] for at in range(0, len(ids), size)]
                # A block that is no longer than its slots would only grow.
                parts += [(row, each, stays or len(each) <= self.slots.num) for each in cut]
        blocks = [Context(ids) for _, ids, stays in parts if not stays]
        rows = Rows(encoder.table)
        made = iter(rows.memories(self.slots(encoder, blocks)) if blocks else ())
        numbers = [np.zeros(0, np.int64)] * len(contexts)
        for row, ids, stays in parts:
            found = rows.tokens(ids) if stays else next(made)
            numbers[row] = np.concatenate([numbers[row], found])
        states_BMC, real_BM = rows.padded(numbers)
        return encoder.of_states(states_BMC, real_BM, [len(c.ids) for c in contexts], raw=True)
