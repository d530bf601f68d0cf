"""A model behind an API as an embedder. N texts, E numbers a vector."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from polyvec.embed.encode_methods import Finish
from polyvec.embed.encoding import check_text, check_texts
from polyvec.embed.inputs.contract import check_count
from polyvec.embed.progress import progress
from polyvec.embed.projection.quantization import Calibration, quantize, truncate
from polyvec.embed.projection.similarity import similarity_matrix, similarity_pairs
from polyvec.errors import (
    InputError,
    ModelError,
    SettingsError,
    known,
)
from polyvec.interfaces import (
    CHUNK_SIZE,
    ROLES,
    EncodeReport,
    Prompt,
    PromptChoice,
    RunOptions,
    TextEncoder,
    Truncate,
)
from polyvec.llm.answers import Usage
from polyvec.llm.server.limits import RateLimiter
from polyvec.services.batches import Budget
from polyvec.services.client import Client
from polyvec.services.fetching import Fetcher, Work
from polyvec.services.providers import Provider
from polyvec.services.runs import Run
from polyvec.services.shapes import Asked, Reply
from polyvec.services.store import VectorStore, folder_of, text_key

FORMAT = 1  # of fingerprints
PROBE = "a"  # whose vector shows how many dimensions there are
LEDGER = "ledger.jsonl"
MAX_COST, MAX_TOKENS = "POLYVEC_MAX_COST", "POLYVEC_MAX_TOKENS"


@dataclass(frozen=True, slots=True)
class Said:
    """What a request says of its texts: a prefix of each, and the value of the role's field."""

    prefix: str = ""
    task: str = ""


class ServiceEmbedder(TextEncoder):
    """A model of OpenAI, Google, Amazon, Alibaba, Voyage or Cohere, or of any server that speaks
    OpenAI's API. `Embedder.from_pretrained("openai:text-embedding-3-small")` makes one.

    Vectors that were paid for are kept on disk and never asked for again. Each run that asks for
    some is a line in a ledger. Requests that fail for a while (408, 409, 429, 5xx, broken
    connections) are sent again, after the wait that the server asks for.

    A hosted model can change without notice. Where replies name a model, another name than before
    is an error; a change behind the same name cannot be seen, and `fingerprint` is the same.

    base_url: else what the provider's variable names (OPENAI_BASE_URL), else the provider's own.
    api_key: else the provider's variable, which goes only to its own servers and to the one of
        that URL's variable; POLYVEC_API_KEY goes to any.
    dimensions: asked of the API. truncate_dim: the first ones of its vectors, of length 1 again;
        costs nothing more, as whole vectors are kept.
    prompts: put before texts, by role ("query", "document") or by name, for servers whose API has
        no roles, such as {"query": "query: "}.
    cache: a folder, or False to keep nothing; by default services/ in POLYVEC_CACHE, else in the
        user's cache folder. Texts are not stored, only their hashes.
    ledger: a file; by default ledger.jsonl in the cache.
    max_cost, max_tokens: what this object may spend, in dollars or tokens; else POLYVEC_MAX_COST
        and POLYVEC_MAX_TOKENS. It stops before more is spent.
    price: dollars for a million tokens, in place of the table's.
    concurrency: requests at once.
    max_wait_s: a server that asks to wait longer is not waited for.
    """

    similarity_fn_name = "cosine"

    def __init__(
        self,
        provider: Provider,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        dimensions: int | None = None,
        truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        cache: str | Path | bool | None = None,
        ledger: str | Path | None = None,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        price: float | None = None,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout_s: float = 120.0,
        max_retries: int = 5,
        max_wait_s: float = 60.0,
    ) -> None:
        check_count("concurrency", concurrency)
        if dimensions is not None:
            check_count("dimensions", dimensions)
        self.provider, self.model, self.dimensions = provider, model, dimensions
        self.roles = provider.roles_of(model)
        self.client = Client(
            provider,
            base_url,
            api_key,
            RateLimiter(requests_per_minute, tokens_per_minute),
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_wait_s=max_wait_s,
        )
        self.name = f"{provider.name}:{model}"
        if not provider.url:
            self.name = f"{self.client.base_url}#{model}"
        self.own_prompts = dict(prompts or {})
        if price is None and self.client.is_own:
            price = provider.prices.get(model)
        self.usage = Usage(prompt_price=price)
        cost, tokens = _number(MAX_COST, max_cost), _number(MAX_TOKENS, max_tokens)
        self.budget = Budget(None if tokens is None else int(tokens), cost, price)
        folder = folder_of(cache)
        self.store = VectorStore(folder, json.dumps(self._identity()))
        self.is_own_ledger = ledger is not None
        self.ledger = folder / LEDGER if ledger is None and folder is not None else ledger
        self.fetcher = Fetcher(self.client, self.store, self.budget, self.name, concurrency)
        self.calibration: Calibration | None = None
        self._truncate_dim: int | None = None
        self.truncate_dim = truncate_dim

    def __repr__(self) -> str:
        return f"ServiceEmbedder({self.name!r})"

    def _identity(self) -> list[Any]:
        """Which model at which server; a provider's regions have the same."""
        server = "" if self.client.is_own else self.client.base_url
        return [self.provider.name, server, self.model, self.dimensions]

    # ---- texts ------------------------------------------------------------------------------

    def encode_iter(
        self,
        inputs: Iterable[str],
        *,
        chunk_size: int = CHUNK_SIZE,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        precision: str = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        calibration: Calibration | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> Iterator[np.ndarray]:
        """Arrays [at most `chunk_size`, E], in order, in bounded memory.

        The report counts the tokens that were paid for, 0 where the API does not count them; it
        has no truncated texts, as no API tells. `truncate="error"` is asked of those that can
        refuse long texts; OpenAI, Amazon and Alibaba refuse them always. Raises InputError, naming
        the index, for what is not a text or is empty, and ServiceError if the API gives no
        vectors.
        """
        check_texts(inputs)
        check_count("chunk_size", chunk_size)
        finish: Finish = {
            "precision": precision,  # type: ignore[typeddict-item]
            "normalize_embeddings": normalize_embeddings,
            "truncate_dim": truncate_dim,
            "calibration": calibration,
        }
        said = self._said(**prompt)
        report = EncodeReport() if report is None else report
        report.prompt = Prompt(prompt.get("prompt_name"), said.prefix, prompt.get("role"))
        return self._chunks(inputs, said, chunk_size, options or RunOptions(), report, finish)

    def _chunks(
        self,
        inputs: Iterable[str],
        said: Said,
        size: int,
        options: RunOptions,
        report: EncodeReport,
        finish: Finish,
    ) -> Iterator[np.ndarray]:
        total = len(inputs) if isinstance(inputs, Sequence) else options.num_texts
        self.store.refresh()
        numbered = enumerate(inputs)
        with (
            Run(
                self.usage,
                self.ledger,
                self.name,
                f"{self.client.base_url}#{self.model}",
                is_optional=not self.is_own_ledger,
            ) as run,
            progress(total, options.show_progress_bar) as advance,
        ):
            while part := list(itertools.islice(numbered, size)):
                indices = [index for index, _ in part]
                texts = [said.prefix + check_text(text, index) for index, text in part]
                vectors_NE = self._vectors(texts, indices, said, options, report, run, advance)
                report.num_texts += len(texts)
                yield self._finished(vectors_NE, **finish)

    def _vectors(
        self,
        texts: Sequence[str],
        indices: Sequence[int],
        said: Said,
        options: RunOptions,
        report: EncodeReport,
        run: Run,
        advance: Callable[[float], None],
    ) -> np.ndarray:
        """The API's vectors of a chunk, those of the cache included."""
        first: dict[str, int] = {}
        for place, text in enumerate(texts):
            if not text and self.provider.url:
                raise InputError(
                    f"inputs[{indices[place]}] is empty, which APIs refuse: leave it out"
                )
            first.setdefault(text, place)
        strict = options.truncate == "error" and self.provider.truncation is not None
        asked = Asked(self.model, self.dimensions, said.task, strict)
        unique = list(first)
        keys = [text_key([said.task, strict], text) for text in unique]
        dimension = self.store.facts.get("dimension")
        found = self.store.get(keys, dimension) if isinstance(dimension, int) else {}
        advance(len(texts) - len(unique) + len(found))
        run.usage.prompts += len(texts)
        run.usage.cached += len(texts) - len(unique) + len(found)
        missing = [place for place in range(len(unique)) if place not in found]

        def told(num_texts: int, reply: Reply) -> None:
            run.add(reply.tokens or 0)
            report.num_tokens += reply.tokens or 0
            report.num_computed_tokens += reply.tokens or 0
            advance(num_texts)

        if missing:
            run.open()
            work = Work(
                [unique[place] for place in missing],
                [keys[place] for place in missing],
                [indices[first[unique[place]]] for place in missing],
                asked,
                options.batch_size,
                told,
            )
            for batch, vectors_BE in self.fetcher.fetch(work):
                found.update(zip((missing[row] for row in batch), vectors_BE, strict=True))
        place_of = {text: place for place, text in enumerate(unique)}
        return np.stack([found[place_of[text]] for text in texts])

    def encode(
        self,
        inputs: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        role: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        truncate: Truncate = "warn",
        convert_to_tensor: bool = False,
        **finish: Any,
    ) -> Any:
        """Vectors [N, E], or [E] for a single string; options as `Embedder.encode`'s."""
        single = isinstance(inputs, str)
        rows: Iterable[str] = [inputs] if isinstance(inputs, str) else inputs
        chunks = self.encode_iter(
            rows,
            options=RunOptions(batch_size, show_progress_bar=show_progress_bar, truncate=truncate),
            prompt=prompt,
            prompt_name=prompt_name,
            role=role,
            **finish,
        )
        found = list(chunks) or [self._finished(self._none(), **finish)]
        out = np.concatenate(found)
        out = out[0] if single else out
        return torch.as_tensor(out) if convert_to_tensor else out

    def calibrate(self, inputs: Iterable[str], **encode_options: Any) -> Calibration:
        """Measure and keep the ranges that int8 and uint8 need, from a sample of texts."""
        self.calibration = Calibration.of(self.encode(list(inputs), **encode_options))
        return self.calibration

    def _finished(
        self,
        vectors_NE: np.ndarray,
        *,
        precision: Any = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        calibration: Calibration | None = None,
    ) -> np.ndarray:
        dim = self.truncate_dim if truncate_dim is None else truncate_dim
        found_NE = truncate(torch.from_numpy(vectors_NE), dim, renormalize=True)
        if normalize_embeddings or (self.provider.renormalize and self.dimensions is not None):
            found_NE = torch.nn.functional.normalize(found_NE, dim=-1)
        return quantize(found_NE.numpy(), precision, calibration or self.calibration)

    def _none(self) -> np.ndarray:
        return np.empty((0, self.full_dimension), np.float32)

    # ---- what it is -------------------------------------------------------------------------

    @property
    def truncate_dim(self) -> int | None:
        """The dimensions that are kept of the API's; None for all."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        if value is not None:
            check_count("truncate_dim", value)
        self._truncate_dim = value

    @property
    def full_dimension(self) -> int:
        """Numbers in the API's vectors: learnt from a reply, and remembered in the cache."""
        return int(str(self._facts()["dimension"]))

    def get_embedding_dimension(self) -> int:
        """Numbers in a vector. Costs a request of one token if the cache has no vector."""
        full = self.full_dimension
        if self.truncate_dim is not None and self.truncate_dim > full:
            raise InputError(f"truncate_dim {self.truncate_dim} is not between 1 and {full}")
        return self.truncate_dim or full

    def fingerprint(self) -> str:
        """sha256 of provider, server, model, the name that replies give it, and roles.

        Not of weights, which nobody can see: the provider may change them under the same name.
        """
        roles = [self.roles.parameter, sorted(self.roles.values.items()), self.roles.default]
        facts = self._facts()
        said = [FORMAT, self._identity(), facts["dimension"], facts.get("model"), roles]
        said += [sorted(self.own_prompts.items()), self.truncate_dim]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def _facts(self) -> Mapping[str, Any]:
        if not self.store.facts:
            for _ in self.encode_iter([PROBE], options=RunOptions(show_progress_bar=False)):
                pass
        return self.store.facts

    def similarity(self, a: Any, b: Any) -> torch.Tensor:
        """Cosine of every vector in `a` and every one in `b`, [N, M]."""
        return similarity_matrix(torch.as_tensor(a), torch.as_tensor(b), "cosine")

    def similarity_pairwise(self, a: Any, b: Any) -> torch.Tensor:
        """Cosine of each vector in `a` and the one beside it in `b`, [N]."""
        return similarity_pairs(torch.as_tensor(a), torch.as_tensor(b), "cosine")

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prefixes by name; "" for what the API says by a field of its own."""
        has_field = self.roles.parameter is not None
        api = {name: "" if has_field else text for name, text in self.roles.values.items()}
        return {**api, **self.own_prompts}

    def takes_prompt(self, role: str | None = None) -> bool:
        return True

    def prompt_key(
        self, prompt: str | None = None, prompt_name: str | None = None, role: str | None = None
    ) -> tuple[str | None, ...]:
        """What is put before texts, or the field that says what they are for; then both apart."""
        said = self._said(prompt, prompt_name, role)
        shown = f"{self.roles.parameter}={said.task}" if said.task else ""
        return said.prefix or shown, said.prefix, said.task

    def _said(
        self, prompt: str | None = None, prompt_name: str | None = None, role: str | None = None
    ) -> Said:
        if role is not None and role not in ROLES:
            raise InputError(f"role {role!r} is not known.{known(role, ROLES)}")
        if prompt_name is not None and prompt_name not in self.prompts:
            raise InputError(
                f"prompt_name {prompt_name!r} is not known.{known(prompt_name, self.prompts)}"
            )
        names = [name for name in (prompt_name, role) if name is not None]
        value = next((self.roles.values[n] for n in names if n in self.roles.values), None)
        value = self.roles.default if value is None else value
        own = next((self.own_prompts[name] for name in names if name in self.own_prompts), None)
        prefix = own if prompt is None else Prompt(text=prompt).text
        if self.roles.parameter is not None:
            return Said(prefix or "", value)
        return Said(value if prefix is None else prefix)

    def settings(self) -> dict[str, Any]:
        """All that decides a vector here, as plain values."""
        return {
            "model": self.name,
            "base_url": self.client.base_url,
            "reported_model": self.store.facts.get("model"),
            "dimensions": self.dimensions,
            "truncate_dim": self.truncate_dim,
            "prompts": self.own_prompts,
        }

    def described(self) -> list[str]:
        """Where it is, what it costs and where vectors are kept, a line each."""
        price = self.usage.prompt_price
        cost = "price not known" if price is None else f"{price:g} dollars a million tokens"
        return [
            f"{self.name} at {self.client.base_url}, {cost}",
            f"vectors kept in {self.store.folder or 'memory only'}; ledger {self.ledger or 'none'}",
        ]

    def save_pretrained(self, path: str | Path) -> None:
        """Raises ModelError: there is nothing here to save."""
        raise self._has_no_weights("cannot be saved")

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Raises ModelError: there is nothing here to upload."""
        raise self._has_no_weights("cannot be uploaded")

    def _has_no_weights(self, what: str) -> ModelError:
        return ModelError(
            f"{self.name} {what}: its weights are behind an API; name it where it is used, or take "
            "a model of this machine"
        )


def _number(variable: str, given: float | None) -> float | None:
    """The option, else the variable's number."""
    text = os.environ.get(variable, "").strip()
    if given is not None or not text:
        return given
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{variable}={text!r} is not a number") from None
