"""Variants of a text, written by a language model: their vectors are averaged with the text's.

GenEOL (Thirukovalluru and Dhingra 2024, arXiv:2410.14635): meaning-preserving rewritings level
out what is peculiar to one wording.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Annotated, Any

import torch

from polyvec.embed.backbone.attention import NAME
from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.backbone.runners import set_attention
from polyvec.embed.part import one_of
from polyvec.errors import ModelError, SettingsError
from polyvec.registry import Fact

# What is asked, with one worked example each, so that a base model can follow; the four
# transformations are the paper's, the wording is ours.
TRANSFORMS = {
    "paraphrase": (
        'Sentence: "A man is playing a guitar." In other words: "A guitar is being played by '
        'a man."\nSentence: "{text}" In other words: "'
    ),
    "restructure": (
        'Sentence: "The boy ran home after school." In another order: "After school, the boy ran '
        'home."\nSentence: "{text}" In another order: "'
    ),
    "entail": (
        'Sentence: "Two dogs are running across a field." It follows that: "Animals are running."\n'
        'Sentence: "{text}" It follows that: "'
    ),
    "summarize": (
        'Sentence: "The woman, who was tired, sat down on a chair." In short: "A tired woman sat '
        'down."\nSentence: "{text}" In short: "'
    ),
}


class TextVariants:
    """Writes `num_variants` variants of a text, by the transformations in turn.

    Sampled at `temperature` from a seed of the text and `seed`: the variants of a text depend
    on nothing else. With `num_variants` 0 a text is only itself.
    """

    def __init__(
        self,
        backbone: Annotated[Backbone, Fact("backbone")],
        tokenizer: Annotated[Any, Fact("tokenizer")],
        *,
        num_variants: int = 2,
        transforms: tuple[str, ...] = ("paraphrase", "restructure", "entail", "summarize"),
        temperature: float = 0.7,
        max_new_tokens: int = 32,
        seed: int = 0,
    ) -> None:
        for name in transforms:
            one_of("variants: transform", name, TRANSFORMS)
        if num_variants < 0 or temperature <= 0 or max_new_tokens < 1 or not transforms:
            raise SettingsError(
                f"variants: num_variants {num_variants} must be 0 or more, temperature "
                f"{temperature} above 0, max_new_tokens {max_new_tokens} 1 or more"
            )
        if backbone.lm is None:
            raise ModelError("variants are written by a language model, loaded without its head")
        self.backbone, self.tokenizer = backbone, tokenizer
        self.num_variants, self.transforms = num_variants, tuple(transforms)
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed

    def settings(self) -> dict[str, Any]:
        """The arguments that make this writer again."""
        names = ("num_variants", "transforms", "temperature", "max_new_tokens", "seed")
        values = {name: getattr(self, name) for name in names}
        return {**values, "transforms": list(self.transforms)}

    def of(self, text: str) -> list[str]:
        """The variants; one that came out empty is the text itself."""
        return [self._written(text, number) for number in range(self.num_variants)]

    def _written(self, text: str, number: int) -> str:
        form = TRANSFORMS[self.transforms[number % len(self.transforms)]]
        ids = self.tokenizer(form.replace("{text}", text), return_tensors="pt").input_ids
        ids = ids.to(self.backbone.device)
        digest = hashlib.sha256(f"{self.seed} {number} {text}".encode()).digest()
        with writing(self.backbone), torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest[:8], "big"))
            out = self.backbone.lm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                do_sample=True,
                temperature=self.temperature,
                pad_token_id=self.backbone.pad_id,
            )
        words = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return words.split('"')[0].split("\n")[0].strip() or text


@contextlib.contextmanager
def writing(backbone: Backbone) -> Iterator[None]:
    """While inside, the model runs by itself and causally, as it was trained to write."""
    model = backbone.model
    config, own = model.config.get_text_config(), model.config._attn_implementation
    declared = getattr(config, "is_causal", None)
    if own == NAME:
        set_attention(model, "sdpa") or set_attention(model, "eager")
    if declared is False:
        config.is_causal = True
    try:
        yield
    finally:
        if declared is False:
            config.is_causal = False
        if own == NAME:
            set_attention(model, own)
