"""A model of mteb as our TextEncoder: for index, search and our protocols."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Unpack

import numpy as np
import torch
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType
from torch.utils.data import DataLoader, Dataset

from polyvec.embed.encoding import check_texts
from polyvec.errors import InputError, ModelError
from polyvec.interfaces import CHUNK_SIZE, EncodeReport, PromptChoice, RunOptions, TextEncoder

BATCH_SIZE = 32  # mteb's default


class MtebModel(TextEncoder):
    """A model that `mteb.get_model` returns, or anything else with mteb's EncoderProtocol.

    It has its own prompts for queries and documents. mteb's interface takes no other prompts and
    does not report truncated texts. `fingerprint` identifies the weights if the model's metadata
    has no revision.

    >>> import mteb  # doctest: +SKIP
    >>> model = MtebModel(mteb.get_model("intfloat/e5-small-v2"))  # doctest: +SKIP
    """

    def __init__(self, model: EncoderProtocol, *, fingerprint: str | None = None) -> None:
        meta = model.mteb_model_meta
        revision = fingerprint or (meta.revision if meta is not None else None)
        if not revision or revision == "no_revision_available":
            raise InputError("the mteb model has no revision; pass fingerprint=, which names it")
        self.model = model
        self._fingerprint = f"{meta.name if meta is not None else ''} {revision}"
        function = meta.similarity_fn_name if meta is not None else None
        # Other functions, such as late interaction, are scored by the model itself.
        self.similarity_fn_name = str(ScoringFunction(function or "custom").value)
        declared = meta.embed_dim if meta is not None else None
        # None, or a list for models with several dimensions: then one vector shows it.
        self._dimension = (
            declared
            if isinstance(declared, int)
            else int(self._encoded(["a"], None, BATCH_SIZE).shape[1])
        )

    def encode_iter(
        self,
        inputs: Iterable[str],
        *,
        chunk_size: int = CHUNK_SIZE,
        options: RunOptions | None = None,
        report: EncodeReport | None = None,
        **prompt: Unpack[PromptChoice],
    ) -> Iterator[np.ndarray]:
        """Float32 arrays [at most `chunk_size`, E], in order.

        Raises InputError for a prompt, which a model of mteb does not take, and for what is not
        a text.
        """
        if prompt.get("prompt") is not None or prompt.get("prompt_name") is not None:
            raise InputError("a model of mteb chooses its prompt by the role; remove prompt=")
        check_texts(inputs)
        if chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
        size = (options.batch_size if options else None) or BATCH_SIZE
        start, rest = 0, iter(inputs)
        while texts := list(islice(rest, chunk_size)):
            for index, text in enumerate(texts, start=start):
                if not isinstance(text, str):
                    raise InputError(f"text {index} is {type(text).__name__}, not a string")
            if report is not None:
                report.num_texts += len(texts)
            yield self._encoded(texts, prompt.get("role"), size)
            start += len(texts)

    def similarity(self, a: Any, b: Any) -> torch.Tensor:
        """The model's similarity of every vector in `a` to every one in `b`, [N, M]."""
        return torch.as_tensor(self.model.similarity(torch.as_tensor(a), torch.as_tensor(b)))

    def similarity_pairwise(self, a: Any, b: Any) -> torch.Tensor:
        """The model's similarity of each vector in `a` to the one beside it in `b`, [N]."""
        found = self.model.similarity_pairwise(torch.as_tensor(a), torch.as_tensor(b))
        return torch.as_tensor(found)

    def get_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        return self._dimension

    def fingerprint(self) -> str:
        """sha256 of the model's name and revision."""
        return hashlib.sha256(self._fingerprint.encode()).hexdigest()

    def _encoded(self, texts: list[str], role: str | None, batch_size: int) -> np.ndarray:
        side = PromptType(role) if role else None
        found = self.model.encode(
            DataLoader(_Texts(texts), batch_size=batch_size),
            task_metadata=_task("Retrieval" if role else "STS"),
            hf_split="test",
            hf_subset="default",
            prompt_type=side,
            batch_size=batch_size,
        )
        vectors = found.float().cpu().numpy() if isinstance(found, torch.Tensor) else found
        vectors_NE = np.asarray(vectors, np.float32)
        if vectors_NE.shape[:-1] != (len(texts),):
            raise ModelError(f"vectors of shape {vectors_NE.shape} for {len(texts)} texts")
        return vectors_NE


class _Texts(Dataset[Any]):
    """Texts as mteb's rows; the loader's default collation makes {"text": [...]} of a batch."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"text": self.texts[index]}


def _task(kind: str) -> TaskMetadata:
    """Models of mteb choose their prompts by a task; this one is like no official task."""
    return TaskMetadata(
        name="LocalTexts",
        description="Texts outside any task.",
        dataset={"path": "local/texts", "revision": "1"},
        type=kind,  # type: ignore[arg-type]
        category="t2t",
        eval_langs=["eng-Latn"],
        main_score="none",
    )
