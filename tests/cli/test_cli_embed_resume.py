"""polyvec embed -o: what an interrupted run has computed is not computed again."""

import json

import numpy as np
import pytest

from polyvec import Embedder
from polyvec.cli import common, embed_resumed

TEXTS = [f"text {i % 23} of {i}" for i in range(50)]


class Counting:
    """An embedder that stops after some texts, as a kill would, and counts what it encodes."""

    def __init__(self, embedder, limit=None):
        self.embedder, self.limit, self.texts = embedder, limit, []

    def __getattr__(self, name):
        return getattr(self.embedder, name)

    def encode_iter(self, inputs, **options):
        def counted():
            for text in inputs:
                if self.limit is not None and len(self.texts) >= self.limit:
                    raise KeyboardInterrupt
                self.texts.append(text)
                yield text

        return self.embedder.encode_iter(counted(), **options)


@pytest.fixture
def call(run, monkeypatch, tiny_bert, tmp_path):
    """Runs embed -o with chunks of 8 texts and, with a limit, an end by Ctrl-C."""
    monkeypatch.setattr(embed_resumed, "CHUNK", 8)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")

    def called(*options, limit=None, output="v.npy", texts=None):
        if texts is not None:
            (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
        embedder = Counting(Embedder.from_pretrained(tiny_bert), limit)
        monkeypatch.setattr(common, "load_model", lambda *_, **__: embedder)
        done = run("embed", tmp_path / "texts.txt", "-o", tmp_path / output, *options)
        return done, embedder.texts

    return called


@pytest.mark.parametrize(
    ("output", "options"),
    [
        ("v.npy", []),
        ("v.jsonl", ["--prompt", "a: ", "--normalize", "--truncate-dim", "5"]),
        ("v.safetensors", ["--precision", "ubinary"]),
    ],
)
def test_a_second_run_goes_on_and_gives_the_same_file(call, tmp_path, output, options):
    whole, texts = call(*options, output=output)
    assert (whole.status, len(texts)) == (0, 50)
    expected = (tmp_path / output).read_bytes()
    (tmp_path / output).unlink()
    killed, _ = call(*options, output=output, limit=30)
    assert killed.status == 130
    assert not (tmp_path / output).exists()
    resumed, texts = call(*options, output=output)
    assert resumed.status == 0, resumed.err
    assert "24 vectors of an interrupted run" in resumed.err  # three whole chunks
    assert texts == TEXTS[24:]
    assert (tmp_path / output).read_bytes() == expected
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["texts.txt", output])


def test_texts_that_moved_are_found(call, tmp_path, tiny_bert):
    call(limit=30)
    order = np.random.default_rng(0).permutation(50)
    moved = ["new", *(TEXTS[i] for i in order), "newer"]
    done, texts = call(texts=moved, output="v.jsonl")
    assert len(texts) == 52  # another output resumes nothing
    done, texts = call()
    assert done.status == 0
    assert len(texts) == 52 - 24
    found = np.load(tmp_path / "v.npy")
    expected = Embedder.from_pretrained(tiny_bert).encode(moved)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # other batches round differently
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-5)


@pytest.mark.parametrize("other", [["--prompt", "x"], ["--normalize", "--truncate-dim", "4"]])
def test_vectors_of_other_options_are_not_reused(call, other):
    call(limit=30)
    done, texts = call(*other)
    assert (done.status, len(texts)) == (0, 50)


def test_damage_is_computed_again(call, tmp_path, tiny_bert):
    call(limit=30)
    shards = sorted(tmp_path.glob(".v.npy.pending/*/*"))
    assert len(shards) == 3
    raw = bytearray(shards[0].read_bytes())
    raw[-200] ^= 1
    shards[0].write_bytes(raw)
    done, _ = call()
    assert done.status == 0, done.err
    expected = Embedder.from_pretrained(tiny_bert).encode(TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


def test_a_malformed_line_at_the_end_is_found_before_anything_is_embedded(
    run, tmp_path, monkeypatch
):
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a"}\n' * 3000 + "{\n")
    monkeypatch.setattr(common, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    done = run("embed", file, "-o", tmp_path / "v.npy")
    assert done.status == 2
    assert "x.jsonl:3001: not JSON" in done.err


def test_the_bar_of_a_file_knows_how_many_texts_there_are(tiny, monkeypatch):
    from polyvec.embed import encoding
    from polyvec.interfaces import RunOptions

    totals = []
    real = encoding.progress
    monkeypatch.setattr(
        encoding, "progress", lambda total, *rest: totals.append(total) or real(total, *rest)
    )
    list(tiny.encode_iter(iter(["a", "b"]), options=RunOptions(num_texts=2)))
    list(tiny.encode_iter(iter(["a", "b"])))
    list(tiny.encode_iter(["a", "b", "c"], options=RunOptions(num_texts=2)))
    assert totals == [2, None, 3]
