"""A model of mteb as our TextEncoder: in an index, and in our protocols."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from polyvec.data.tasks.sets import RetrievalSet, StsSet
from polyvec.data.texts import Record
from polyvec.errors import InputError
from polyvec.evaluate.tasks import Evaluator
from polyvec.index.store import Index

pytest.importorskip("mteb", reason="needs the extra 'mteb'")

from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.similarity_functions import select_pairwise_similarity, select_similarity

from polyvec.evaluate.mteb_bridge import MtebEncoder, MtebModel

WORDS = ("cat", "dog", "boat", "river", "code", "moon")


class Toy:
    """Counts of words; a query does not count "moon". Notes the role and size of each batch."""

    def __init__(self, revision: str | None = "1", function: str | None = "cosine") -> None:
        facts = {
            "name": "toy/words",
            "revision": revision,
            "similarity_fn_name": function and ScoringFunction(function),
        }
        self.mteb_model_meta = ModelMeta.create_empty(facts)
        self.calls: list[tuple[str | None, int]] = []

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **options):
        role = prompt_type.value if prompt_type else None
        rows = []
        for batch in inputs:
            self.calls.append((role, len(batch["text"])))
            for text in batch["text"]:
                rows.append([text.split().count(word) for word in WORDS])
                rows[-1][-1] *= role != "query"
        return np.array(rows, np.float32)

    def similarity(self, a, b):
        return select_similarity(a, b, self.mteb_model_meta.similarity_fn_name)

    def similarity_pairwise(self, a, b):
        return select_pairwise_similarity(a, b, self.mteb_model_meta.similarity_fn_name)


def test_roles_and_batches_reach_the_model():
    toy = Toy()
    model = MtebModel(toy)
    toy.calls.clear()
    found = model.encode_query(["moon cat", "dog"])
    assert_array_equal(found, [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]])
    assert model.encode_document("moon")[-1] == 1
    list(model.encode_iter(["cat"] * 40, chunk_size=35))
    assert toy.calls == [("query", 2), ("document", 1), (None, 32), (None, 3), (None, 5)]
    assert model.encode([]).shape == (0, len(WORDS))
    with pytest.raises(InputError, match="chooses its prompt by the role"):
        model.encode(["cat"], prompt="find: ")
    with pytest.raises(InputError, match="text 1 is int, not a string"):
        model.encode(["cat", 3])


def test_an_index_is_built_and_searched_with_it(tmp_path):
    model = MtebModel(Toy())
    texts = ["a cat", "a dog", "moon", "river boat"]
    records = [Record(str(number), text) for number, text in enumerate(texts)]
    index, _ = Index.build(tmp_path / "index", records, model)
    (found,) = index.search(["boat river moon"], model, top_k=1)
    assert [hit.text for hit in found] == ["river boat"]


def test_our_protocols_measure_it():
    data = RetrievalSet(
        "toy", "test", {"d": "cat", "e": "dog"}, {"q": "dog", "p": "cat cat"}, {"q": {"e": 1}}
    )
    evaluator = Evaluator(MtebModel(Toy()))
    assert evaluator.measure(data).result.main_score == 1
    pairs = StsSet("s", "test", ("cat", "cat", "cat dog"), ("cat", "dog", "dog"), (5.0, 0.0, 3.0))
    assert evaluator.measure(pairs).result.main_score == pytest.approx(1)


def test_its_fingerprint_is_its_name_and_revision():
    one, two, other = (MtebModel(Toy(revision)).fingerprint() for revision in ("1", "1", "2"))
    assert one == two != other
    with pytest.raises(InputError, match="pass fingerprint="):
        MtebModel(Toy(None))
    assert MtebModel(Toy(None), fingerprint="1").fingerprint() == one


def test_there_and_back_are_the_same_vectors():
    """Our wrapper of an mteb model, wrapped for mteb again."""
    import mteb

    task = mteb.get_task("STS12").metadata
    back = MtebEncoder(MtebModel(Toy()))
    inputs = [{"text": ["moon", "cat dog"]}]
    where = {"task_metadata": task, "hf_split": "test", "hf_subset": "default"}
    assert_array_equal(back.encode(inputs, **where), Toy().encode(inputs, **where))


def test_a_similarity_that_mteb_cannot_merge_is_refused():
    with pytest.raises(InputError, match=r"mteb cannot score by the similarity 'custom'"):
        MtebEncoder(MtebModel(Toy(function=None)))
