"""An encoder-decoder that reads memories: its decoder attends to them beside its encoder's states.

Gist-COCO (Li et al. 2024, arXiv:2402.16058) feeds gists to a frozen FLAN-T5 so. B rows, M vectors,
T tokens, N predicted tokens of all rows, D state size, V vocabulary.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from polyvec.compress.soft.decoder import MEMORY, Asked, Predicted
from polyvec.compress.soft.memory import MemoryBatch
from polyvec.compress.soft.reading import Rows
from polyvec.compress.soft.writing import Advance
from polyvec.embed.formats.devices import best_device
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.errors import InputError, SettingsError


def is_paired(folder: Path) -> bool:
    """Whether the folder's model is an encoder-decoder."""
    return bool(AutoConfig.from_pretrained(folder).is_encoder_decoder)


class PairedDecoder(nn.Module):
    """As Decoder, of an encoder-decoder: its encoder reads the prompt, or the text in place of the
    memory; `Predicted.states_ND` are logits here."""

    def __init__(self, folder: Path, tasks: Sequence[str]) -> None:
        super().__init__()
        self.lm: Any = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        ).to(best_device())
        self.lm.eval()
        self.tokenizer = load_tokenizer(folder)
        if tasks:
            raise SettingsError(
                f"decoder {type(self.lm).__name__} reads its prompt by an encoder of its own, "
                f"which has no task vectors: write prompts.{tasks[0]} without {{task}}"
            )
        self.tasks = nn.ParameterDict()

    @property
    def table(self) -> Any:
        return self.lm.get_input_embeddings()

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def trained(self, kind: str) -> list[nn.Module]:
        if kind == "lora":
            raise SettingsError("decoder_train 'lora' is not supported for an encoder-decoder")
        return [self.lm] if kind == "full" else []

    def computing(self, *, teacher: bool = False) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def encoded(self, asked: Sequence[Asked], memory: MemoryBatch | None) -> tuple[Tensor, Tensor]:
        """What the decoder attends to, [B, M + T, D], and which of it is real."""
        rows = Rows(self.table)
        numbers = []
        for each in asked:
            found = [np.zeros(0, np.int64)]
            for part in each.parts:
                if isinstance(part, np.ndarray):
                    found.append(rows.tokens(part))
                elif part == MEMORY and each.context is not None:
                    found.append(rows.tokens(each.context))
            numbers.append(np.concatenate([*found, rows.tokens([self.end])]))
        inputs_BTD, real_BT = rows.padded(numbers)
        encoder = self.lm.get_encoder()
        states = encoder(inputs_embeds=inputs_BTD, attention_mask=real_BT.long()).last_hidden_state
        if memory is None:
            return states, real_BT
        if memory.states_BMD is None:
            raise InputError("an encoder-decoder reads states, not keys and values")
        both = torch.cat([memory.states_BMD.to(states.dtype), states], 1)
        return both, torch.cat([memory.real_BM, real_BT], 1)

    def _logits(self, ids_BT: Tensor, states_BSD: Tensor, real_BS: Tensor) -> Tensor:
        out = self.lm(
            encoder_outputs=BaseModelOutput(last_hidden_state=states_BSD),
            attention_mask=real_BS.long(),
            decoder_input_ids=ids_BT,
            use_cache=False,
        )
        found: Tensor = out.logits
        return found

    def predict(
        self, asked: Sequence[Asked], memory: MemoryBatch | None, *, teacher: bool = False
    ) -> Predicted:
        states_BSD, real_BS = self.encoded(asked, memory)
        longest = max(len(each.target) for each in asked)
        start = int(self.lm.config.decoder_start_token_id)
        ids = np.full((len(asked), longest), start, np.int64)
        for row, each in enumerate(asked):
            ids[row, 1 : len(each.target)] = each.target[:-1]
        logits_BTV = self._logits(torch.from_numpy(ids).to(real_BS.device), states_BSD, real_BS)
        lengths = [len(each.target) for each in asked]
        rows = torch.from_numpy(np.repeat(np.arange(len(asked)), lengths)).to(real_BS.device)
        place = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])).to(rows.device)
        targets = np.concatenate([each.target for each in asked]).astype(np.int64)
        return Predicted(logits_BTV[rows, place], torch.from_numpy(targets).to(rows.device), rows)

    def log_probabilities(self, found: Predicted, *, teacher: bool = False) -> Tensor:
        logits_NV = found.states_ND.float()
        chosen = logits_NV.gather(1, found.targets_N[:, None])[:, 0]
        return chosen - logits_NV.logsumexp(1)

    def logits(self, states_ND: Tensor, *, teacher: bool = False) -> Tensor:
        return states_ND.float()

    def begin(self, asked: Sequence[Asked], memory: MemoryBatch | None) -> tuple[Tensor, Advance]:
        """As Decoder's."""
        states_BSD, real_BS = self.encoded(asked, memory)
        start = int(self.lm.config.decoder_start_token_id)
        ids_BT = torch.full((len(asked), 1), start, device=real_BS.device)

        def advance(ids_B: Tensor) -> Tensor:
            nonlocal ids_BT
            ids_BT = torch.cat([ids_BT, ids_B[:, None]], 1)
            return self._logits(ids_BT, states_BSD, real_BS)[:, -1].float()

        return self._logits(ids_BT, states_BSD, real_BS)[:, -1].float(), advance
