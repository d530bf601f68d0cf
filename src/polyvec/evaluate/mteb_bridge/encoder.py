"""Our models as encoders of mteb: DataLoaders in, float32 vectors out, named by their content."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from torch import Tensor

from polyvec.errors import InputError, SettingsError, known
from polyvec.evaluate.mteb_bridge.prompts import Choice, Source, choose
from polyvec.interfaces import ROLES, RunOptions, TextEncoder

BATCH_SIZE = 32  # what mteb passes if the user gave none
Instructions = Literal["slot", "text"]
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]


@dataclass(frozen=True, slots=True)
class PromptUse:
    """Which prompt the texts of one call got, and how many were truncated."""

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
    """Any TextEncoder of ours as a model that `mteb.evaluate` takes.

    Its revision is the fingerprint of weights and settings, so that mteb's cache never returns
    the score of another checkpoint; `name` is only a label, of a folder the last part. Where texts
    have instructions (FollowIR, InstructIR) a template with a slot reads them there ("slot"). With
    `instructions="text"`, and without such a template, they are appended to the text, as mteb
    does for its published scores. `uses` records which prompt each call used.

    >>> import mteb  # doctest: +SKIP
    >>> mteb.evaluate(MtebEncoder(embedder), mteb.get_tasks(["SciFact"]))  # doctest: +SKIP
    """

    def __init__(
        self,
        embedder: TextEncoder,
        name: str | Path | None = None,
        *,
        instructions: Instructions = "slot",
    ) -> None:
        if not isinstance(embedder, TextEncoder):
            raise InputError(f"MtebEncoder takes a TextEncoder, got {type(embedder).__name__}")
        if embedder.similarity_fn_name not in get_args(Similarity):
            # mteb ranks a corpus in chunks and merges them by score, which fused ranks are not.
            raise InputError(
                f"mteb cannot score by the similarity {embedder.similarity_fn_name!r}."
                + known(embedder.similarity_fn_name, get_args(Similarity))
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
        """Vectors of all batches, float32 [N, E]: those of `encode` with the prompt of `choose`.

        All texts are encoded in one call, whatever mteb's batches are, so that they are sorted by
        length. Raises InputError for an option that changes vectors: mteb's cache ignores it.
        """
        options = _run_options(kwargs)
        role = str(prompt_type.value) if prompt_type is not None else None
        columns = _columns(inputs, task_metadata.name)
        groups = self._groups(columns, task_metadata, role)
        vectors = np.zeros((len(columns["text"]), self.embedder.get_embedding_dimension()), "f4")
        num_truncated = 0
        for choice, rows, texts in groups:
            found, report = self.embedder.encode_vectors(
                texts, options=options, **choice.arguments()
            )
            vectors[rows] = found.to_dense()
            num_truncated += report.num_truncated
        where = task_metadata.name, hf_split, hf_subset
        self._note(where, groups, num_truncated)
        return vectors

    def similarity(self, a: Any, b: Any) -> Tensor:
        """The model's own similarity of each a with each b, [N, M]."""
        scores: Tensor = self.embedder.similarity(a, b)
        return scores

    def similarity_pairwise(self, a: Any, b: Any) -> Tensor:
        """The model's own similarity of row with row, [N]."""
        scores: Tensor = self.embedder.similarity_pairwise(a, b)
        return scores

    def prompt_for(self, task: Any, prompt_type: str | PromptType | None = None) -> Choice:
        """The prompt that a task's texts get; "query", "document", or None without sides."""
        role = prompt_type.value if isinstance(prompt_type, PromptType) else prompt_type
        return choose(self.embedder, getattr(task, "metadata", task), role)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Name, fingerprint and facts for mteb; always of the model in its current state."""
        embedder = self.embedder
        slots = any(embedder.takes_instruction(role) for role in ROLES)
        return ModelMeta.create_empty(
            {
                "name": self.name,
                "revision": self.revision,
                "n_parameters": embedder.num_parameters,
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
        """Ignored: mteb sets its registry's entry here, but the model itself decides."""

    @property
    def revision(self) -> str:
        """The model's fingerprint."""
        return self.embedder.fingerprint()

    @property
    def _joins(self) -> bool:
        """Whether instructions of the data are appended although the template has a slot."""
        return self.instructions == "text" and self.embedder.takes_instruction("query")

    def _groups(
        self, columns: dict[str, list[str]], metadata: TaskMetadata, role: str | None
    ) -> list[tuple[Choice, list[int], list[str]]]:
        """Prompt, rows and texts of each call: one, or one for each instruction of the data."""
        instructions, texts = columns["instruction"], columns["text"]
        choice = choose(self.embedder, metadata, role)
        if not any(instructions) or self._joins or not self.embedder.takes_instruction(role):
            return [(choice, list(range(len(texts))), texts)]
        rows: dict[str, list[int]] = {}
        for row, instruction in enumerate(instructions):
            rows.setdefault(instruction, []).append(row)
        return [
            (
                Choice(role, "data", None, instruction) if instruction else choice,
                group,
                [columns["query"][row] for row in group],
            )
            for instruction, group in rows.items()
        ]

    def _note(
        self,
        where: tuple[str, str, str],
        groups: list[tuple[Choice, list[int], list[str]]],
        num_truncated: int,
    ) -> None:
        """One record for all instructions of the data: there may be as many as texts."""
        choice = groups[0][0]
        text = choice.text if len(groups) == 1 else f"{len(groups)} instructions"
        num_texts = sum(len(rows) for _, rows, _ in groups)
        self.uses.append(
            PromptUse(
                *where, choice.role, choice.source, choice.name, text, num_texts, num_truncated
            )
        )


def model_name(name: str | Path | None) -> str:
    """A name in mteb's form, "organization/model": "polyvec/" and the last part for a folder.

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
    """mteb's options that change no vector; InputError for others, which its cache ignores."""
    batch_size = kwargs.pop("batch_size", None)
    bar = kwargs.pop("show_progress_bar", None)
    if kwargs.get("precision") == "float32":
        kwargs.pop("precision")
    if kwargs:
        name = next(iter(kwargs))
        raise InputError(
            f"encode_kwargs: {name}={kwargs[name]!r} could change vectors, and mteb would cache "
            "the scores under the same name; set it on the model. "
            "Known: batch_size, show_progress_bar."
        )
    # Our default is a budget of tokens, which mteb's default batch size should not override.
    return RunOptions(None if batch_size == BATCH_SIZE else batch_size, show_progress_bar=bar)


def _columns(inputs: Iterable[Mapping[str, Any]], task: str) -> dict[str, list[str]]:
    """The texts of all batches, and the queries and instructions that mteb joined them from."""
    columns: dict[str, list[str]] = {"text": [], "query": [], "instruction": []}
    for batch in inputs:
        if "text" not in batch:
            raise InputError(f"{task}: has {', '.join(sorted(batch))}, but no texts")
        for name, values in columns.items():
            values.extend(batch.get(name, ()))
    return columns
