"""SoftCompressor: an encoder that makes memories of contexts, and a decoder that reads them."""

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyvec.compress.inputs import texts_and_questions
from polyvec.compress.soft import storing
from polyvec.compress.soft.decoder import Asked, leading, prompt_parts, token_ids
from polyvec.compress.soft.encoding import NOTHING, Context, Encoder
from polyvec.compress.soft.memory import Memory, MemoryBatch, batched, unbatched
from polyvec.compress.soft.parts import WHERE, build_connector, build_decoder
from polyvec.compress.soft.probe import check_memory
from polyvec.compress.soft.reading import Rows
from polyvec.compress.soft.settings import ANSWER, PROMPTS, CompressorSettings, check
from polyvec.compress.soft.table import MEMORIES
from polyvec.compress.soft.writing import write
from polyvec.embed.embedder import Embedder
from polyvec.embed.fingerprints import Fingerprints
from polyvec.errors import InputError, ModelError, TruncationWarning, known
from polyvec.recipe import plain

# Kinds whose vectors have the decoder's size whatever the encoder's is.
OWN_SIZE = ("soft", "vector")


class SoftCompressor(nn.Module):
    """Compresses contexts to vectors, and answers from them.

    encoder: an embedder, whose backbone reads contexts (or whose vectors are the source, with
    memory "vector"). The stages of a recipe train it as they train an embedder; `projections` are
    the parts beside the backbone.

    >>> import polyvec
    >>> from polyvec.compress.soft.settings import CompressorSettings
    >>> encoder = polyvec.load_recipe("causal-last").build("nano")
    >>> compressor = SoftCompressor(encoder, CompressorSettings("slots", {"num": 4}))
    >>> (memory,) = compressor.compress(["It was a dark and stormy night."])
    >>> len(memory), memory.num_context
    (4, 9)
    """

    # What stages of embedders ask for, and a compressor has not.
    routes: Mapping[str, Any] = {}
    pooling_module = layers = template = None
    needs: frozenset[str] = frozenset()

    def __init__(self, encoder: Embedder, settings: CompressorSettings) -> None:
        super().__init__()
        check(settings, WHERE)
        self.encoder, self.settings = encoder, settings
        self.decoder = build_decoder(encoder, settings)
        decoder_table = self.decoder.table.weight
        in_features = self.table.weight.shape[1]
        self.connector = build_connector(settings.connector, in_features, decoder_table)
        facts = {
            "table": self.table.weight,
            "hidden_size": encoder.backbone.hidden_size,
            "decoder_table": decoder_table,
            "vector_size": encoder.get_embedding_dimension(),
        }
        self.memory = MEMORIES.build(
            settings.memory, settings.memory_settings, facts, where=f"{WHERE} memory_settings"
        )
        self.to(encoder.device)
        if settings.carrier == "kv" and encoder.backbone.measured:
            check_memory(encoder.backbone)
        self._vectors: dict[str, Tensor] = {}
        self._fingerprints = Fingerprints()
        same_size = in_features == decoder_table.shape[1]
        if settings.connector == "none" and not same_size and settings.memory not in OWN_SIZE:
            raise ModelError(
                f"{WHERE}: the encoder's states have {in_features} dimensions, the decoder's "
                f"inputs {decoder_table.shape[1]}; set connector = 'linear' or 'mlp'"
            )

    # ---- as a stage sees it -----------------------------------------------------------------

    @property
    def backbone(self) -> Any:
        return self.encoder.backbone

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    @property
    def text_tokenizer(self) -> Any:
        return self.encoder.text_tokenizer

    @property
    def table(self) -> Any:
        return self.backbone.model.get_input_embeddings()

    @property
    def num_parameters(self) -> int:
        return sum(each.numel() for each in self.parameters())

    @property
    def projections(self) -> nn.ModuleList:
        """What stages train beside the backbone: memory, connector, tasks, and the decoder."""
        of_decoder = self.decoder.trained(self.settings.decoder_train)
        return nn.ModuleList([self.memory, self.connector, self.decoder.tasks, *of_decoder])

    def prompts(self, name: str) -> tuple[str, ...]:
        if name not in PROMPTS:
            raise InputError(f"prompt {name!r} is not known.{known(name, PROMPTS)}")
        given = self.settings.prompts.get(name, PROMPTS[name])
        return (given,) if isinstance(given, str) else tuple(given)

    # ---- memories ---------------------------------------------------------------------------

    def context(self, text: str, query: str | None = None) -> Context:
        """A text as the encoder reads it; longer ones are cut at max_context tokens."""
        most = self.settings.max_context
        query_ids = NOTHING
        if self.settings.query_aware:
            if not query:
                raise InputError("the compressor reads the question first; pass query")
            query_ids = token_ids(self.tokenizer, f"{query}\n")[:most]
        if self.settings.memory == "vector":
            return Context(token_ids(self.tokenizer, text), vectors_IE=self.vectors([text])[0])
        ids = token_ids(self.tokenizer, text)
        num_cut, ids = max(0, len(ids) - most), ids[:most]
        pieces: tuple[tuple[np.ndarray, bool], ...] = ()
        if hasattr(self.memory, "pieces"):
            found = [
                (token_ids(self.tokenizer, part), raw) for part, raw in self.memory.pieces(text)
            ]
            pieces = _limited(found, most)
        return Context(ids, query_ids, pieces=pieces, num_cut=num_cut)

    def vectors(self, texts: Sequence[str]) -> list[Tensor]:
        """The embedder's vector of each text, [1, E]; kept, since the embedder is frozen."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            found = self.encoder.encode(new, convert_to_numpy=False, show_progress_bar=False)
            for text, vector in zip(new, found, strict=True):
                self._vectors[text] = torch.as_tensor(np.asarray(vector.cpu()), dtype=torch.float32)
        return [self._vectors[text][None] for text in texts]

    def reader(self, rate: int | None = None) -> Encoder:
        """What the memory's kind reads with."""
        return Encoder(
            self.backbone,
            self.table,
            self.connector,
            kv=self.settings.carrier == "kv",
            prefix=leading(self.tokenizer),
            rate=rate,
        )

    def read(self, contexts: Sequence[Context], rate: int | None = None) -> MemoryBatch:
        """Memories of contexts in one batch, with gradient."""
        found: MemoryBatch = self.memory(self.reader(rate), contexts)
        return found

    @torch.no_grad()
    def compress(
        self,
        texts: Sequence[str],
        query: str | Sequence[str] | None = None,
        *,
        rate: int | None = None,
        batch_size: int = 16,
    ) -> list[Memory]:
        """A Memory of each text.

        query: one for all, or one for each. rate: tokens for each vector, of the kinds that take
        another one than they were trained with ("strided", "pooled", "beacons", slots with ratio).
        Warns of texts whose end is not read. Raises InputError for a blank text, and for one that
        is shorter than its memory.
        """
        texts, queries = texts_and_questions(texts, query)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected at least 1")
        self._check_rate(rate)
        self.eval()
        found: list[Memory] = []
        cut: dict[int, int] = {}
        for start in range(0, len(texts), batch_size):
            pairs = zip(texts[start:], queries[start : start + batch_size], strict=False)
            contexts = [self.context(text, question) for text, question in pairs]
            cut |= {place: each.num_cut for place, each in enumerate(contexts, start)}
            found += unbatched(self.read(contexts, rate), self.fingerprint())
        if long := [place for place, num in cut.items() if num]:
            warnings.warn(
                f"{len(long)} of {len(texts)} texts are longer than max_context, "
                f"{self.settings.max_context} tokens; the rest is not in the memory (first: text "
                f"{long[0]}, {cut[long[0]]} tokens)",
                TruncationWarning,
                stacklevel=2,
            )
        for place, memory in enumerate(found):
            if len(memory) > memory.num_context and self.settings.memory not in OWN_SIZE:
                raise InputError(
                    f"text {place} has {memory.num_context} tokens, its memory {len(memory)} "
                    "vectors: nothing is saved; use the text itself, or a smaller memory"
                )
        return found

    def _check_rate(self, rate: int | None) -> None:
        if rate is None:
            return
        if isinstance(rate, bool) or not isinstance(rate, Integral) or rate < 1:
            raise InputError(f"rate is {rate!r}, expected tokens for each vector, from 1")
        if not getattr(self.memory, "takes_rate", False):
            raise InputError(
                f"a memory of kind {self.settings.memory!r} has as many vectors as it was trained "
                "with; leave rate out"
            )

    def batch(self, memories: Sequence[Memory]) -> MemoryBatch:
        """Memories for this decoder; ModelError if another model made one."""
        if not memories:
            raise InputError("no memory is given")
        model = self.fingerprint()
        for each in memories:
            each.check(model)
            if each.sizes != self._sizes:
                raise ModelError(
                    f"the memory's {each.carrier} have sizes {each.sizes}, this model's "
                    f"{self._sizes}; compress the context again"
                )
        return batched(memories, self.device)

    @functools.cached_property
    def _sizes(self) -> tuple[int, ...]:
        """The sizes of a memory that do not depend on the context."""
        if self.settings.carrier == "hidden":
            return (self.decoder.table.weight.shape[1],)
        found = self.reader().read(rows := Rows(self.table), [rows.tokens([0])])
        pairs = found.pairs(torch.zeros(1, 1, dtype=torch.long, device=self.device))
        return (len(pairs), pairs[0][0].shape[1], pairs[0][0].shape[3])

    def fingerprint(self) -> str:
        """sha256 over settings, tokenizers and weights: the model that a Memory belongs to."""
        settings = plain(self.settings)
        return self._fingerprints.of(
            settings, self.decoder.tokenizer.backend_tokenizer, self.state_dict()
        )

    # ---- what the decoder does with them -----------------------------------------------------

    def asked(
        self, name: str, *, question: str = "", target: str = "", context: str | None = None,
        prompt: int = 0, end: bool = True,
    ) -> Asked:  # fmt: skip
        """A prompt of the settings by name, and the target behind it.

        context: a text in place of the memory; "" is the closed book.
        """
        prompts = self.prompts(name)
        tokenizer = self.decoder.tokenizer
        parts = prompt_parts(
            tokenizer, prompts[prompt % len(prompts)], task=name, question=question
        )
        ids = token_ids(tokenizer, target)[: self.settings.max_target]
        if end:
            ids = np.append(ids, self.decoder.end)
        given = None if context is None else token_ids(tokenizer, context)
        return Asked(parts, ids, given)

    @torch.no_grad()
    def generate(
        self,
        questions: Sequence[str],
        memories: Sequence[Memory] | None = None,
        *,
        contexts: Sequence[str] | None = None,
        max_tokens: int = 32,
        prompt: str = ANSWER,
    ) -> list[str]:
        """What the decoder writes after each memory and question, up to a line's end.

        contexts: texts in place of memories ("" is the closed book), as a control.
        """
        if (memories is None) == (contexts is None):
            raise InputError("pass either memories or contexts")
        texts: list[str | None] = [None] * len(questions) if contexts is None else [*contexts]
        if len(texts) != len(questions) or (memories and len(memories) != len(questions)):
            raise InputError("one memory or context is needed for each question")
        self.eval()
        asked = [
            self.asked(prompt, question=question, context=text)
            for question, text in zip(questions, texts, strict=True)
        ]
        memory = self.batch(memories) if memories is not None else None
        first_BV, advance = self.decoder.begin(asked, memory)
        found = write(
            first_BV,
            advance,
            self.decoder.tokenizer,
            max_tokens=max_tokens,
            stop=lambda text: "\n" in text.lstrip(),
        )
        return [text.strip().split("\n")[0] for text in found]

    @torch.no_grad()
    def score(
        self,
        prompt: str,
        targets: Sequence[str],
        memories: Sequence[Memory] | None = None,
        *,
        questions: Sequence[str] | None = None,
        contexts: Sequence[str] | None = None,
        end: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Of each target the mean log-probability of its tokens, and the share that is the argmax.

        end: whether the end of the text counts as one of them; a stage with `end = false` does not
        learn it. Teacher-forced, float32 [B] both.
        """
        self.eval()
        questions = [""] * len(targets) if questions is None else questions
        if (memories is None) == (contexts is None):
            raise InputError("pass either memories or contexts")
        given: Sequence[object] = contexts if memories is None else memories  # type: ignore[assignment]
        if not len(targets) == len(questions) == len(given):
            raise InputError("one question, and one memory or context, is needed for each target")
        texts: Iterable[str | None] = contexts if contexts is not None else [None] * len(targets)
        asked = [
            self.asked(prompt, question=question, target=target, context=text, end=end)
            for question, target, text in zip(questions, targets, texts, strict=True)
        ]
        memory = self.batch(memories) if memories is not None else None
        return self.scored(asked, memory)

    @torch.no_grad()
    def scored(self, asked: Sequence[Asked], memory: MemoryBatch | None) -> tuple[Tensor, Tensor]:
        """As `score`, of what is asked."""
        found = self.decoder.predict(asked, memory)
        logits_NV = self.decoder.logits(found.states_ND)
        chosen_N = logits_NV.gather(1, found.targets_N[:, None])[:, 0] - logits_NV.logsumexp(1)
        right_N = (logits_NV.argmax(1) == found.targets_N).float()
        counts_B = found.per_row(torch.ones_like(chosen_N), len(asked)).clamp(min=1)
        return (
            found.per_row(chosen_N, len(asked)) / counts_B,
            found.per_row(right_N, len(asked)) / counts_B,
        )

    @torch.no_grad()
    def verbalise(self, memory: Memory, top: int = 5) -> list[list[str]]:
        """The words nearest to each vector of a memory, by cosine with the decoder's table.

        Gist-COCO (arXiv:2402.16058) turns gists into prompts of words for other models.
        """
        if memory.carrier == "kv":
            raise InputError("keys and values are near no words; use carrier 'hidden'")
        states_BMD = self.batch([memory]).states_BMD
        assert states_BMD is not None
        table_VD = torch.nn.functional.normalize(self.decoder.table.weight.float(), dim=-1)
        near_MV = torch.nn.functional.normalize(states_BMD[0].float(), dim=-1) @ table_VD.T
        return [
            [self.decoder.tokenizer.decode([token]) for token in row]
            for row in near_MV.topk(top).indices.tolist()
        ]

    # ---- in and out -------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that `from_pretrained` reads; it is there whole or not at all."""
        storing.save(self, Path(path))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "SoftCompressor":
        """The compressor of a folder; DataError for a folder that is none."""
        found = cls(*storing.read(Path(path)))
        storing.restore(found, Path(path))
        return found.eval()


def _limited(
    pieces: Sequence[tuple[np.ndarray, bool]], most: int
) -> tuple[tuple[np.ndarray, bool], ...]:
    found, left = [], most
    for ids, raw in pieces:
        found.append((ids[:left], raw))
        left -= len(found[-1][0])
    return tuple(found)
