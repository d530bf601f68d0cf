"""Variants of a text, written by a language model; their vectors are averaged with the text's.

GenEOL (Thirukovalluru and Dhingra 2024, arXiv:2410.14635): meaning-preserving rewritings average
out what is peculiar to one wording.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from polyvec.embed.backbone.backbone import Backbone
from polyvec.embed.inputs.contract import bare
from polyvec.embed.part import one_of
from polyvec.errors import SettingsError
from polyvec.registry import Fact

if TYPE_CHECKING:
    from polyvec.embed.backbone.decoding import Request

# One request each, with a worked example so that a base model can follow. The four
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
    """Writes `num_variants` variants of a text, with the transformations in turn.

    Sampled at `temperature` from a seed made of the text and `seed`, so the variants of a text
    depend on nothing else. With `num_variants` 0 a text is only itself.
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
        # Here, since most embedders have none, and decoding needs transformers.
        from polyvec.embed.backbone.sampling import check_writes

        for name in transforms:
            one_of("variants: transform", name, TRANSFORMS)
        if num_variants < 0 or temperature <= 0 or max_new_tokens < 1 or not transforms:
            raise SettingsError(
                f"variants: num_variants {num_variants} must be 0 or more, temperature "
                f"{temperature} above 0, max_new_tokens {max_new_tokens} 1 or more, and "
                "transforms not empty"
            )
        check_writes(backbone)
        self.backbone, self.tokenizer = backbone, tokenizer
        # A private copy: calls of the Hugging Face tokenizer may change its truncation state.
        self._encoder = bare(tokenizer)
        self.num_variants, self.transforms = num_variants, tuple(transforms)
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make this writer again."""
        names = ("num_variants", "transforms", "temperature", "max_new_tokens", "seed")
        values = {name: getattr(self, name) for name in names}
        return {**values, "transforms": list(self.transforms)}

    def of(self, texts: Sequence[str]) -> list[list[str]]:
        """The variants of each text.

        An empty one is replaced by the text itself; so are those of a text that is too long.
        """
        from polyvec.embed.backbone.sampling import writer

        requests = [
            [self._request(text, number) for number in range(self.num_variants)] for text in texts
        ]
        flat = [request for each in requests for request in each]
        if flat:
            list(writer(self.backbone).decode(flat))
        return [
            [self._sentence(request) or text for request in each]
            for text, each in zip(texts, requests, strict=True)
        ]

    def _request(self, text: str, number: int) -> "Request":
        from polyvec.embed.backbone.decoding import Request
        from polyvec.embed.backbone.drawing import Drawing
        from polyvec.embed.backbone.sampling import TOP_K

        request = TRANSFORMS[self.transforms[number % len(self.transforms)]]
        ids = self._encoder.encode(request.replace("{text}", text)).ids
        digest = hashlib.sha256(f"{self.seed} {number} {text}".encode()).digest()
        seed = int.from_bytes(digest[:8], "big") >> 1  # of 63 bits
        drawing = Drawing(self.temperature, top_k=TOP_K, seed=seed)
        return Request(
            tuple(ids), self.max_new_tokens, drawing, lambda new: _is_closed(self._decoded(new))
        )

    def _sentence(self, request: "Request") -> str:
        return self._decoded(request.new_ids).split('"')[0].split("\n")[0].strip()

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _is_closed(written: str) -> bool:
    """Whether the sentence, opened by the request's last quotation mark, has ended."""
    return '"' in written or "\n" in written
