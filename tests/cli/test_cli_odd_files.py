"""Files with odd bytes and values through the verbs: exit status 0 or 2, one line, no traceback.

Valid files are changed by a seeded generator: bytes flipped, cut, doubled and inserted; values of
JSON replaced by others. Any exception but polyvec's own leaves main() and fails the test.
"""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from polyvec.cli import common

SEEDS = range(12)
ODD_VALUES = [
    None, True, False, 0, -1, 2**63, -(2**70), 1e308, 0.5, "", " ", "\ud800", "\0", "\u202e",
    "a" * 5000, [], [[]], ["a", None], {}, {"a": 1}, "NaN", "1_0", "٣", "../..", "{text}",
]  # fmt: skip
ODD_BYTES = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n\n", b'"', b",", b"\t", b"{", b"]",
    b"NaN", b"1e999", b"\xc0\x80", b"\x1f\x8b", b"PAR1", b"[" * 3000, b"9" * 5000,
]  # fmt: skip


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows, delimiter=","):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet(rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


TEXTS = [{"_id": f"n{i}", "text": text} for i, text in enumerate(["a cat", "two dogs", "sea"])]
PAIRS = [
    {"sentence1": "a cat", "sentence2": "a kitten", "score": 5},
    {"sentence1": "a cat", "sentence2": "a spoon", "score": 1},
    {"sentence1": "a dog", "sentence2": "the dog", "score": 4},
]
SUMMARIES = [
    {"text": "a cat", "human_summaries": ["cat"], "machine_summaries": ["a", "b"], "scores": [1, 2]}
]
LABELLED = [{"text": f"text {i}", "label": i % 2} for i in range(6)]
QUERIES = [{"_id": "q", "text": "cats"}]
CORPUS = [{"_id": "d", "text": "a cat"}, {"_id": "e", "text": "a dog"}]
TRAIN = [{"anchor": f"a {i}", "positive": f"b {i}"} for i in range(4)]
PUBLISHED = {"scores": {"STS12": {"test/default": 0.5}}}
QRELS = b"query-id\tcorpus-id\tscore\nq\td\t1\nq\te\t0\n"


@pytest.fixture(scope="session")
def odd_model(tiny):
    return tiny


@pytest.fixture
def call(run, monkeypatch, odd_model):
    """Runs a verb whose model is already there, and checks how it ended."""
    monkeypatch.setattr(common, "load_model", lambda *_, **__: odd_model)

    def checked(*arguments, stdin=b""):
        done = run(*arguments, stdin=stdin)
        assert done.status in (0, 2), done.err
        if done.status == 2:
            last = done.err.splitlines()[-1]
            assert last.startswith("polyvec"), done.err
            assert "Traceback" not in done.err
        return done

    return checked


def changed_bytes(raw, draw):
    """The bytes with one to three changes."""
    raw = bytearray(raw)
    for _ in range(draw.integers(1, 4)):
        at = int(draw.integers(0, len(raw) + 1))
        kind = draw.integers(5)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            del raw[at:]
        elif kind == 2:
            raw[at:at] = raw[: int(draw.integers(0, 200))]
        elif kind == 3:
            del raw[at : at + int(draw.integers(1, 20))]
        else:
            raw[at:at] = ODD_BYTES[draw.integers(len(ODD_BYTES))]
    return bytes(raw)


def changed_rows(rows, draw):
    """The rows with an odd value, without a field, with one more, or with an odd row."""
    rows = [dict(row) for row in rows]
    place = int(draw.integers(len(rows)))
    name = list(rows[place])[draw.integers(len(rows[place]))]
    value = ODD_VALUES[draw.integers(len(ODD_VALUES))]
    kind = draw.integers(4)
    if kind <= 1:
        rows[place][name] = value
    elif kind == 2:
        del rows[place][name]
    else:
        rows[place] = value
    return rows


READ = {
    "x.txt": b"a cat\n\ntwo  dogs\n",
    "x.jsonl": jsonl(TEXTS),
    "x.csv": table(TEXTS),
    "x.tsv": table(TEXTS, "\t"),
    "x.json": json.dumps(TEXTS).encode(),
    "x.parquet": parquet(TEXTS),
    "x.jsonl.gz": gzip.compress(jsonl(TEXTS), mtime=0),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", READ)
def test_texts_with_odd_bytes(call, tmp_path, name, seed):
    draw = np.random.default_rng([seed, len(name)])
    file = tmp_path / name
    file.write_bytes(changed_bytes(READ[name], draw))
    call("embed", file)
    call("index", tmp_path / "index", file)
    call("embed", stdin=file.read_bytes())
    call("data", "stats", file, "--guess", "script")


@pytest.mark.parametrize("seed", range(20))
def test_texts_with_odd_values(call, tmp_path, seed):
    rows = changed_rows(TEXTS, np.random.default_rng(seed))
    file = tmp_path / "x.jsonl"
    file.write_bytes(jsonl(rows))
    call("embed", file)
    call("data", "stats", file, "--guess", "script")
    call("embed", file, "--column", "text", "--id-column", "text")
    call("generate", file, "--dry-run", "--model", "polyvec/nowhere", "--template", "{text}")


def folders(change, draw):
    """(name of the data set, its files), one of them changed."""
    ranked = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
    sets = {
        "pairs": {"test.jsonl": PAIRS},
        "summaries": {"test.jsonl": SUMMARIES},
        "labels": {"test.jsonl": LABELLED},
        "classes": {"train.jsonl": LABELLED, "test.jsonl": LABELLED},
        "ranked": ranked,
    }
    for name, files in sets.items():
        chosen = sorted(files)[draw.integers(len(files))]
        found = {}
        for file, rows in files.items():
            raw = rows if isinstance(rows, bytes) else jsonl(rows)
            if file == chosen:
                if change == "values" and not isinstance(rows, bytes):
                    raw = jsonl(changed_rows(rows, draw))
                else:
                    raw = changed_bytes(raw, draw)
            found[file] = raw
        yield name, found


@pytest.mark.parametrize("change", ["bytes", "values"])
@pytest.mark.parametrize("seed", SEEDS)
def test_data_sets(call, tmp_path, seed, change):
    draw = np.random.default_rng([seed, len(change)])
    for name, files in folders(change, draw):
        for file, raw in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
        call("evaluate", "model", tmp_path / name, "--no-cache")
        call("data", "stats", tmp_path / name, "--guess", "script")


@pytest.mark.parametrize("change", ["bytes", "values"])
@pytest.mark.parametrize("seed", SEEDS)
def test_training_data(call, tmp_path, seed, change):
    draw = np.random.default_rng([seed, len(change), 1])
    raw = (
        jsonl(changed_rows(TRAIN, draw))
        if change == "values"
        else changed_bytes(jsonl(TRAIN), draw)
    )
    (tmp_path / "train.jsonl").write_bytes(raw)
    output = tmp_path / "mined.jsonl"
    call("mine", tmp_path / "train.jsonl", "-o", output, "--no-cache", "--num-negatives", "1")


@pytest.mark.parametrize("seed", SEEDS)
def test_published_scores_and_schemas(call, tmp_path, seed):
    draw = np.random.default_rng([seed, 2])
    (tmp_path / "test.jsonl").write_bytes(jsonl(PAIRS))
    file = tmp_path / "published.json"
    file.write_bytes(changed_bytes(json.dumps(PUBLISHED).encode(), draw))
    call("evaluate", "model", tmp_path, "--no-cache", "--published", file)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    file.write_bytes(changed_bytes(json.dumps(schema).encode(), draw))
    call("generate", "--dry-run", "--model", "polyvec/nowhere", "--schema", file, stdin=b"a\n")


RECIPE = b"""[system]
name = "mine"
paper = "-"
tasks = ["similarity"]
[embedder]
pooling = "mean"
backbone = "polyvec/nano-lm"
[[stage]]
kind = "scl"
batch_size = 2
learning_rate = 2e-5
data = [{ path = "pairs.jsonl" }]
"""


@pytest.mark.parametrize("seed", range(24))
def test_recipes(call, tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_bytes(jsonl(TRAIN))
    (tmp_path / "mine.toml").write_bytes(changed_bytes(RECIPE, np.random.default_rng([seed, 3])))
    call("recipes", "show", "mine.toml")
    call("train", "mine.toml", "--dry-run")
