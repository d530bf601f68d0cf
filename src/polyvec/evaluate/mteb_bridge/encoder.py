"""An Embedder as mteb's encoder: DataLoaders in, float32 vectors out, named by its content."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from torch import Tensor

from polyvec.embed.embedder import Embedder
from polyvec.errors import InputError, SettingsError, known
from polyvec.evaluate.mteb_bridge.prompts import Choice, Source, choose, has_place
from polyvec.interfaces import RunOptions

BATCH_SIZE = 32  # what mteb passes where nobody asked for one
Instructions = Literal["slot", "text"]


@dataclass(frozen=True, slots=True)
class PromptUse:
    """Which prompt the texts of one call got, and how many were longer than the model reads."""

    task: str
    split: str
    subset: str
    role: str | None
    source: Source
    name: str | None
    text: str
    num_texts: int
    num_truncated: int


class MtebEncoder:
    """An Embedder that `mteb.evaluate` takes.

    Its revision is the hash of weights and settings, so that mteb's cache gives no checkpoint
    the score of another one; `name` only helps people, a folder's path is cut to its last part.
    Where texts bring instructions (FollowIR, InstructIR) a template that has a place for one
    reads them there ("slot"); with `instructions="text"`, and without such a template, they
    stand behind the text, as mteb joins them and its published scores have them.
    `uses` tells which prompt each call used.

    >>> import mteb  # doctest: +SKIP
    >>> mteb.evaluate(MtebEncoder(embedder), mteb.get_tasks(["SciFact"]))  # doctest: +SKIP
    """

    def __init__(
        self,
        embedder: Embedder,
        name: str | Path | None = None,
        *,
        instructions: Instructions = "slot",
    ) -> None:
        if not isinstance(embedder, Embedder):
            raise InputError(
                f"MtebEncoder wraps an Embedder, not a {type(embedder).__name__}: mteb scores a "
                "corpus in chunks, by vectors alone"
            )
        if instructions not in get_args(Instructions):
            raise SettingsError(
                f"instructions={instructions!r} is not known."
                + known(str(instructions), get_args(Instructions))
            )
        self.embedder = embedder
        self.name = model_name(name)
        self.instructions = instructions
        self.uses: list[PromptUse] = []

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors of all batches, float32 [N, E]: `Embedder.encode`'s, with the prompt of `choose`.

        All texts are encoded at once, whatever mteb's batches are, so that they are sorted by
        length. Raises InputError for an option that would change vectors behind the cache's back.
        """
        options = _run_options(kwargs)
        role = str(prompt_type.value) if prompt_type is not None else None
        columns = _columns(inputs, task_metadata.name)
        groups = self._groups(columns, task_metadata, role)
        vectors = np.zeros((len(columns["text"]), self.embedder.get_embedding_dimension()), "f4")
        cut = 0
        for choice, rows, texts in groups:
            found, report = self.embedder.encode_with_report(
                texts, options=options, **choice.arguments()
            )
            vectors[rows] = found
            cut += report.num_truncated
        where = task_metadata.name, hf_split, hf_subset
        self._note(where, groups, cut)
        return vectors

    def similarity(self, a: Any, b: Any) -> Tensor:
        """The model's own similarity of each a with each b, [N, M]."""
        return self.embedder.similarity(a, b)

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """The model's own similarity of row with row, [N]."""
        return self.embedder.similarity_pairwise(a, b)

    def prompt_for(self, task: Any, prompt_type: str | PromptType | None = None) -> Choice:
        """The prompt that a task's texts would get; "query", "document", or None for no sides."""
        role = prompt_type.value if isinstance(prompt_type, PromptType) else prompt_type
        return choose(self.embedder, getattr(task, "metadata", task), role)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Name, content hash and facts for mteb; always of the model as it is now."""
        embedder = self.embedder
        slots = any(has_place(embedder, role) for role in ("query", "document"))
        return ModelMeta.create_empty(
            {
                "name": self.name,
                "revision": self.revision,
                "n_parameters": sum(p.numel() for p in embedder.parameters()),
                "memory_usage_mb": sum(p.nbytes for p in embedder.parameters()) / 2**20,
                "max_tokens": embedder.max_seq_length,
                "embed_dim": embedder.get_embedding_dimension(),
                "similarity_fn_name": ScoringFunction(embedder.similarity_fn_name),
                "use_instructions": slots or any(embedder.prompts.values()),
                "framework": ["PyTorch"],
                "experiment_kwargs": {"instructions": "text"} if self._joins else None,
            }
        )

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        """mteb sets here what its registry holds; the content of the model decides, not that."""

    @property
    def revision(self) -> str:
        """`Embedder.fingerprint`: of the model as it is now. mteb asks several times per task."""
        return self.embedder.fingerprint()

    @property
    def _joins(self) -> bool:
        """Whether instructions of the data stand behind the text although there is a place."""
        return self.instructions == "text" and has_place(self.embedder, "query")

    def _groups(
        self, columns: dict[str, list[str]], metadata: TaskMetadata, role: str | None
    ) -> list[tuple[Choice, list[int], list[str]]]:
        """Prompt, rows and texts of each call: one, or as many as the data brings instructions."""
        told, texts = columns["instruction"], columns["text"]
        choice = choose(self.embedder, metadata, role)
        if not any(told) or self._joins or not has_place(self.embedder, role):
            return [(choice, list(range(len(texts))), texts)]
        rows: dict[str, list[int]] = {}
        for row, instruction in enumerate(told):
            rows.setdefault(instruction, []).append(row)
        return [
            (
                Choice(role, "data", None, instruction) if instruction else choice,
                part,
                [columns["query"][row] for row in part],
            )
            for instruction, part in rows.items()
        ]

    def _note(self, where: tuple[str, str, str], groups: list, cut: int) -> None:
        """One line for all instructions of the data: there may be as many as texts."""
        choice = groups[0][0]
        text = choice.text if len(groups) == 1 else f"{len(groups)} instructions"
        num_texts = sum(len(rows) for _, rows, _ in groups)
        self.uses.append(
            PromptUse(*where, choice.role, choice.source, choice.name, text, num_texts, cut)
        )


def model_name(name: str | Path | None) -> str:
    """A name as mteb wants it, "maker/model": a folder's is "polyvec/" and its last part.

    >>> model_name("/home/me/models/my model"), model_name("intfloat/e5-small")
    ('polyvec/my_model', 'intfloat/e5-small')
    """
    if name is None:
        return "polyvec/embedder"
    given = str(name)
    parts = given.split("/")
    if len(parts) == 2 and all(parts) and not Path(given).exists() and parts[0][0] not in ".~":
        return given.replace(" ", "_")
    last = Path(given).expanduser().resolve().name
    return f"polyvec/{last.replace(' ', '_') or 'embedder'}"


def _run_options(kwargs: dict[str, Any]) -> RunOptions:
    """mteb's options that change no vector; InputError for others: its cache would not see them."""
    batch_size = kwargs.pop("batch_size", None)
    bar = kwargs.pop("show_progress_bar", None)
    if kwargs.get("precision") == "float32":
        kwargs.pop("precision")
    if kwargs:
        name = next(iter(kwargs))
        raise InputError(
            f"encode_kwargs: {name}={kwargs[name]!r} could change vectors, and mteb would keep the "
            "scores under the same name; set it on the Embedder. "
            "Known: batch_size, show_progress_bar."
        )
    # Batches are made by token count; mteb's own default, which nobody chose, is left out.
    return RunOptions(None if batch_size == BATCH_SIZE else batch_size, show_progress_bar=bar)


def _columns(inputs: Iterable[Mapping[str, Any]], task: str) -> dict[str, list[str]]:
    """All batches' texts, and the queries and instructions that they were joined from."""
    columns: dict[str, list[str]] = {"text": [], "query": [], "instruction": []}
    for batch in inputs:
        if "text" not in batch:
            raise InputError(f"{task}: brings {', '.join(sorted(batch))}, but no texts")
        for name, values in columns.items():
            values.extend(batch.get(name, ()))
    return columns
