"""Which stored prompt the texts of a task get: mteb's order, for its tasks and our protocols."""

from collections.abc import Iterator, Sequence

from polyvec.interfaces import TextEncoder

# What a side is called in stored names; "passage" and "corpus" as in sentence-transformers.
SIDES = {"query": ("query",), "document": ("document", "passage", "corpus")}


def stored_prompt(model: TextEncoder, names: Sequence[str], role: str | None) -> str | None:
    """Name of the first prompt that the model has stored for a task, or None.

    `names` are those of the task and of its kind, the most specific first: "SciFact-query" comes
    before "SciFact", and that before "Retrieval-query". Beyond mteb, "-passage" and "-corpus" mean
    documents. An empty prompt is a choice: none is set before these texts. If there is no such
    name, encode chooses by the role. None, too, where a template has no slot for a prompt.
    """
    if not model.takes_prompt(role):
        return None
    stored = model.prompts
    return next((name for name in _candidates(names, role) if stored.get(name) is not None), None)


def _candidates(names: Sequence[str], role: str | None) -> Iterator[str]:
    for name in names:
        for side in SIDES.get(role or "", ()):
            yield f"{name}-{side}"
        yield name
