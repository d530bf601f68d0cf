"""Queries under several instructions in mteb's form: one query for each instruction."""

from collections.abc import Iterator

from polyvec.data.tasks.sets import InstructionRetrievalSet
from polyvec.errors import DataError

SIDES = "og", "changed"  # suffixes of mteb's ids: the original instruction, and the narrower one

# Columns of the queries, qrels, and candidates (None: all documents).
Instructed = tuple[dict[str, list[str]], dict[str, dict[str, int]], dict[str, list[str]] | None]


def instructed(data: InstructionRetrievalSet) -> Instructed:
    """Columns of the queries, qrels and candidates (None: all documents), by mteb's query ids.

    FollowIR's metric needs "1-og" and "1-changed", InstructIR's "1_0", "1_1", ...: ids are
    numbers of queries and instructions, since mteb splits ids at "_". Raises DataError for a
    query whose numbers of instructions and judgements differ.
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
            # mteb drops a query without judgements, and those compared with it; a grade 0 keeps it.
            qrels[new] = judged[number] or {next(iter(data.corpus)): 0}
            candidates[new] = near
    return columns, qrels, candidates if data.candidates else None


def changed_documents(data: InstructionRetrievalSet) -> dict[str, list[str]]:
    """Documents of each query that are less relevant under the second instruction."""
    found: dict[str, list[str]] = {}
    for place, query in _judged(data):
        before, after = data.qrels[query]
        less = [name for name, grade in before.items() if grade > max(after.get(name, 0), 0)]
        if less:
            found[str(place)] = less
    return found


def _judged(data: InstructionRetrievalSet) -> Iterator[tuple[int, str]]:
    """Queries that have judgements, numbered."""
    for place, query in enumerate(data.queries):
        judged = data.qrels.get(query, ())
        if not any(judged):
            continue
        num_given = len(data.instructions.get(query, ()))
        if num_given != len(judged) or (data.changed and num_given != 2):
            raise DataError(
                f"{data.name}: query {query!r} has {num_given} instructions and {len(judged)} sets "
                f"of judgements; expected {'2 of both' if data.changed else 'equal numbers'}"
            )
        yield place, query
