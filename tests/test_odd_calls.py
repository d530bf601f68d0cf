"""What nobody would pass to the Python API: an error of polyvec's own, or the right answer."""

import math
import re

import numpy as np
import pytest
import torch

from polyvec import Embedder, Index
from polyvec.data.tasks.folder import read_folder
from polyvec.data.texts import Record, read_rows, read_texts
from polyvec.errors import InputError, PolyvecError
from polyvec.evaluate.significance import compare
from polyvec.evaluate.tasks import Evaluator
from polyvec.train.mining.settings import mining_settings

NO_PATHS = [5, None, True, b"x", ["x"], {}, "", " ", "a\0b", object()]

NO_TEXTS = [None, 5, 1.5, True, b"x", {}, {"a"}, {"text": "a"}, object(), math.nan, ...]
NO_TEXT = [None, 5, b"x", ["a"], {}, math.nan, "\udcff", "a\ud800", ("a",), True]
NO_COUNT = ["8", 0, -1, 2.5, 2.0, True, [2], {}, math.nan, math.inf, b"2"]
NO_NAME = [5, "x", "", ["float32"], {}, b"query", True, math.nan, "\udcff", ("a", "b")]
NO_SEED = [-1, 1.5, "1", None, True, [1]]
NO_EMBEDDER = [None, 5, "all-MiniLM-L6-v2", object(), Embedder, lambda texts: texts]
NO_RECORDS = [5, None, "ab", ["a", "b"], [("a", "b")], {"a": "b"}, [{"id": "a", "text": "b"}]]
NO_RECORD = [Record("a", 5), Record(5, "a"), Record(None, "a"), Record("a", None),
             Record("\udcff", "a"), Record("a", "\udcff"), Record("a", b"b")]  # fmt: skip


def shown(value: object) -> str:
    """An id that is the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(value))


@pytest.fixture(scope="module")
def embedder(tiny_bert):
    return Embedder.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def index(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "index"
    Index.build(folder, [Record("a", "a cat"), Record("b", "a dog")], embedder)
    return Index.open(folder)


@pytest.mark.parametrize("value", NO_TEXTS, ids=shown)
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document", "tokenize"])
def test_no_texts(embedder, method, value):
    with pytest.raises(InputError):
        getattr(embedder, method)(value)


@pytest.mark.parametrize("value", NO_TEXT, ids=shown)
def test_no_text_is_named_by_its_index(embedder, index, value):
    for call in (
        embedder.encode,
        embedder.encode_document,
        lambda texts: list(embedder.encode_iter(texts)),
        lambda texts: index.search(texts, embedder),
    ):
        with pytest.raises(InputError, match=r"inputs\[1\]"):
            call(["a cat", value])


@pytest.mark.parametrize("value", NO_COUNT, ids=shown)
@pytest.mark.parametrize("name", ["batch_size", "truncate_dim"])
def test_no_count(embedder, name, value):
    with pytest.raises(InputError, match=name):
        embedder.encode(["a cat"], **{name: value})


@pytest.mark.parametrize("value", NO_COUNT, ids=shown)
def test_no_count_of_hits_or_of_a_chunk(embedder, index, value):
    with pytest.raises(InputError, match="top_k"):
        index.search("a cat", embedder, top_k=value)
    with pytest.raises(InputError, match="chunk_size"):
        embedder.encode_iter(["a cat"], chunk_size=value)
    with pytest.raises(InputError, match="batch_size"):
        Index.build("unused", [], embedder, batch_size=value)


@pytest.mark.parametrize("value", NO_NAME, ids=shown)
@pytest.mark.parametrize(
    "name", ["prompt_name", "role", "precision", "output_value", "truncate", "device"]
)
def test_no_known_name(embedder, name, value):
    with pytest.raises(InputError, match=name):
        embedder.encode(["a cat"], **{name: value})


@pytest.mark.parametrize("value", [5, b"x", ["a"], True, {}, "\udcff", "a\ud800b"], ids=shown)
def test_no_prompt(embedder, value):
    with pytest.raises(InputError, match="prompt"):
        embedder.encode(["a cat"], prompt=value)


@pytest.mark.parametrize("name", ["options", "report"])
def test_no_options_and_no_report(embedder, name):
    with pytest.raises(InputError, match=name):
        list(embedder.encode_iter(["a cat"], **{name: 5}))


def test_false_as_a_word_is_not_true(embedder):
    with pytest.raises(InputError, match="normalize_embeddings is 'False'"):
        embedder.encode(["a cat"], normalize_embeddings="False")


class Wrong(list):
    """A list whose length is not the number of its texts."""

    def __init__(self, texts, length):
        super().__init__(texts)
        self.length = length

    def __len__(self):
        return self.length


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_a_length_that_is_wrong_gives_no_rows_of_chance(embedder, length):
    wrong = Wrong(["a cat", "a dog"], length)
    with pytest.raises(InputError, match=rf"says that it has {length} texts, and gives"):
        embedder.encode(wrong)
    with pytest.raises(InputError, match="pass a list"):
        embedder.encode_vectors(wrong)


@pytest.mark.parametrize("value", NO_PATHS, ids=shown)
def test_no_path(embedder, value):
    record = Record("a", "a cat")
    for call in (
        Embedder.from_pretrained,
        Index.open,
        lambda path: Index.build(path, [record], embedder),
        lambda path: list(read_texts(path)),
        lambda path: list(read_rows(path)),
        read_folder,
        embedder.save_pretrained,
    ):
        with pytest.raises(PolyvecError):
            call(value)


@pytest.mark.parametrize("value", NO_EMBEDDER, ids=shown)
def test_no_embedder(index, tmp_path, value):
    for call in (
        lambda: Index.build(tmp_path / "new", [Record("a", "a cat")], value),
        lambda: index.search("a cat", value),
    ):
        with pytest.raises(InputError, match="expected an embedder"):
            call()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("records", [*NO_RECORDS, *([each] for each in NO_RECORD)], ids=shown)
def test_no_records(embedder, tmp_path, records):
    with pytest.raises(PolyvecError):
        Index.build(tmp_path / "new", records, embedder)


@pytest.mark.parametrize("name", ["model", "scale", "attention"])
def test_an_index_is_never_written_that_cannot_be_read(embedder, tmp_path, name):
    with pytest.raises(InputError, match=f"{name} is 5"):
        Index.build(tmp_path / "new", [Record("a", "a cat")], embedder, **{name: 5})


VECTORS = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize(
    "value",
    [5, "a", None, {}, [], VECTORS[:, :2], VECTORS.astype(object), VECTORS.astype(str),
     np.zeros((2, 2, 2)), ["a"], [[1, 2], [3]], object()],
    ids=shown,
)  # fmt: skip
def test_no_vectors(embedder, value):
    for call in (embedder.similarity, embedder.similarity_pairwise):
        with pytest.raises(PolyvecError):
            call(value, VECTORS)


@pytest.mark.parametrize("seed", NO_SEED, ids=shown)
def test_no_seed(embedder, seed):
    with pytest.raises(InputError, match="seed"):
        compare(VECTORS, VECTORS, seed=seed)
    with pytest.raises(InputError, match="seed"):
        Evaluator(embedder, seed=seed)
    with pytest.raises(PolyvecError, match="seed"):
        mining_settings({"seed": seed})


@pytest.mark.parametrize("samples", [*NO_COUNT, 1, 10**20], ids=shown)
def test_no_number_of_samples(samples):
    with pytest.raises(InputError, match="samples"):
        compare(VECTORS, VECTORS, num_samples=samples)


# ---- odd, and right -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts",
    [("a cat", "a dog"), np.array(["a cat", "a dog"]), iter(["a cat", "a dog"]),
     dict.fromkeys(["a cat", "a dog"]).keys(), Wrong(["a cat", "a dog"], 2)],
    ids=lambda texts: type(texts).__name__,
)  # fmt: skip
def test_other_collections_of_texts(embedder, texts):
    np.testing.assert_array_equal(embedder.encode(texts), embedder.encode(["a cat", "a dog"]))


@pytest.mark.parametrize("size", [np.int64(1), 10**30])
def test_other_whole_numbers(embedder, size):
    expected = embedder.encode(["a cat", "a dog"])
    found = embedder.encode(["a cat", "a dog"], batch_size=size)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # other batches round differently


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_devices(embedder, device):
    assert embedder.encode("a cat", device=device).shape == (32,)


def test_seeded_odd_texts_have_finite_vectors(embedder):
    """Any Unicode that is valid: controls, right-to-left marks, unassigned and private ones."""
    draw = np.random.default_rng(0)
    texts = []
    for _ in range(60):
        codes = draw.choice([0x20, 0x250, 0x3000, 0xD800, 0x11000, 0x110000]) - 1
        points = draw.integers(0, codes + 1, draw.integers(0, 30))
        texts.append("".join(chr(x) for x in points if not 0xD800 <= x < 0xE000))
    vectors = embedder.encode(texts)
    assert vectors.shape == (60, 32)
    assert np.isfinite(vectors).all()


def test_autocast_changes_no_vector_that_a_fingerprint_names(embedder):
    """A cache of vectors made under a caller's autocast would hold other vectors than it says."""
    expected, name = embedder.encode(["a cat"]), embedder.fingerprint()
    with torch.autocast("cpu", torch.bfloat16):
        assert embedder.fingerprint() == name
        np.testing.assert_array_equal(embedder.encode(["a cat"]), expected)


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "cuda:99", "cup", 5, ["cpu"]])
def test_devices_without_numbers(embedder, device):
    with pytest.raises(InputError, match="device"):
        embedder.encode("a cat", device=device)
