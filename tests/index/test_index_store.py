"""The index on disk: what goes in comes out, unchanged texts cost nothing, damage is named."""

import contextlib
import json
import shutil
import threading

import numpy as np
import pytest
import torch

from polyvec import Embedder
from polyvec.data.texts import Record
from polyvec.embed.inputs.prompts import PromptTable
from polyvec.errors import DamagedCacheWarning, DataError, IndexStoreError, InputError, ModelError
from polyvec.index import exact, plain
from polyvec.index.folder import Manifest, locked
from polyvec.index.plain import PlainIndex
from polyvec.storage.vector_cache import Entries

TEXTS = ["a cat", "a dog", "", "deux\u2028lignes\nhere", "漢字 🙂", "a cat"]


def records(texts=TEXTS, prefix="id-"):
    return [Record(f"{prefix}{i}", text) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def embedder(tiny_bert):
    return Embedder.from_pretrained(tiny_bert)


def build(folder, embedder, texts=TEXTS, **options):
    return PlainIndex.build(folder, records(texts), embedder, show_progress_bar=False, **options)


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_goes_in_comes_out(tmp_path, embedder):
    made, report = build(tmp_path / "new" / "index", embedder, model="a name")
    opened = PlainIndex.open(tmp_path / "new" / "index")
    assert opened.items == made.items == records()
    assert opened.manifest == made.manifest
    assert (len(opened), opened.manifest.dimension, opened.manifest.model) == (6, 32, "a name")
    np.testing.assert_array_equal(opened.vectors_NE, made.vectors_NE)
    assert isinstance(opened.vectors_NE, np.memmap), "vectors stay on the disk until used"
    np.testing.assert_allclose(opened.vectors_NE, embedder.encode(TEXTS), atol=1e-5)
    assert (report.num_texts, report.num_embedded, report.encode.num_texts) == (6, 5, 5)


def test_search_finds_what_brute_force_finds(tmp_path, embedder):
    build(tmp_path, embedder)
    index = PlainIndex.open(tmp_path)
    hits = index.search(["a cat", "a dog"], embedder, top_k=3)
    scores = embedder.encode(["a cat", "a dog"]) @ embedder.encode(TEXTS).T
    for row, found in zip(scores, hits, strict=True):
        rows = [int(hit.id.removeprefix("id-")) for hit in found]
        assert [hit.text for hit in found] == [TEXTS[i] for i in rows]
        np.testing.assert_allclose([hit.score for hit in found], row[rows], atol=1e-5)
        np.testing.assert_allclose(row[rows], np.sort(row)[::-1][:3], atol=1e-5)
    # Equal texts have equal vectors; a matrix product may still round their scores differently.
    assert {hit.id for hit in hits[0][:2]} == {"id-0", "id-5"}
    assert len(index.search(["a cat"], embedder, top_k=99)[0]) == len(TEXTS)
    with pytest.raises(InputError, match="top_k must be at least 1"):
        index.search(["a cat"], embedder, top_k=0)


def test_vectors_are_normalised_once_and_never_copied(tmp_path, embedder, monkeypatch):
    """Of four searches: lengths of all vectors once, and no vector normalised but the queries'."""
    build(tmp_path, embedder, ["a cat", "a dog", "a boat"])
    lengths, num_normalised = [], []
    inverse_lengths, normalize = exact.inverse_lengths, torch.nn.functional.normalize

    def counted(vectors_NE):
        lengths.append(len(vectors_NE))
        return inverse_lengths(vectors_NE)

    def copied(vectors_NE, **options):
        num_normalised.append(len(vectors_NE))
        return normalize(vectors_NE, **options)

    index = PlainIndex.open(tmp_path)
    queries = [embedder.encode_query([text]) for text in ("cat", "dog", "boat", "a")]
    monkeypatch.setattr(exact, "inverse_lengths", counted)
    monkeypatch.setattr(torch.nn.functional, "normalize", copied)
    for query_1E in queries:
        index.nearest(query_1E, 2)
    index.nearest(queries[0], 2, rows=[0, 2])
    assert sorted(lengths) == [1, 1, 1, 1, 1, 3], "one of all texts, one of each query"
    assert not num_normalised
    assert isinstance(index.vectors_NE, np.memmap), "the file stays on the disk"


def test_an_index_of_nothing_finds_nothing(tmp_path, embedder):
    _, report = build(tmp_path, embedder, [])
    index = PlainIndex.open(tmp_path)
    assert (len(index), index.vectors_NE.shape, report.num_embedded) == (0, (0, 32), 0)
    assert index.search(["a", "b"], embedder) == [[], []]
    assert build(tmp_path, embedder)[1].num_embedded == 5


def test_only_changed_texts_are_embedded_again(tmp_path, embedder):
    counts = []
    for texts in (TEXTS, TEXTS, TEXTS[::-1], ["a cat", "a cow", "a dog"], TEXTS[:2]):
        index, report = build(tmp_path, embedder, texts)
        counts.append((report.num_embedded, report.encode.num_texts))
        np.testing.assert_allclose(index.vectors_NE, embedder.encode(texts), atol=1e-5)
        assert [item.text for item in PlainIndex.open(tmp_path).items] == texts
    assert counts == [(5, 5), (0, 0), (0, 0), (1, 1), (0, 0)]


def test_more_texts_than_a_chunk(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(plain, "CHUNK", 4)
    texts = [f"number {i % 11}" for i in range(30)]
    index, report = build(tmp_path, embedder, texts)
    assert report.num_embedded == 11
    np.testing.assert_allclose(index.vectors_NE, embedder.encode(texts), atol=1e-5)


def test_the_folder_holds_plain_files_and_nothing_left_over(tmp_path, embedder):
    for texts in (TEXTS, ["other"], TEXTS):
        build(tmp_path, embedder, texts)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names[0] == ".polyvec-index"
        assert [name.split("-")[0] for name in names[1:]] == ["items", "manifest.json", "vectors"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    vectors = np.load(tmp_path / manifest["vectors"])
    lines = (tmp_path / manifest["items"]).read_text("utf-8").split("\n")
    assert vectors.dtype == np.float32
    assert [json.loads(line)["text"] for line in lines[:-1]] == TEXTS


def test_prompts_of_documents_and_queries_are_used_and_kept(tmp_path, tiny_bert, embedder):
    build(tmp_path, embedder)
    prompted = Embedder.from_pretrained(tiny_bert)
    prompted.prompt_table = PromptTable({"query": "seek: ", "passage": "read: "})
    index, report = build(tmp_path, prompted)
    assert report.num_embedded == 5, "the old vectors had another prompt"
    assert index.manifest.prompt == "read: "
    expected = prompted.encode([f"read: {text}" for text in TEXTS])
    np.testing.assert_allclose(index.vectors_NE, expected, atol=1e-5)
    score = prompted.encode("seek: a cat") @ expected[0]
    hits = {hit.id: hit.score for hit in index.search(["a cat"], prompted)[0]}
    assert hits["id-0"] == pytest.approx(score, abs=1e-5)


def test_another_model_is_refused_at_search_and_embeds_anew_at_build(tmp_path, tiny_bert, embedder):
    build(tmp_path, embedder, model="tiny")
    other = Embedder.from_pretrained(tiny_bert, truncate_dim=16)
    with pytest.raises(IndexStoreError, match=r"built with another model \(tiny\)"):
        PlainIndex.open(tmp_path).search(["a"], other)
    index, report = build(tmp_path, other)
    assert (report.num_embedded, index.vectors_NE.shape) == (5, (6, 16))
    with pytest.raises(IndexStoreError, match="another model"):
        index.check(embedder)


def test_ids_must_be_text_and_come_once(tmp_path, embedder):
    bad = [
        (
            [Record("a", "x"), Record("b", "y"), Record("a", "z")],
            r"duplicate id 'a' \(texts 1 and 3\)",
        ),
        ([Record("a\ud800", "x")], "text 1: id 'a.ud800' is not a valid string"),
        ([Record(7, "x")], "text 1: id 7 is not a valid string"),
        ([Record("a", "x"), Record("b", None)], r"text 2 \(id 'b'\) is NoneType, not a string"),
    ]
    for items, message in bad:
        with pytest.raises(DataError, match=message):
            PlainIndex.build(tmp_path / "index", items, embedder)
    assert not (tmp_path / "index").exists()
    odd = [Record("a\nb", "x"), Record("\u200b", "y")]
    PlainIndex.build(tmp_path / "index", odd, embedder)
    assert PlainIndex.open(tmp_path / "index").items == odd


def test_a_text_that_is_none_leaves_the_old_index(tmp_path, embedder):
    build(tmp_path, embedder)
    with pytest.raises(InputError, match="lone surrogate"):
        build(tmp_path, embedder, ["fine", "\ud800"])
    assert PlainIndex.open(tmp_path).items == records()


def test_a_vector_of_nan_is_refused_by_id(tmp_path, embedder, monkeypatch):
    build(tmp_path, embedder)
    monkeypatch.setattr(
        Embedder, "encode_iter", lambda *args, **options: [np.full((2, 32), np.nan, np.float32)]
    )
    with pytest.raises(ModelError, match="the vector of text 'id-0' holds NaN"):
        build(tmp_path, embedder, ["x", "y"])
    assert PlainIndex.open(tmp_path).items == records()


def test_no_index_says_how_to_make_one(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "gone", tmp_path / "file"):
        with pytest.raises(
            IndexStoreError, match="contains no index; build one with: polyvec index"
        ):
            PlainIndex.open(folder)


def test_a_second_builder_is_refused_while_the_first_builds(tmp_path, embedder):
    build(tmp_path, embedder)
    with (
        locked(tmp_path),
        pytest.raises(IndexStoreError, match="another process is building this index"),
    ):
        build(tmp_path, embedder, ["b"])
    assert PlainIndex.open(tmp_path).items == records()
    build(tmp_path, embedder, ["b"])


def test_an_interrupted_build_is_taken_up(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr(plain, "CHUNK", 2)
    texts = [f"text {i}" for i in range(10)]
    put, calls = Entries.put, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        put(self, *args)

    monkeypatch.setattr(Entries, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, embedder, texts)
    monkeypatch.setattr(Entries, "put", put)
    with pytest.raises(IndexStoreError, match="contains no index"):
        PlainIndex.open(tmp_path)
    damaged, *_ = tmp_path.glob("pending/*/*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.warns(DamagedCacheWarning, match=damaged.name):
        index, report = build(tmp_path, embedder, texts)
    assert report.num_embedded == 10 - 3 * 2 + 2
    np.testing.assert_allclose(index.vectors_NE, embedder.encode(texts), atol=1e-5)


def rewrite(**changes):
    """Another manifest, with the checksum of what it says now."""

    def change(folder, manifest):
        new = {**manifest, **changes}
        with contextlib.suppress(TypeError):
            new["crc32"] = Manifest(**new).own_sum()
        (folder / "manifest.json").write_text(json.dumps(new))

    return change


def cut(key, size):
    def change(folder, manifest):
        path = folder / manifest[key]
        path.write_bytes(path.read_bytes()[:size])

    return change


def put(name, data):
    return lambda folder, manifest: (folder / manifest.get(name, name)).write_bytes(data)


def move_out(folder, manifest):
    """The right bytes, but outside the folder."""
    (folder / manifest["vectors"]).rename(folder.parent / manifest["vectors"])
    rewrite(vectors=f"../{manifest['vectors']}")(folder, manifest)


DAMAGE = {
    "vectors cut": cut("vectors", -1),
    "vectors cut to the header": cut("vectors", 128),
    "vectors empty": cut("vectors", 0),
    "vectors of pickles": put("vectors", b"\x80\x04N."),
    "vectors gone": lambda folder, manifest: (folder / manifest["vectors"]).unlink(),
    "items cut": cut("items", -2),
    "items a line short": cut("items", -35),
    "items not UTF-8": put("items", b"\xff\n"),
    "items not records": put("items", b'["a"]\n' * 6),
    "items with other keys": put("items", b'{"id": "a", "txt": "b"}\n' * 6),
    "items gone": lambda folder, manifest: (folder / manifest["items"]).unlink(),
    "manifest cut": put("manifest.json", b'{"format": 1, "mod'),
    "manifest empty": put("manifest.json", b""),
    "manifest not UTF-8": put("manifest.json", b"\xff"),
    "manifest a list": put("manifest.json", b"[1]"),
    "manifest nested": put("manifest.json", b"[" * 100_000),
    "manifest of another format": rewrite(format=3),
    "manifest with an unknown key": rewrite(more=1),
    "manifest with a wrong type": rewrite(count="6"),
    "manifest with a wrong count": rewrite(count=5),
    "manifest with a wrong dimension": rewrite(dimension=31),
    "manifest pointing outside": move_out,
    "manifest pointing up": rewrite(items=".."),
    "manifest pointing at itself": rewrite(vectors="manifest.json"),
    "manifest pointing at nothing": rewrite(vectors=""),
    "manifest pointing at NUL": rewrite(items="items-\0.jsonl"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_does_not_prevent_a_new_index(tmp_path, embedder, damage):
    folder = tmp_path / "index"
    build(folder, embedder)
    damage(folder, json.loads((folder / "manifest.json").read_text()))
    with pytest.raises(IndexStoreError) as caught:
        PlainIndex.open(folder)
    assert str(folder) in str(caught.value)
    index, _ = build(folder, embedder)
    assert PlainIndex.open(folder).items == records()
    np.testing.assert_allclose(index.vectors_NE, embedder.encode(TEXTS), atol=1e-5)


def test_no_byte_of_the_header_brings_another_error(tmp_path, embedder):
    index, _ = build(tmp_path, embedder)
    path = tmp_path / index.manifest.vectors
    whole = path.read_bytes()
    refused = 0
    for place in range(128):
        for value in (0, 9, 34, 39, 40, 48, 57, 123, 255):
            damaged = bytearray(whole)
            damaged[place] = value
            path.write_bytes(damaged)
            try:
                found = PlainIndex.open(tmp_path).vectors_NE
            except IndexStoreError:
                refused += 1
            else:
                assert (found.shape, found.dtype) == ((6, 32), np.float32)
    assert refused > 500


def test_vectors_of_another_type_are_refused(tmp_path, embedder):
    index, _ = build(tmp_path, embedder)
    np.save(tmp_path / index.manifest.vectors, index.vectors_NE.astype(np.float64))
    with pytest.raises(IndexStoreError, match=r"damaged \(manifest.json has 6 x 32, .* float64"):
        PlainIndex.open(tmp_path)


@pytest.mark.parametrize(
    "name", ["thesis.tex", "manifest.json", ".lock", "pending/my.npz", "vectors-1.npy", ".x.tmp"]
)
def test_a_folder_with_other_files_is_not_touched(tmp_path, embedder, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"name": "mine"}')
    before = contents(tmp_path)
    with pytest.raises(IndexStoreError, match=r"contains other files|format None, this version"):
        build(tmp_path, embedder)
    assert contents(tmp_path) == before


def test_a_file_in_the_way_is_named(tmp_path, embedder):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(IndexStoreError, match="exists and is not a folder"):
        build(tmp_path / "file", embedder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_users_own_files_beside_an_index_stay(tmp_path, embedder):
    build(tmp_path, embedder)
    mine = ["notes.txt", "vectors-mine.npy", "items-old.jsonl", ".draft.tmp"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    build(tmp_path, embedder, ["new"])
    assert {name for name in mine if (tmp_path / name).read_text() == "mine"} == set(mine)


def test_a_copy_without_hidden_files_is_an_index(tmp_path, embedder):
    build(tmp_path / "a", embedder)
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns(".*"))
    assert PlainIndex.open(tmp_path / "b").items == records()
    assert build(tmp_path / "b", embedder)[1].num_embedded == 0


def test_a_reader_during_rebuilds_gets_one_whole_index(tmp_path, embedder):
    generations = {6: TEXTS, 3: ["x", "y", "a dog"]}
    vectors = {size: embedder.encode(texts) for size, texts in generations.items()}
    build(tmp_path, embedder)
    done, built = threading.Event(), []

    def rebuild():
        try:
            for turn in range(16):
                build(tmp_path, embedder, generations[(3, 6)[turn % 2]])
            built.append(True)
        finally:
            done.set()

    thread = threading.Thread(target=rebuild)
    thread.start()
    seen = []
    while not done.is_set():
        index = PlainIndex.open(tmp_path)
        assert [item.text for item in index.items] == generations[len(index)]
        np.testing.assert_allclose(index.vectors_NE, vectors[len(index)], atol=1e-5)
        seen.append(len(index))
    thread.join()
    assert built
    assert len(seen) > 10
    assert set(seen) == {3, 6}
