"""Queries under several instructions as mteb lays them out: one query an instruction."""

from collections.abc import Iterator

from polyvec.data.tasks.sets import InstructionSet
from polyvec.errors import DataError

SIDES = "og", "changed"  # the original instruction, and the one that narrows it


def instructed(data: InstructionSet) -> tuple[dict[str, list[str]], dict, dict | None]:
    """Columns of the queries, qrels and candidates (None: all documents), by mteb's query ids.

    FollowIR's metric wants "1-og" and "1-changed", InstructIR's "1_0", "1_1", ...: the numbers
    are places of queries and of their instructions, since mteb cuts ids at "_".
    Raises DataError for a query whose instructions and judgements do not fit.
    """
    columns: dict[str, list[str]] = {"id": [], "text": [], "instruction": []}
    qrels: dict[str, dict[str, int]] = {}
    candidates: dict[str, list[str]] = {}
    for place, query in _judged(data):
        near = list(dict.fromkeys(data.candidates.get(query, ())))
        judged, instructions = data.qrels[query], data.instructions[query]
        for number, instruction in enumerate(instructions):
            new = f"{place}-{SIDES[number]}" if data.changed else f"{place}_{number}"
            for name, value in zip(columns, (new, data.queries[query], instruction), strict=True):
                columns[name].append(value)
            # mteb drops a query without judgements, and what is compared with it; this counts 0.
            qrels[new] = judged[number] or {next(iter(data.corpus)): 0}
            candidates[new] = near
    return columns, qrels, candidates if data.candidates else None


def changed_documents(data: InstructionSet) -> dict[str, list[str]]:
    """Documents of each query that are less relevant under the second instruction."""
    found: dict[str, list[str]] = {}
    for place, query in _judged(data):
        before, after = data.qrels[query]
        less = [name for name, grade in before.items() if grade > max(after.get(name, 0), 0)]
        if less:
            found[str(place)] = less
    return found


def _judged(data: InstructionSet) -> Iterator[tuple[int, str]]:
    """Queries that have judgements, numbered."""
    for place, query in enumerate(data.queries):
        judged = data.qrels.get(query, ())
        if not any(judged):
            continue
        num_given = len(data.instructions.get(query, ()))
        if num_given != len(judged) or (data.changed and num_given != 2):
            raise DataError(
                f"{data.name}: query {query!r} has {num_given} instructions and judgements under "
                f"{len(judged)}, but needs {'2 of both' if data.changed else 'as many of both'}"
            )
        yield place, query
