"""Which prompt the texts of an mteb task get: a stored one, or an instruction of the task.

A model without a template reads a stored prompt or none. A template reads an instruction on the
sides where it has a slot: nearly always for queries, for documents only in some models.
"""

from dataclasses import dataclass
from typing import Any, Literal

from mteb.abstasks.abstask import get_abstask_prompt
from mteb.abstasks.task_metadata import TaskMetadata

from polyvec.evaluate.prompts import stored_prompt
from polyvec.interfaces import TextEncoder

LOCAL = "local/"  # start of the data set path of a local copy; an official one is a hub id
Source = Literal["model", "task", "template", "kind of task", "data", "none"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A prompt and where it comes from.

    "model": stored with it, under `name`. "task": the instruction in the task's metadata.
    "template": the template's own default. "kind of task": mteb's for all tasks of the kind.
    "data": each text has its own. "none": the model has none, or reads none on this side.
    """

    role: str | None
    source: Source
    name: str | None = None
    text: str = ""

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `TextEncoder.encode`."""
        given = self.text if self.source in ("task", "kind of task", "data") else None
        return {"prompt_name": self.name, "prompt": given or None, "role": self.role}


def choose(model: TextEncoder, metadata: TaskMetadata, role: str | None) -> Choice:
    """The prompt for a task's queries, its documents, or its texts that have no sides (None).

    The first that is stored with the model: for the task and role, the task, its type and role,
    its type, the role. For a template then the task's instruction, the template's default, and
    mteb's instruction for the kind of task.
    """
    if not model.takes_prompt(role):
        return Choice(role, "none")
    stored = model.prompts
    name = stored_prompt(model, task_names(metadata), role)
    if name is None and role and stored.get(role):
        name = role
    if name is not None:
        return Choice(role, "model", name, stored[name])
    instructed = model.takes_instruction(role)
    if instructed and (instruction := _instruction(metadata, role)):
        return Choice(role, "task", None, instruction)
    # What encode resolves a role to: "passage" and "corpus", or the model's default.
    if text := model.prompt_key(role=role)[0]:
        name = next((key for key, value in stored.items() if value == text), None)
        return Choice(role, "model", name, text)
    if not instructed:
        return Choice(role, "none")
    if default := model.default_instruction(role):
        return Choice(role, "template", None, default)
    return Choice(role, "kind of task", None, get_abstask_prompt(metadata.name))


def task_names(metadata: TaskMetadata) -> list[str]:
    """Names that a prompt for the task may be stored under, the most specific first.

    A local copy of a task also has the name of the task that it was adapted from.
    """
    local = metadata.dataset["path"].startswith(LOCAL)
    return [metadata.name, *(metadata.adapted_from or () if local else ()), metadata.type]


def _instruction(metadata: TaskMetadata, role: str | None) -> str:
    """The task's own instruction; without a role that of queries, as in symmetric tasks."""
    words = metadata.prompt or ""
    return words if isinstance(words, str) else words.get(role or "query", "")
