"""Which stored prompt the texts of a task get: mteb's order, for its tasks and our protocols."""

from collections.abc import Iterator, Sequence

from polyvec.interfaces import TextEncoder


def stored_prompt(model: TextEncoder, names: Sequence[str], role: str | None) -> str | None:
    """Name of the first prompt that the model has stored for a task, or None.

    `names` are those of the task and of its kind, the most specific first: "SciFact-query" comes
    before "SciFact", and that before "Retrieval-query". Empty prompts count as not set. If there
    is none, encode chooses by the role. None, too, where a template has no slot for a prompt.
    """
    if not model.takes_prompt(role):
        return None
    stored = model.prompts
    return next((name for name in _candidates(names, role) if stored.get(name)), None)


def _candidates(names: Sequence[str], role: str | None) -> Iterator[str]:
    for name in names:
        if role:
            yield f"{name}-{role}"
        yield name
