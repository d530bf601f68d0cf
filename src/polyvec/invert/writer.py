"""A language model that writes texts from vectors, which stand before its tokens as a prefix.

B texts, I vectors a text, E their size, S input embeddings before the text, T tokens of a text,
D state size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyvec.compress.soft.decoder import token_ids
from polyvec.compress.soft.paired import is_paired
from polyvec.compress.soft.prefix import VectorPrefix
from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.devices import best_device
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.embed.formats.transformer import load_transformer
from polyvec.errors import ShapeError

IGNORED = -100


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What the language model reads before it writes: [B, S, D], real on the right, [B, S]."""

    inputs_BSD: Tensor
    real_BS: Tensor

    def repeated(self, count: int) -> "Start":
        return Start(
            *(each.repeat_interleave(count, 0) for each in (self.inputs_BSD, self.real_BS))
        )


@dataclass(frozen=True, slots=True)
class Written:
    """A text, and the mean log-probability of its tokens by beam search (0 where drawn)."""

    text: str
    score: float = 0.0


class VectorWriter(nn.Module):
    """`VectorPrefix` before a causal language model (GEIA) or an encoder-decoder (Vec2Text).

    num_vectors: 1; 3 of a corrector, which reads the target, a hypothesis' vector and their
    difference, each by a map of its own, and then the hypothesis (Morris et al. 2023).
    """

    def __init__(
        self,
        folder: Path,
        in_features: int,
        *,
        num_tokens: int,
        num_layers: int = 2,
        num_vectors: int = 1,
    ) -> None:
        super().__init__()
        self.encoder_decoder = is_paired(folder)
        kind = "seq2seq" if self.encoder_decoder else "lm"
        self.lm: Any = load_transformer(folder, kind=kind).to(best_device())
        self.tokenizer: Any = load_tokenizer(folder)
        table = self.lm.get_input_embeddings().weight
        self.prefixes = nn.ModuleList(
            VectorPrefix(in_features, table.shape[1], num_tokens, num_layers=num_layers, like=table)
            for _ in range(num_vectors)
        ).to(table.device)
        self.in_features = in_features

    @classmethod
    def named(cls, model: str, in_features: int, **options: Any) -> "VectorWriter":
        """Of a folder, a hub id or "polyvec/nano-lm"."""
        return cls(model_folder(model, namespace=None), in_features, **options)

    @property
    def device(self) -> torch.device:
        return next(self.prefixes.parameters()).device

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def ids(self, text: str, max_tokens: int, *, end: bool = True) -> np.ndarray:
        """A text's tokens, at most so many, and the end token behind a whole text."""
        found = token_ids(self.tokenizer, text)
        if len(found) > max_tokens or not end:
            return found[:max_tokens]
        return np.append(found, self.end)

    def start(self, vectors_BIE: Tensor, hypotheses: Sequence[np.ndarray] | None = None) -> Start:
        """The prefix of each row's vectors; of a corrector its hypothesis' tokens behind it."""
        if vectors_BIE.ndim != 3 or vectors_BIE.shape[1] != len(self.prefixes):
            raise ShapeError(
                f"the writer takes [B, {len(self.prefixes)}, {self.in_features}], got "
                f"{list(vectors_BIE.shape)}"
            )
        vectors_BIE = vectors_BIE.to(self.device)
        table = self.lm.get_input_embeddings()
        parts = [
            prefix(vectors_BIE[:, number : number + 1])
            for number, prefix in enumerate(self.prefixes)
        ]
        if hypotheses is not None:
            end_B1D = table(torch.full((len(vectors_BIE), 1), self.end, device=self.device))
            # The end token stands between the parts, as in Vec2Text.
            parts = [each for part in parts for each in (part, end_B1D)]
        inputs_BSD = torch.cat([part.to(table.weight.dtype) for part in parts], 1)
        real_BS = torch.ones(inputs_BSD.shape[:2], dtype=torch.long, device=self.device)
        if hypotheses is None:
            return Start(inputs_BSD, real_BS)
        ids_BT, there_BT = padded([np.append(each, self.end) for each in hypotheses], self.device)
        inputs = torch.cat([inputs_BSD, table(ids_BT)], 1)
        real = torch.cat([real_BS, there_BT.long()], 1)
        # Padding goes to the left: what is written follows the last real token.
        order = real.argsort(dim=1, stable=True)
        return Start(inputs.gather(1, order[..., None].expand_as(inputs)), real.gather(1, order))

    def nats(self, start: Start, texts: Sequence[np.ndarray], smoothing: float = 0.0) -> Tensor:
        """Of each text the sum of -log p of its tokens, and their number, float32 [B, 2]."""
        ids_BT, there_BT = padded(texts, self.device)
        logits_BTV = self._logits(start, ids_BT, there_BT).float()
        labels_BT = ids_BT.masked_fill(~there_BT, IGNORED)
        losses_BT = F.cross_entropy(
            logits_BTV.transpose(1, 2),
            labels_BT,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=smoothing,
        )
        return torch.stack([losses_BT.sum(1), there_BT.sum(1).float()], 1)

    def _logits(self, start: Start, ids_BT: Tensor, there_BT: Tensor) -> Tensor:
        """What is predicted at each place of the texts, [B, T, V]."""
        if self.encoder_decoder:
            first = torch.full_like(ids_BT[:, :1], int(self.lm.config.decoder_start_token_id))
            out = self.lm(
                inputs_embeds=start.inputs_BSD,
                attention_mask=start.real_BS,
                decoder_input_ids=torch.cat([first, ids_BT[:, :-1]], 1),
                use_cache=False,
            )
            return out.logits
        before = self.lm.get_input_embeddings()(ids_BT[:, :-1])
        real = torch.cat([start.real_BS, there_BT[:, :-1].long()], 1)
        out = self.lm(
            inputs_embeds=torch.cat([start.inputs_BSD, before], 1),
            attention_mask=real,
            position_ids=(real.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        )
        return out.logits[:, start.inputs_BSD.shape[1] - 1 :]

    @torch.no_grad()
    def write(
        self,
        start: Start,
        *,
        beams: int = 1,
        max_tokens: int = 32,
        draws: int = 0,
        top_p: float = 0.9,
        **options: Any,
    ) -> list[list[Written]]:
        """For each row `beams` texts, likeliest first; or `draws` texts that are drawn (top_p).

        Other options are those of transformers' generate, such as repetition_penalty.
        """
        count = draws or beams
        how: dict[str, Any] = {"num_beams": beams, "do_sample": False}
        if draws:
            how = {"do_sample": True, "top_p": top_p, "top_k": 0, "num_beams": 1}
        with quiet_transformers():
            out = self.lm.generate(
                inputs_embeds=start.inputs_BSD,
                attention_mask=start.real_BS,
                num_return_sequences=count,
                max_new_tokens=max_tokens + 1,
                pad_token_id=self.lm.config.pad_token_id or self.end,
                return_dict_in_generate=True,
                output_scores=True,
                **how,
                **options,
            )
        scores = getattr(out, "sequences_scores", None)
        values = [0.0] * len(out.sequences) if scores is None else scores.tolist()
        texts = self.tokenizer.batch_decode(out.sequences, skip_special_tokens=True)
        found = [Written(text.strip(), score) for text, score in zip(texts, values, strict=True)]
        return [found[row : row + count] for row in range(0, len(found), count)]


def padded(rows: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B, T], padded on the right, and which of them are there."""
    longest = max(map(len, rows))
    ids_BT = np.zeros((len(rows), longest), np.int64)
    there_BT = np.zeros((len(rows), longest), bool)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)], there_BT[row, : len(ids)] = ids, True
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(there_BT).to(device)
