"""Which prompt a task's texts get: mteb's order, in the words of our models.

A model without a template reads a stored prompt or none. A template reads an instruction on the
sides that have a place for it: queries nearly always, documents only if the model says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mteb.abstasks.abstask import get_abstask_prompt
from mteb.abstasks.task_metadata import TaskMetadata

if TYPE_CHECKING:
    from polyvec.embed.embedder import Embedder

LOCAL = "local/"  # how the data set of a local copy begins; an official one is a hub id
Source = Literal["model", "task", "template", "kind of task", "data", "none", "no place"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A prompt and where it comes from.

    "model": stored with it, under `name`. "task": the instruction in the task's metadata.
    "template": the template's own default. "kind of task": mteb's for all tasks of the kind.
    "data": each text brings its own. "no place": the template reads none on this side.
    """

    role: str | None
    source: Source
    name: str | None = None
    text: str = ""

    def arguments(self) -> dict[str, Any]:
        """What `Embedder.encode` is given."""
        words = self.text if self.source in ("task", "kind of task", "data") else None
        return {"prompt_name": self.name, "prompt": words or None, "role": self.role}


def choose(embedder: "Embedder", metadata: TaskMetadata, role: str | None) -> Choice:
    """The prompt for a task's queries, its documents, or its texts that have no sides (None).

    The first that is stored with the model: task and role, task, type and role, type, role. For
    a template then the task's instruction, its own default, and mteb's for the kind of task.
    """
    if embedder.template is not None and not has_place(embedder, role):
        return Choice(role, "no place")
    stored = {name: words for name, words in embedder.prompts.items() if words}  # "" is not set
    for name in priority(metadata, role):
        if name in stored:
            return Choice(role, "model", name, stored[name])
    if embedder.template is not None and (told := _instruction(metadata, role)):
        return Choice(role, "task", None, told)
    found = embedder.prompt_for(role=role)  # "passage" and "corpus", and the model's default
    if found.text:
        return Choice(role, "model", found.name, found.text)
    if embedder.template is None:
        return Choice(role, "none")
    if default := embedder.template.defaults.get("instruction"):
        return Choice(role, "template", None, default)
    return Choice(role, "kind of task", None, get_abstask_prompt(metadata.name))


def has_place(embedder: "Embedder", role: str | None) -> bool:
    """Whether the model's template reads an instruction on this side."""
    return embedder.template is not None and "instruction" in embedder.template.slots(role)


def priority(metadata: TaskMetadata, role: str | None) -> Iterator[str]:
    """Names under which a prompt may be stored, the most specific first, as in mteb.

    A local copy of a task may be stored under the name of the task that it was adapted from.
    """
    local = metadata.dataset["path"].startswith(LOCAL)
    tasks = [metadata.name, *(metadata.adapted_from or () if local else ())]
    for name in (*tasks, metadata.type):
        if role:
            yield f"{name}-{role}"
        yield name
    if role:
        yield role


def _instruction(metadata: TaskMetadata, role: str | None) -> str:
    """The task's own instruction; without a role that of queries, as in symmetric tasks."""
    words = metadata.prompt or ""
    return words if isinstance(words, str) else words.get(role or "query", "")
