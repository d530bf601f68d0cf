"""A language model that says "true" or "false" of a pair: monoT5's form, and FollowIR's judge.

B pairs of a batch, P pairs, T tokens of the longest, V vocabulary.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from polyvec.embed.backbone.quiet import quiet_transformers
from polyvec.embed.formats.devices import best_device, check_device
from polyvec.embed.formats.schema import read_json, write_json
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.embed.formats.transformer import (
    is_masked,
    load_config,
    load_transformer,
    outline_transformer,
)
from polyvec.embed.inputs.contract import check_rows
from polyvec.embed.inputs.spans import Span
from polyvec.embed.inputs.tokens import TextTokenizer, Tokens
from polyvec.errors import ModelError, SettingsError
from polyvec.rerank.batches import batched_scores
from polyvec.rerank.prompts import RerankPrompt, rerank_prompt
from polyvec.rerank.reranker import Reranker, instructed
from polyvec.storage.files import atomic_folder

FILE, KIND = "reranker.json", "true_false"
MARK = "\u0001"  # where a chat's text goes, in no template
MAX_LENGTH = 512


class TrueFalse(nn.Module, Reranker):
    """log p(true) of a pair, among the model's answers "true" and "false"; at most 0.

    monoT5 (Nogueira et al. 2020, arXiv:2003.06713) with an encoder-decoder, whose decoder's first
    token is the answer; FollowIR (Weller et al. 2024, arXiv:2403.15246) with a decoder, whose next
    token it is. An instruction stands behind the query. A pair that is too long loses the end of
    its document first, never the prompt around it.

    >>> reranker = TrueFalse.load("polyvec/nano-t5")
    >>> scores = reranker.scores([("a question", "a document"), ("a question", "another")])
    >>> scores.shape, bool((scores < 0).all())
    ((2,), True)
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str = "monot5",
        answers: Sequence[str] | None = None,
        max_length: int = MAX_LENGTH,
    ) -> None:
        """answers: the words for relevant and not; by default "true" and "false".

        Raises SettingsError for a prompt or answers that do not fit the model.
        """
        super().__init__()
        self.lm, self.prompt_name, self.max_length = lm, prompt, max_length
        self.prompt: RerankPrompt = rerank_prompt(prompt)
        self.is_seq2seq = bool(lm.config.is_encoder_decoder)
        self.words = TextTokenizer(tokenizer, max_length=max_length)
        self.chat = self.prompt.chat and bool(tokenizer.chat_template) and not self.is_seq2seq
        self.answers = tuple(answers or ("true", "false"))
        self.answer_ids = self._first_tokens()
        self._head, self._tail = self._turn() if self.chat else ("", "")
        self._takes_positions = "position_ids" in inspect.signature(lm.forward).parameters

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        prompt: str | None = None,
        answers: Sequence[str] | None = None,
        max_length: int | None = None,
        device: str | None = None,
        weights: bool = True,
        **hub: Any,
    ) -> "TrueFalse":
        """The model of a folder or hub id; what is not given is as in its reranker.json.

        weights: False makes an outline without them, for a dry run. Raises ModelError for a model
        that writes nothing.
        """
        root = model_folder(name, namespace=None, **hub)
        stored = read_json(root / FILE, {})
        config = load_config(root)
        if not config.is_encoder_decoder and is_masked(config):
            raise ModelError(f"{name}: a masked language model, which cannot write an answer")
        kind = "seq2seq" if config.is_encoder_decoder else "lm"
        if weights:
            lm = load_transformer(root, kind=kind).to(check_device(device or best_device()))
        else:
            lm = outline_transformer(root, kind=kind)
        tokenizer = load_tokenizer(root)
        check_rows(tokenizer, len(lm.get_input_embeddings().weight), where=str(name))
        return cls(
            lm,
            tokenizer,
            prompt=prompt or stored.get("prompt") or "monot5",
            answers=answers or stored.get("answers"),
            max_length=max_length or stored.get("max_length") or MAX_LENGTH,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """The language model, its tokenizer and reranker.json, which `load` reads."""
        with atomic_folder(Path(folder), replaceable=FILE) as path:
            with quiet_transformers():
                self.lm.save_pretrained(path)
            self.words.hf.save_pretrained(path)
            write_json(path / FILE, self.settings())

    def settings(self) -> Mapping[str, Any]:
        """All beside the weights that decides a score."""
        own = {"kind": KIND, "prompt": self.prompt_name, "max_length": self.max_length}
        if self.answers != ("true", "false"):
            own["answers"] = list(self.answers)
        return own

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """log p(true) of each pair, float32 [P], in nats."""

        def score(texts: list[Tokens]) -> Tensor:
            logits_B2: Tensor = self([text.ids for text in texts])
            return logits_B2.log_softmax(1)[:, 0]

        texts = self.tokens(pairs, instructions)
        return batched_scores(self, texts, score, device=self.device, max_length=self.max_length)

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    def tokens(
        self,
        pairs: Sequence[tuple[str, str]],
        instructions: Sequence[str | None] | None = None,
    ) -> list[Tokens]:
        """What the model reads of each pair. Raises InputError, naming it, for what is no text."""
        batch = [self._spans(*pair) for pair in instructed(pairs, instructions)]
        return [self._open(each) for each in self.words.encode(batch)]

    def _spans(self, query: str, document: str) -> tuple[Span, ...]:
        values = {"query": query, "document": document}
        inside = [
            Span(values[text]) if is_slot else Span(text, fixed=True)
            for text, is_slot in self.prompt.parts()
        ]
        around = [Span(text, markup=True, fixed=True) for text in (self._head, self._tail)]
        return tuple(each for each in (around[0], *inside, around[1]) if each.text)

    def _open(self, tokens: Tokens) -> Tokens:
        """A decoder goes on behind the prompt: the tokenizer's EOS is left out."""
        num_after = 0 if self.is_seq2seq else len(self.words.contract.suffix)
        if not num_after:
            return tokens
        kept = slice(None, -num_after)
        return dataclasses.replace(
            tokens,
            ids=tokens.ids[kept],
            pooled=tokens.pooled[kept],
            text=tokens.text[kept],
            segments=tokens.segments[kept],
            full_length=tokens.full_length - num_after,
        )

    def _turn(self) -> tuple[str, str]:
        """What a chat writes before and behind a user's text, up to the answer."""
        words = self.words.hf
        text: str = words.apply_chat_template(  # type: ignore[assignment]
            [{"role": "user", "content": MARK}], tokenize=False, add_generation_prompt=True
        )
        head, _, tail = text.partition(MARK)
        bos = words.bos_token
        if bos and head.startswith(str(bos)) and words.bos_token_id in self.words.contract.prefix:
            head = head[len(str(bos)) :]  # the tokenizer adds it
        return head, tail

    def _first_tokens(self) -> list[int]:
        """The token that each answer begins with, behind the prompt."""
        if len(self.answers) != 2:
            raise SettingsError(f"reranker: answers {self.answers} are not two words")
        encode = self.words.hf.backend_tokenizer.encode
        # A text goes on with a space and a turn without; Llama's first tokenizer writes the space
        # before a first word itself, and a second one as a token of its own.
        for space in ("",) if self.chat else (" ", ""):
            ids = [encode(f"{space}{word}", add_special_tokens=False).ids for word in self.answers]
            if all(ids) and ids[0][0] != ids[1][0]:
                return [int(each[0]) for each in ids]
        raise SettingsError(
            f"reranker: answers {self.answers} have no tokens that tell them apart; take others"
        )

    def forward(self, texts: Sequence[np.ndarray]) -> Tensor:
        """Log-probabilities of both answers in the whole vocabulary, float32 [B, 2]."""
        longest = max(map(len, texts))
        ids_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        mask_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, ids in enumerate(texts):
            # A decoder answers behind the last token, which so stands in one column.
            places = slice(0, len(ids)) if self.is_seq2seq else slice(longest - len(ids), None)
            ids_BT[row, places] = torch.from_numpy(ids.astype(np.int64))
            mask_BT[row, places] = 1
        inputs = {"input_ids": ids_BT.to(self.device), "attention_mask": mask_BT.to(self.device)}
        if self.is_seq2seq:
            start = self.lm.config.decoder_start_token_id
            first_B1 = torch.full((len(texts), 1), start, device=self.device)
            logits_BV = self.lm(**inputs, decoder_input_ids=first_B1, use_cache=False).logits[:, 0]
        else:
            if self._takes_positions:
                places_BT = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
                inputs["position_ids"] = places_BT
            logits_BV = self.lm(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        found: Tensor = logits_BV.float().log_softmax(1)[:, self.answer_ids]
        return found


def is_true_false(folder: Path) -> bool:
    """Whether a model's folder is a reranker of this kind: by reranker.json, or as monoT5's are."""
    if read_json(folder / FILE, {}).get("kind") == KIND:
        return True
    config = read_json(folder / "config.json", {})
    named = " ".join(config.get("architectures") or ())
    return bool(config.get("is_encoder_decoder")) and "ForConditionalGeneration" in named
