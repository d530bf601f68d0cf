"""Instructions of single rows: what the model reads of them while it trains."""

import functools

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
    ("llm2vec", "llm2vec_training"): (
        f"<s>{ASK}; a cat", " a cat", f"<s>{STS}; a cat", "<s>a pet"
    ),
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
    return compose(settings if template is None else settings.replaced(template=template))


def read(model, rows):
    """The tokens of queries, then documents, as the stage's work has them."""
    stage = StageSettings("scl")
    task = TASKS.build("scl", {}, {"embedder": model, "stage": stage}, where="")
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
    assert model.tokenizer.decode(own) == model.tokenizer.decode(ids if pooled is None else
        model.tokenizer(pooled, add_special_tokens=False).input_ids)
