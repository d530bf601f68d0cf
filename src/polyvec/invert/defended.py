"""A model whose vectors pass a defence, measured and attacked as any other. N texts, E numbers."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Unpack

import numpy as np
import torch

from polyvec.embed.projection.similarity import similarity_matrix, similarity_pairs
from polyvec.interfaces import CHUNK_SIZE, EncodeReport, PromptChoice, RunOptions, TextEncoder
from polyvec.invert.defences import Defence, Nothing
from polyvec.invert.space_map import SpaceMap


class Defended(TextEncoder):
    """`model` behind `defence`, by cosine. It keeps the model's own vectors in `memo` by text.

    Several defences of one model share a memo, so that each text is encoded once.
    """

    similarity_fn_name = "cosine"

    def __init__(
        self,
        model: TextEncoder,
        defence: Defence | None = None,
        memo: dict[tuple[Any, ...], np.ndarray] | None = None,
    ) -> None:
        self.model, self.defence = model, defence or Nothing()
        self.memo = {} if memo is None else memo

    def encode_iter(
        self,
        inputs: Iterable[str],
        *,
        chunk_size: int = CHUNK_SIZE,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> Iterator[np.ndarray]:
        texts = list(inputs)
        for start in range(0, len(texts), chunk_size):
            found_NE = self._vectors(texts[start : start + chunk_size], options, report, prompt)
            there_N = found_NE.any(1)
            if there_N.all():
                yield self.defence.apply(found_NE)
                continue
            # A text in which a static model knows no word: nothing to defend.
            found_NF = np.zeros((len(found_NE), self.get_embedding_dimension()), np.float32)
            if there_N.any():
                found_NF[there_N] = self.defence.apply(found_NE[there_N])
            yield found_NF

    def _vectors(
        self,
        texts: list[str],
        options: RunOptions | None,
        report: EncodeReport | None,
        prompt: PromptChoice,
    ) -> np.ndarray:
        key = tuple(sorted(prompt.items(), key=str))
        new = [each for each in dict.fromkeys(texts) if (key, each) not in self.memo]
        if new:
            found = self.model.encode_iter(new, options=options, report=report, **prompt)
            for text, vector in zip(new, np.concatenate(list(found)), strict=True):
                self.memo[key, text] = vector
        return np.stack([self.memo[key, text] for text in texts])

    def similarity(self, a: Any, b: Any) -> Any:
        return similarity_matrix(torch.as_tensor(a), torch.as_tensor(b), "cosine")

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        return similarity_pairs(torch.as_tensor(a), torch.as_tensor(b), "cosine")

    def get_embedding_dimension(self) -> int:
        probe = np.ones((1, self.model.get_embedding_dimension()), np.float32)
        return int(self.defence.apply(probe).shape[1])

    def fingerprint(self) -> str:
        """Of the model, the defence and what it makes of a probe: what it was fitted on counts."""
        if isinstance(self.defence, Nothing):
            return self.model.fingerprint()
        size = self.model.get_embedding_dimension()
        probe = np.random.default_rng(0).standard_normal((2, size)).astype(np.float32)
        said = json.dumps(self.defence.settings(), sort_keys=True, default=str)
        digest = hashlib.sha256(f"{self.model.fingerprint()}{type(self.defence)}{said}".encode())
        digest.update(np.round(self.defence.apply(probe), 4).tobytes())
        return digest.hexdigest()

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.model.prompts

    def takes_instruction(self, role: str | None = None) -> bool:
        return self.model.takes_instruction(role)

    def takes_prompt(self, role: str | None = None) -> bool:
        return self.model.takes_prompt(role)

    def prompt_key(
        self, prompt: str | None = None, prompt_name: str | None = None, role: str | None = None
    ) -> tuple[str | None, ...]:
        return self.model.prompt_key(prompt, prompt_name, role)

    @property
    def max_seq_length(self) -> int | None:
        return self.model.max_seq_length


class MappedBack(Defence):
    """What an attacker makes of defended vectors: in the undefended space, by a fitted map."""

    def __init__(self, defence: Defence, back: SpaceMap) -> None:
        self.defence, self.back = defence, back

    def _apply(self, vectors_NE: np.ndarray) -> np.ndarray:
        return self.back.transform(self.defence.apply(vectors_NE))

    def settings(self) -> dict[str, Any]:
        return self.defence.settings()
