"""A text from its vector without training: a language model proposes, the victim chooses.

ZSInvert's beam search (arXiv:2504.00147). W beams, K tokens that are tried, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyvec.errors import InputError, SettingsError, ShapeError
from polyvec.evaluate.measures.inputs import matrix, unit
from polyvec.invert.leakage import Encode, unit_or_zero

PROMPT = "tell me a story"  # of the authors' code


@dataclass(frozen=True, slots=True)
class Found:
    """A text, the cosine of its vector with the target, and the number of texts encoded."""

    text: str
    cosine: float
    num_encoded: int


class Proposer:
    """Next tokens by a causal language model: a folder, a hub id, or "polyvec/nano-lm"."""

    def __init__(self, name: str) -> None:
        from polyvec.embed.formats.devices import best_device
        from polyvec.embed.formats.sources import model_folder
        from polyvec.embed.formats.tokenizer import load_tokenizer
        from polyvec.embed.formats.transformer import load_transformer

        folder = model_folder(name, namespace=None)
        self.lm: Any = load_transformer(folder, kind="lm").to(best_device()).eval()
        if self.lm.config.is_encoder_decoder:
            raise SettingsError(f"{name} is an encoder-decoder; search needs a decoder")
        self.tokenizer: Any = load_tokenizer(folder)
        self.ends = [i for i in {self.tokenizer.eos_token_id, self.tokenizer.bos_token_id} if i]

    def prompt_ids(self, prompt: str) -> list[int]:
        """The prompt as a chat where the model has a template, else as it stands."""
        if self.tokenizer.chat_template:
            chat = [{"role": "user", "content": prompt}]
            found = self.tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=True
            )
            return list(found["input_ids"])
        ids: list[int] = self.tokenizer(prompt).input_ids
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        start = self.tokenizer.bos_token_id or self.tokenizer.eos_token_id
        return ids or [start]

    @torch.no_grad()
    def log_probabilities(self, prompt: Sequence[int], beams: Sequence[Sequence[int]]) -> Tensor:
        """Of the token after each beam, [W, V]; all beams have one length."""
        ids = torch.tensor([[*prompt, *beam] for beam in beams], device=self.lm.device)
        logits = self.lm(input_ids=ids, use_cache=False).logits[:, -1]
        return logits.float().log_softmax(-1).cpu()

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def search_invert(
    vectors: np.ndarray,
    encode: Encode,
    lm: str | Proposer = "polyvec/nano-lm",
    *,
    beams: int = 5,
    top_k: int = 50,
    max_tokens: int = 20,
    repetition_penalty: float = 1.5,
    fluency: float = 0.0,
    rounds: int = 1,
    prompt: str = PROMPT,
) -> list[Found]:
    """The text found for each vector: the best of all candidates by cosine.

    At each step the language model names `top_k` next tokens for each beam; the beams whose text
    has the nearest vector go on. fluency: weight of the mean log-probability beside the cosine.
    rounds: after the first, the prompt asks for a sentence similar to what was found. Costs about
    beams * top_k * max_tokens texts encoded for each vector and round.
    """
    numbers = {"beams": beams, "top_k": top_k, "max_tokens": max_tokens, "rounds": rounds}
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    proposer = Proposer(lm) if isinstance(lm, str) else lm
    vectors_NE = unit("vectors", matrix("vectors", vectors, at_least=1))
    found = []
    for target_E in vectors_NE:
        best = Found("", -1.0, 0)
        for number in range(rounds):
            asked = prompt if not number else f"write a sentence similar to this: {best.text}"
            now = _search(
                target_E,
                encode,
                proposer,
                proposer.prompt_ids(asked),
                beams=beams,
                top_k=top_k,
                max_tokens=max_tokens,
                penalty=repetition_penalty,
                fluency=fluency,
            )
            count = best.num_encoded + now.num_encoded
            better = now if now.cosine > best.cosine else best
            best = Found(better.text, better.cosine, count)
        found.append(best)
    return found


def _search(
    target_E: np.ndarray,
    encode: Encode,
    proposer: Proposer,
    prompt: Sequence[int],
    *,
    beams: int,
    top_k: int,
    max_tokens: int,
    penalty: float,
    fluency: float,
) -> Found:
    kept: list[tuple[list[int], float]] = [([], 0.0)]
    best, count = ("", -1.0), 0
    for _ in range(max_tokens):
        log_WV = proposer.log_probabilities(prompt, [ids for ids, _ in kept])
        tried: dict[str, tuple[list[int], float]] = {}
        for (ids, total), log_V in zip(kept, log_WV, strict=True):
            # A log-probability is negative: times the penalty it is less likely.
            log_V[list(set(ids))] *= penalty
            log_V[proposer.ends] = -torch.inf
            for token in log_V.topk(min(top_k, len(log_V))).indices.tolist():
                text = proposer.text([*ids, token])
                if text and text not in tried:
                    tried[text] = [*ids, token], total + float(log_V[token])
        if not tried:
            break
        texts = list(tried)
        vectors_NE = np.asarray(encode(texts), np.float32)
        if vectors_NE.shape[1] != len(target_E):
            raise ShapeError(
                f"the vectors have {len(target_E)} dimensions, those of the model "
                f"{vectors_NE.shape[1]}: they are of another model"
            )
        cosines_N = unit_or_zero(vectors_NE) @ target_E
        count += len(texts)
        top = int(cosines_N.argmax())
        if cosines_N[top] > best[1]:
            best = texts[top], float(cosines_N[top])
        means_N = np.array([tried[text][1] / len(tried[text][0]) for text in texts])
        order = np.argsort(-(cosines_N + fluency * means_N), kind="stable")[:beams]
        kept = [tried[texts[row]] for row in order]
        # Beams are read in one batch without padding; texts are as long in tokens.
    return Found(best[0], best[1], count)
