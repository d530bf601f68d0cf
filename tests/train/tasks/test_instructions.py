"""Instructions of single rows: what the model reads of them while it trains."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from polyvec import Embedder
from polyvec.data.training.rows import TrainingRow
from polyvec.embed.compose import compose
from polyvec.embed.sections import EMBEDDER
from polyvec.errors import DataError
from polyvec.recipe import load_recipe
from polyvec.train.settings import StageSettings
from polyvec.train.task import Share
from polyvec.train.tasks import TASKS

ASK, OTHER = "Find a pet", "Name the river"
STS = "Retrieve semantically similar text"
# Of a recipe and template: what is read of a query with an instruction, the pooled part of it,
# a query without one, and a document. Written from the sources that the recipes name.
FORMS = {
    ("e5-mistral", None): (
        f"<s>Instruct: {ASK}\nQuery: a cat</s>",
        None,
        f"<s>Instruct: {STS}\nQuery: a cat</s>",
        "<s>a pet</s>",
    ),
    ("llm2vec", "llm2vec_training"): (f"<s>{ASK}; a cat", " a cat", f"<s>{STS}; a cat", "<s>a pet"),
    ("gritlm", None): (
        f"<s><|user|>\n{ASK}\n<|embed|>\na cat",
        "a cat",
        f"<s><|user|>\n{STS}\n<|embed|>\na cat",
        "<s><|embed|>\na pet",
    ),
    ("nv-embed", None): (
        f"<s>Instruct: {ASK}\nQuery: a cat</s>",
        " a cat</s>",
        f"<s>Instruct: {STS}\nQuery: a cat</s>",
        "<s>a pet</s>",
    ),
}


@functools.cache
def embedder(recipe: str, template: str | None = None) -> Embedder:
    settings = load_recipe(recipe).at(EMBEDDER, "nano")
    changed = settings if template is None else replace(settings, template=template, fields={})
    return compose(changed)


def read(model, rows, batch_number=0, settings=None):
    """The tokens of queries, then documents, as the stage's work has them."""
    facts = {"embedder": model, "stage": StageSettings("scl")}
    task = TASKS.build("scl", settings or {}, facts, where="")
    task.batch_number = batch_number
    work = task.work(rows, [Share(0, len(rows))], 0)
    found = []
    for piece in work.pieces:
        batch, start = piece.payload.batch, 0
        for length in batch.lengths:
            part = slice(start, start + length)
            found.append((batch.ids_T[part].tolist(), batch.pooled_T[part].tolist()))
            start += length
    order = work.order["encode"].tolist()
    return [found[order.index(place)] for place in range(len(order))]


def as_encoded(model, text, role, prompt):
    ((tokens,),) = model.tokenize([text], role=role, prompt=prompt)
    return tokens.ids.tolist(), tokens.pooled.tolist()


@pytest.mark.parametrize("recipe", FORMS)
def test_a_rows_instruction_is_read_as_encode_query_reads_it(recipe):
    model = embedder(*recipe)
    rows = [
        TrainingRow("a cat", ("a pet",), instruction=ASK),
        TrainingRow("a cat", ("a pet",), instruction=OTHER),
        TrainingRow("a cat", ("a pet",)),
    ]
    found = read(model, rows)
    with_instruction, pooled, without, document = FORMS[recipe]
    ids = model.tokenizer(with_instruction, add_special_tokens=False).input_ids
    assert found[0][0] == ids
    assert found[2][0] == model.tokenizer(without, add_special_tokens=False).input_ids
    assert found[3][0] == model.tokenizer(document, add_special_tokens=False).input_ids
    assert found[0] == as_encoded(model, "a cat", "query", ASK)
    assert found[1] == as_encoded(model, "a cat", "query", OTHER)
    assert found[2] == as_encoded(model, "a cat", "query", None)
    own = np.asarray(found[0][0])[np.asarray(found[0][1])].tolist()
    assert model.tokenizer.decode(own) == model.tokenizer.decode(
        ids if pooled is None else model.tokenizer(pooled, add_special_tokens=False).input_ids
    )


def test_instructor_reads_medis_instructions_on_both_sides():
    """The instruction as it is written, joined to the text; only the text is pooled."""
    lead, other = "Represent the question; Input: ", "Represent the answer; Input: "
    model = embedder("instructor", "instructor_free")
    row = TrainingRow("a cat", ("a pet",), ("a dog",), instruction=lead, document_instruction=other)
    found = read(model, [row])
    for (ids, pooled), start, text in zip(
        found, (lead, other, other), ("a cat", "a pet", "a dog"), strict=True
    ):
        assert ids == model.tokenizer(f"{start}{text}").input_ids
        own = [each for each, is_pooled in zip(ids, pooled, strict=True) if is_pooled]
        assert model.tokenizer.decode(own).strip() == f"{text}</s>"
    assert found[0] == as_encoded(model, "a cat", "query", lead)
    assert found[1] == as_encoded(model, "a pet", "document", other)


def test_an_instruction_that_the_template_cannot_show_is_refused():
    for recipe, row in (
        ("instructor", TrainingRow("a", ("b",), instruction=ASK, place="x.jsonl:3")),
        ("e5-mistral", TrainingRow("a", ("b",), document_instruction=ASK, place="x.jsonl:3")),
    ):
        with pytest.raises(DataError, match=r"x\.jsonl:3: .* has no slot for 'instruction'"):
            read(embedder(recipe), [row])


def test_documents_of_symmetric_rows_are_read_as_queries():
    model = embedder("e5-mistral")
    rows = [
        TrainingRow("a cat", ("a pet",), instruction=ASK),
        TrainingRow("a cat", ("a pet", "a dog"), ("a car",), instruction=ASK, symmetric=True),
        TrainingRow("a dog", ("a pet",), symmetric=True),
    ]
    found = read(model, rows)
    asked = [as_encoded(model, text, "query", ASK) for text in ("a pet", "a dog", "a car")]
    assert found[3] == as_encoded(model, "a pet", "document", None)
    assert found[4:7] == asked
    assert found[7] == as_encoded(model, "a pet", "query", None)


def test_demonstrations_stand_before_queries_alone():
    model = embedder("bge-icl")
    rows = [
        TrainingRow("a cat", ("a pet",), instruction=ASK, symmetric=True, dataset="x"),
        TrainingRow("a dog", ("a friend",), instruction=ASK, symmetric=True, dataset="x"),
    ]
    for batch in range(6):
        found = read(model, rows, batch, {"examples": {"kind": "in_batch", "k": 1}})
        assert found[2] == as_encoded(model, "a pet", "query", ASK)
