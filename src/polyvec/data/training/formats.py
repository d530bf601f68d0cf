"""The forms that training data come in: each a reader from the columns of a row to an example.

To add a form: a function, and its line in FORMATS with the columns that it is known by.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from polyvec.data.training.aspects import aspect, contrasted
from polyvec.data.training.cells import Cells
from polyvec.data.training.parts import (
    chat,
    documents,
    instructed,
    is_list,
    is_numbered,
    is_pair,
    label,
    message_texts,
    pairs_of,
    passages,
    same,
    some,
    task,
    turns,
)
from polyvec.data.training.regrouping import class_pairs, judged, nli_triplets, successive
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.spans import crops, inverse_cloze, repeated
from polyvec.errors import DataError, known

Read = Callable[[Cells], TrainingRow]
# Examples of a whole file from those of its rows, with the seed of what is drawn.
Regroup = Callable[[list[TrainingRow], int], list[TrainingRow]]
# FlagEmbedding's types in whose documents the query's instruction stands, too.
SYMMETRIC_TYPES = ("symmetric_sts", "symmetric_clustering")
NLI_LABELS = ("entailment", "neutral", "contradiction")  # as SNLI and MultiNLI number them


@dataclass(frozen=True, slots=True)
class Format:
    """How rows are read, and the columns that a row of this form must have.

    `fits` is asked where other forms have these columns, too.
    """

    columns: tuple[str, ...]
    read: Read
    regroup: Regroup | None = None
    fits: Callable[[Mapping[str, Any]], bool] = lambda values: True

    def matches(self, values: Mapping[str, Any]) -> bool:
        return all(values.get(name) is not None for name in self.columns) and self.fits(values)


def pairs(query: str, *positives: str, negatives: str = "negative") -> Read:
    """Columns by name: a query, what matches it, and "negative", "negative_1", "negative_2" ...

    A column may hold several texts as a list. A "score" and a "label" are read if they are there;
    a list is a teacher's scores.
    """

    def read(cells: Cells) -> TrainingRow:
        names = [name for name in cells.values if is_numbered(name, negatives)]
        for name in positives:
            cells.value(name)
        of_teacher = next((name for name in TARGETS if is_list(cells.values.get(name))), None)
        row = TrainingRow(
            cells.text(query),
            some(cells, tuple(text for name in positives for text in cells.texts(name))),
            tuple(text for name in names for text in cells.texts(name)),
            place=cells.place,
        )
        if of_teacher:
            return replace(row, teacher_scores=teacher_scores(cells, of_teacher, row))
        return replace(
            row,
            matches=not (cells.has("score") or cells.has("label")),
            score=cells.number("score") if cells.has("score") else None,
            label=label(cells),
        )

    return read


def in_order(cells: Cells) -> TrainingRow:
    """sentence-transformers' rule: the order of the columns counts, not their names.

    Anchor, positive, then negatives; a column label, labels, score or scores is the target.
    """
    names = [name for name in cells.values if name not in TARGETS]
    targets = [name for name in TARGETS if cells.has(name)]
    if not names:
        raise DataError(f"{cells.place}: no column with a text.{known('text', cells.values)}")
    row = TrainingRow(
        cells.text(names[0]),
        cells.texts(names[1]) if len(names) > 1 else (),
        tuple(text for name in names[2:] for text in cells.texts(name)),
        place=cells.place,
    )
    if not targets:
        return row
    value = cells.value(targets[0])
    if is_list(value):
        return replace(row, teacher_scores=teacher_scores(cells, targets[0], row))
    fraction = isinstance(value, Real) and not isinstance(value, Integral)
    if fraction or targets[0] in ("score", "scores"):
        return replace(row, matches=False, score=cells.number(targets[0]))
    return replace(row, matches=False, label=cells.label(targets[0]))


def teacher_scores(cells: Cells, name: str, row: TrainingRow) -> tuple[float, ...]:
    """A score of each document of the row, from a list.

    A list of one less has the margins of the positive over the negatives, as MarginMSELoss takes
    them: losses that compare documents of a query read nothing else.
    """
    found = cells.numbers(name)
    count = len(row.positives) + len(row.negatives)
    if len(found) == len(row.negatives) and len(row.positives) == 1:
        return (0.0, *(-margin for margin in found))
    if len(found) != count:
        raise DataError(
            f"{cells.place}: {name!r} has {len(found)} scores for {count} documents, expected one "
            "of each, or the margin of the positive over each negative"
        )
    return found


def scored(first: str, second: str, score: str) -> Read:
    """Pairs with a similarity."""

    def read(cells: Cells) -> TrainingRow:
        return TrainingRow(
            cells.text(first),
            (cells.text(second),),
            matches=False,
            score=cells.number(score),
            place=cells.place,
        )

    return read


def labelled(first: str, second: str) -> Read:
    """Pairs with a class."""

    def read(cells: Cells) -> TrainingRow:
        return TrainingRow(
            cells.text(first),
            (cells.text(second),),
            matches=False,
            label=cells.label(),
            place=cells.place,
        )

    return read


def text(cells: Cells) -> TrainingRow:
    """A text, or a chat as a list of turns (GritLM's generative data); a label if there is one."""
    value = cells.value("text")
    if isinstance(value, list | tuple):
        return chat(cells, cells.texts("text"))
    return TrainingRow(cells.text("text"), label=label(cells), place=cells.place)


def piece(cells: Cells) -> TrainingRow:
    """A text and, as its label, the document that it is a piece of."""
    document = cells.labels.number(cells.text("document")) if cells.has("document") else None
    return TrainingRow(cells.text("text"), label=document, place=cells.place)


def equivalents(cells: Cells) -> TrainingRow:
    """A list of texts that mean the same: the others are positives of the first."""
    texts = cells.texts("set")
    if len(texts) < 2:
        raise DataError(f"{cells.place}: 'set' has {len(texts)} texts, expected 2 or more")
    return TrainingRow(texts[0], texts[1:], place=cells.place)


def messages(cells: Cells) -> TrainingRow:
    """A chat of messages with a role and a content, of OpenAI's form; a system's leads the first.

    ms-swift's positive_messages and negative_messages make it a query with documents.
    """
    of_query = turns(list(cells.tables("messages")), cells.place)
    if not cells.has("positive_messages"):
        return chat(cells, of_query)
    return TrainingRow(
        "\n".join(of_query),
        message_texts(cells, "positive_messages"),
        message_texts(cells, "negative_messages"),
        place=cells.place,
    )


def ultrachat(cells: Cells) -> TrainingRow:
    """UltraChat's lists of turns; a last question without an answer is left out."""
    of_chat = cells.texts("data")
    return chat(cells, of_chat[: len(of_chat) // 2 * 2] if len(of_chat) > 1 else of_chat)


def tevatron(cells: Cells) -> TrainingRow:
    """Tevatron's passages with titles, and Promptriever's.

    Its new_negatives, which match the query without its instruction, stand first.
    """
    added = passages(cells, "new_negatives")
    return TrainingRow(
        cells.text("query"),
        some(cells, passages(cells, "positive_passages")),
        added + passages(cells, "negative_passages"),
        leading=len(added) if "new_negatives" in cells.values else None,
        place=cells.place,
    )


def dpr(cells: Cells) -> TrainingRow:
    """DPR's contexts; the hard negatives lead."""
    return TrainingRow(
        cells.text("question"),
        some(cells, passages(cells, "positive_ctxs")),
        passages(cells, "hard_negative_ctxs") + passages(cells, "negative_ctxs"),
        place=cells.place,
    )


def nemo(cells: Cells) -> TrainingRow:
    """NeMo Automodel's inline form: documents as strings, lists of strings, or objects."""
    return TrainingRow(
        cells.text("question" if cells.has("question") else "query"),
        some(cells, documents(cells, "pos_doc")),
        documents(cells, "neg_doc"),
        place=cells.place,
    )


def llara(cells: Cells) -> TrainingRow:
    """Llama2Vec's pre-training data: a text, what summarises it, and what follows it."""
    return TrainingRow(
        cells.text("input"),
        (cells.text("output_summarize"), cells.text("output_predict")),
        place=cells.place,
    )


def query_pos_neg(cells: Cells) -> TrainingRow:
    """FlagEmbedding's and GritLM's lists: strings, or GritLM's [instruction, text]."""
    instruction, query = instructed(cells, cells.value("query"), "query")
    found, of_documents = [], []
    for name in ("pos", "neg"):
        items = cells.values.get(name)
        items = [] if items is None else [items] if isinstance(items, str) else items
        if not isinstance(items, list | tuple):
            raise DataError(f"{cells.place}: {name!r} is {type(items).__name__}, not a list")
        both = [instructed(cells, item, name) for item in items]
        of_documents += [each for each, _ in both]
        found.append(tuple(document for _, document in both))
    kind = cells.values.get("type") or ""
    scores = cells.numbers("pos_scores") + cells.numbers("neg_scores")
    if scores and len(scores) != len(found[0]) + len(found[1]):
        raise DataError(
            f"{cells.place}: {len(scores)} pos_scores and neg_scores for "
            f"{len(found[0]) + len(found[1])} pos and neg"
        )
    return TrainingRow(
        query,
        some(cells, found[0]),
        found[1][:1] if kind == "only_1neg" else found[1],
        teacher_scores=scores[: len(found[0]) + 1] if kind == "only_1neg" else scores,
        instruction=cells.text("prompt") if cells.has("prompt") else instruction,
        document_instruction=same(cells, of_documents),
        symmetric=kind in SYMMETRIC_TYPES,
        place=cells.place,
    )


def medi(cells: Cells) -> TrainingRow:
    """INSTRUCTOR's data: query, pos and neg are each one [instruction, text]."""
    if not is_pair(cells.value("pos")):  # GritLM's copy has lists of pairs
        return replace(query_pos_neg(cells), dataset=task(cells))
    both = [instructed(cells, cells.value(name), name) for name in ("query", "pos", "neg")]
    if any(instruction is None for instruction, _ in both):
        raise DataError(f"{cells.place}: query, pos and neg must be [instruction, text]")
    return TrainingRow(
        both[0][1],
        (both[1][1],),
        (both[2][1],),
        instruction=both[0][0],
        document_instruction=same(cells, [each for each, _ in both[1:]]),
        dataset=task(cells),
        place=cells.place,
    )


def query_positive_negative(cells: Cells) -> TrainingRow:
    """The Echo and E5 collections: strings, or [instruction, text] for any of the three."""
    if not isinstance(cells.value("query"), list | tuple):
        return pairs("query", "positive")(cells)
    instruction, query = instructed(cells, cells.value("query"), "query")
    found = {
        name: [instructed(cells, value, name) for value in pairs_of(cells.values.get(name))]
        for name in ("positive", "negative")
    }
    return TrainingRow(
        query,
        tuple(document for _, document in found["positive"]),
        tuple(document for _, document in found["negative"]),
        instruction=instruction,
        document_instruction=same(cells, [one for both in found.values() for one, _ in both]),
        dataset=task(cells),
        place=cells.place,
    )


TARGETS = ("label", "labels", "score", "scores")


def _is_medi(values: Mapping[str, Any]) -> bool:
    return all(is_pair(values.get(name)) for name in ("query", "pos", "neg"))


def _is_ultrachat(values: Mapping[str, Any]) -> bool:
    data = values.get("data")
    return isinstance(data, list | tuple) and all(isinstance(each, str) for each in data)


# The first that fits is taken, so the more particular forms come first.
FORMATS: dict[str, Format] = {
    "tevatron": Format(("query", "positive_passages"), tevatron),
    "dpr": Format(("question", "positive_ctxs"), dpr),
    "nemo": Format(("pos_doc",), nemo),
    "llara": Format(("input", "output_summarize", "output_predict"), llara),
    "medi": Format(("query", "pos", "neg"), medi, fits=_is_medi),
    "query_pos_neg": Format(("query", "pos"), query_pos_neg),
    "messages": Format(("messages",), messages),
    "ultrachat": Format(("data",), ultrachat, fits=_is_ultrachat),
    "e5": Format(("query", "positive"), query_positive_negative),
    "simcse": Format(("sent0", "sent1"), pairs("sent0", "sent1", negatives="hard_neg")),
    "triplets": Format(("anchor", "positive"), pairs("anchor", "positive")),
    "scored_pairs": Format(
        ("sentence1", "sentence2", "score"), scored("sentence1", "sentence2", "score")
    ),
    "angle": Format(("text1", "text2", "label"), scored("text1", "text2", "label")),
    "labelled_pairs": Format(("sentence1", "sentence2"), pairs("sentence1", "sentence2")),
    "nli": Format(("premise", "hypothesis", "label"), labelled("premise", "hypothesis")),
    "questions": Format(("question1", "question2"), pairs("question1", "question2")),
    "query_passage": Format(("query", "passage"), pairs("query", "passage")),
    "query_document": Format(("query", "document"), pairs("query", "document")),
    "query_answer": Format(("query", "answer"), pairs("query", "answer")),
    "question_answer": Format(("question", "answer"), pairs("question", "answer")),
    "equivalents": Format(("set",), equivalents),
    "text": Format(("text",), text),
    # Only by name: rows of these columns can be read in two ways.
    "nli_triplets": Format(
        ("premise", "hypothesis", "label"), labelled("premise", "hypothesis"), nli_triplets
    ),
    "pairs": Format(("query", "positive"), pairs("query", "positive")),
    "judged": Format(("query", "document", "label"), pairs("query", "document"), judged),
    "classes": Format(("text", "label"), text, class_pairs),
    "successive": Format(("text",), piece, successive),
    "aspects": Format(("subject", "aspect", "answer"), aspect, contrasted),
    "inverse_cloze": Format(("text",), text, inverse_cloze),
    "crops": Format(("text",), text, crops),
    "repeated": Format(("text",), text, repeated),
    "columns": Format((), in_order),
}


def read_row(form: Format, cells: Cells) -> TrainingRow:
    """A row read as the form says, with the instructions of its own columns."""
    row = form.read(cells)
    own = {
        name: cells.value(name)
        for name in ("instruction", "document_instruction")
        if cells.has(name) and getattr(row, name) is None
    }
    for name, value in own.items():
        if not isinstance(value, str):
            raise DataError(f"{cells.place}: {name!r} is {type(value).__name__}, not a string")
    return replace(row, **own) if own else row


def is_known(values: Mapping[str, Any]) -> bool:
    return any(form.columns and form.matches(values) for form in FORMATS.values())


def detected(values: Mapping[str, Any], place: str) -> str:
    """The name of the form that a row has; DataError that lists the known ones if it has none."""
    for name, form in FORMATS.items():
        if form.columns and form.matches(values):
            return name
    if values.get("positive_document_ids") is not None:
        raise DataError(f"{place}: documents are named by id; give their file with corpus")
    forms = "; ".join(
        f"{name}: {', '.join(form.columns)}" for name, form in FORMATS.items() if form.columns
    )
    there = ", ".join(map(str, values))
    raise DataError(
        f"{place}: no form of training data has the columns {there}. Name them with columns, or "
        f'say format = "columns" if their order is query, positive, negatives. Known: {forms}.'
    )


def numbered(rows: Iterable[TrainingRow], labels: Mapping[str, int]) -> list[TrainingRow]:
    """The rows with their words for labels as numbers: NLI's own, or in alphabetical order."""
    if not labels:
        return list(rows)
    order = NLI_LABELS if set(labels) <= set(NLI_LABELS) else sorted(labels)
    of_word = {found: order.index(word) for word, found in labels.items()}
    return [row if row.label is None else replace(row, label=of_word[row.label]) for row in rows]
