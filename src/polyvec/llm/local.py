"""A Hugging Face model on this machine as a language model: batched, its keys and values kept."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyvec.embed.backbone.backbone import token_ids
from polyvec.embed.backbone.causal import CausalModel
from polyvec.embed.backbone.decoding import Decoder, Request
from polyvec.embed.backbone.drawing import Drawing
from polyvec.embed.backbone.likelihood import log_probabilities
from polyvec.embed.formats.devices import best_device, check_device
from polyvec.embed.formats.sources import model_folder
from polyvec.embed.formats.tokenizer import load_tokenizer
from polyvec.embed.formats.transformer import (
    check_dtype,
    chosen_dtype,
    is_masked,
    load_config,
    load_transformer,
)
from polyvec.embed.inputs.contract import check_count, check_rows
from polyvec.errors import GenerationError, InputError, ModelError
from polyvec.llm.answers import Answer, Completion, GenerationSettings
from polyvec.llm.constraint import TokenConstraint, compile_schema
from polyvec.llm.identity import model_hash
from polyvec.llm.language_model import LanguageModel
from polyvec.llm.prompt_tokens import PromptTokens
from polyvec.llm.prompts import Prompt
from polyvec.llm.schema import with_value

HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class LocalLanguageModel(LanguageModel):
    """A decoder of transformers and its tokenizer; `load` finds both by a name.

    Plain prompts are sent as they are, chats by the model's chat template (see PromptTokens). In
    float32 an answer is the same alone, in any batch and in another process on the same machine;
    in half precision, rounding changes many. A prompt that is longer than the context gives
    a completion with `error`; an answer that reaches the context's end is cut ("length").
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        identity: str,
        batch_size: int = 32,
        batch_tokens: int = 16384,
        prompt_price: float | None = None,
        new_price: float | None = None,
    ) -> None:
        super().__init__()
        check_count("batch_size", batch_size)
        check_count("batch_tokens", batch_tokens)
        self.name, self._identity = name, identity
        self.model, self.tokens = CausalModel(model), PromptTokens(tokenizer, name)
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.usage.prompt_price, self.usage.new_price = prompt_price, new_price
        config = getattr(model, "generation_config", None)
        found = [getattr(each, "eos_token_id", None) for each in (config, self.model.config)]
        self.ends = frozenset().union(*map(token_ids, [*found, tokenizer.eos_token_id]))

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        cache_folder: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> "LocalLanguageModel":
        """The model of a folder, hub id or GGUF file, or "polyvec/nano-lm".

        `dtype`: "float32" unless another is named; "auto" is that of the file. `options` are
        batch_size, batch_tokens (rows, and tokens of prompts and answers, at a time), prompt_price
        and new_price (per million tokens). Raises ModelError for what does not write.
        """
        root = model_folder(
            name,
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            token=token,
            namespace=None,
            trust_remote_code=trust_remote_code,
        )
        where = check_device(device or best_device())
        kind = chosen_dtype(dtype, None, root)
        config = load_config(root, trust_remote_code)
        check_writes(config, str(name))
        tokenizer = load_tokenizer(root, trust_remote_code)
        number_type = check_dtype(kind, str(where))
        model = load_transformer(root, number_type, trust_remote_code, kind="lm").to(where)
        check_rows(tokenizer, len(model.get_input_embeddings().weight), where=str(name))
        identity = model_hash(
            [root],
            config=_settings(config),
            tokenizer=tokenizer.backend_tokenizer.to_str(),
            chat_template=tokenizer.chat_template,
            generation=model.generation_config.eos_token_id,
            dtype=kind,
        )
        return cls(model, tokenizer, name=str(name), identity=identity, **options)

    @property
    def identity(self) -> str:
        return f"local:{self._identity}"

    @property
    def takes_chats(self) -> bool:
        return bool(self.tokens.tokenizer.chat_template)

    def count_tokens(self, prompts: Sequence[Prompt]) -> int:
        named = enumerate(prompts)
        return sum(len(self.tokens.of_prompt(each, f"prompts[{i}]")) for i, each in named)

    def stream_checked(
        self, prompts: Sequence[Prompt], settings: GenerationSettings
    ) -> Iterator[tuple[int, Completion]]:
        constraint = self._constraints(settings)
        ends = self.ends | {
            i for stop in settings.stop if (i := self.tokens.token(stop)) is not None
        }
        decoder = Decoder(
            self.model, ends, batch_size=self.batch_size, batch_tokens=self.batch_tokens
        )
        places: dict[Request, tuple[int, int]] = {}
        for number, prompt in enumerate(prompts):
            ids = self._ids(prompt, number)
            for turn in range(settings.n):
                request = self._request(ids, settings, turn, constraint)
                places[request] = number, turn
        found: dict[int, dict[int, Request]] = {}
        for request in decoder.decode(places):
            number, turn = places[request]
            done = found.setdefault(number, {})
            done[turn] = request
            if len(done) == settings.n:
                yield number, self._completion([done[i] for i in range(settings.n)], settings)
                del found[number]

    def _ids(self, prompt: Prompt, number: int) -> tuple[int, ...]:
        ids = self.tokens.of_prompt(prompt, f"prompts[{number}]")
        if not ids:
            raise InputError(f"prompts[{number}] has no tokens for {self.name}")
        return ids

    def _constraints(self, settings: GenerationSettings) -> Any:
        if settings.schema is None:
            return lambda: None
        return compile_schema(
            settings.schema, self.tokens.tokenizer, self.model.num_logits, self.ends
        )

    def _request(
        self, ids: tuple[int, ...], settings: GenerationSettings, turn: int, constraint: Any
    ) -> Request:
        digest = hashlib.sha256(f"{settings.seed} {turn} {ids}".encode()).digest()
        drawing = Drawing(
            settings.temperature,
            settings.top_p,
            seed=int.from_bytes(digest[:8], "big") >> 1,
        )
        made: TokenConstraint | None = constraint()
        stops = settings.stop
        ended = (lambda new: self._place(new, stops) is not None) if stops else None
        return Request(ids, settings.max_new_tokens, drawing, ended, made)

    def _place(self, new_ids: Sequence[int], stops: Sequence[str]) -> int | None:
        """Where the first of the stops begins in the text of these tokens."""
        text = self.tokens.text(new_ids)
        return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)

    def _completion(self, requests: list[Request], settings: GenerationSettings) -> Completion:
        prompt_tokens, context = len(requests[0].ids), self.model.context
        if context is not None and prompt_tokens >= context:
            prompt_tokens = 0  # it was not read
        error = next((each.error for each in requests if each.error is not None), None)
        if error is not None:
            return Completion((), prompt_tokens, error=f"{self.name}: {error}")
        answers = tuple(self._answer(each, settings) for each in requests)
        return Completion(answers, prompt_tokens)

    def _answer(self, request: Request, settings: GenerationSettings) -> Answer:
        assert request.finish is not None
        text = self.tokens.text(request.new_ids)
        text = text[: self._place(request.new_ids, settings.stop)]
        return with_value(Answer(text, request.finish, request.drawn), settings.schema)

    def logprobs_checked(
        self, prompts: Sequence[Prompt], continuations: Sequence[str]
    ) -> list[np.ndarray]:
        asked = [self._ids(prompt, number) for number, prompt in enumerate(prompts)]
        wanted = [self.tokens.of_text(text) for text in continuations]
        for number, (prompt, more) in enumerate(zip(asked, wanted, strict=True)):
            if not more:
                raise InputError(f"continuations[{number}] has no tokens for {self.name}")
            length, context = len(prompt) + len(more), self.model.context
            if context is not None and length > context:
                raise GenerationError(
                    f"prompts[{number}] and its continuation have {length} tokens, {self.name} "
                    f"reads {context}; shorten the prompt"
                )
        return log_probabilities(self.model, asked, wanted)


def check_writes(config: Any, name: str) -> None:
    """Raises ModelError for a checkpoint without the head of a decoder."""
    named = ", ".join(config.architectures or ())
    if config.is_encoder_decoder:
        raise ModelError(f"{name}: an encoder-decoder ({named}); only decoders write here")
    if is_masked(config) or (named and not any(head in named for head in HEADS)):
        raise ModelError(
            f"{name}: {named or config.model_type} has no head that writes; give a causal "
            "language model (ForCausalLM)"
        )


def _settings(config: Any) -> dict[str, Any]:
    """What config.json says, without where it lies and who wrote it."""
    settings: dict[str, Any] = config.to_diff_dict()
    return {k: v for k, v in settings.items() if k not in ("_name_or_path", "transformers_version")}
