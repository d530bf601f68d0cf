"""What each verb does with good input and with bad, called in this process."""

import gzip
import json
import re

import numpy as np
import pytest
from shell_examples import polyvec_calls

from polyvec import Embedder, cli
from polyvec.data import texts
from polyvec.storage import vector_files as vectors

LINES = ["a cat", "", "two  words", "漢字 🙂"]
STDIN = "".join(f"{line}\n" for line in LINES).encode()


@pytest.fixture
def model(tiny_bert):
    return "--model", tiny_bert


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


# ---- embed --------------------------------------------------------------------------------------


def test_lines_in_vectors_out(run, model, tiny):
    done = run("embed", *model, stdin=STDIN)
    assert (done.status, done.err) == (0, "")
    found = rows(done.out)
    assert [row["id"] for row in found] == ["0", "1", "2", "3"]
    np.testing.assert_allclose([r["embedding"] for r in found], tiny.encode(LINES), atol=1e-5)


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_standard_input_goes_to_a_file(run, model, tiny, tmp_path, dash):
    done = run("embed", *dash, *model, "-o", tmp_path / "x.npy", stdin=STDIN)
    assert (done.status, done.out) == (0, "")
    assert done.err == f"{tmp_path}/x.npy: 4 x 32, float32\n"
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), tiny.encode(LINES), atol=1e-5)


@pytest.mark.parametrize("kind", vectors.WRITERS)
@pytest.mark.parametrize("source", ["x.txt", "x.jsonl.gz"])
def test_every_kind_of_output(run, model, tiny, tmp_path, kind, source):
    if source == "x.txt":
        (tmp_path / source).write_bytes(STDIN)
    else:
        lines = [json.dumps({"_id": f"n{i}", "text": line}) for i, line in enumerate(LINES)]
        (tmp_path / source).write_bytes(gzip.compress("\n".join(lines).encode()))
    output = tmp_path / f"v.{kind}"
    assert run("embed", tmp_path / source, *model, "-o", output).status == 0
    expected = tiny.encode(LINES)
    ids = [f"n{i}" if "jsonl" in source else str(i) for i in range(4)]
    if kind == "npy":
        found = np.load(output)
    elif kind == "safetensors":
        found = pytest.importorskip("safetensors.numpy").load_file(output)["embeddings"]
    elif kind == "parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(output)
        found = np.array(table["embedding"].to_pylist())
        assert table["id"].to_pylist() == ids
    else:
        found = np.array([row["embedding"] for row in rows(output.read_text())])
        assert [row["id"] for row in rows(output.read_text())] == ids
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_options_reach_the_vectors(run, model, tiny, tmp_path):
    out = tmp_path / "x.npy"
    options = ("--prompt", "say: ", "--truncate-dim", 8, "--normalize", "--batch-size", 2)
    assert run("embed", *model, *options, "-o", out, stdin=STDIN).status == 0
    expected = tiny.encode(LINES, prompt="say: ", truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)


def test_normalize_is_for_models_that_do_not(run, tiny_bert, tmp_path):
    raw = Embedder.from_pretrained(tiny_bert)
    del raw.projections[:]
    raw.save_pretrained(tmp_path / "raw")
    lengths = []
    for options in ((), ("--normalize",)):
        done = run("embed", "--model", tmp_path / "raw", *options, stdin=STDIN)
        lengths.append(np.linalg.norm([row["embedding"] for row in rows(done.out)], axis=1))
    assert (abs(lengths[0] - 1) > 0.1).all()
    np.testing.assert_allclose(lengths[1], 1, atol=1e-5)


def test_a_column_and_packed_bits(run, model, tiny, tmp_path):
    (tmp_path / "x.csv").write_text("k,t\na,a cat\nb,a dog\n")
    options = ("--column", "t", "--id-column", "k", "--precision", "ubinary")
    done = run("embed", tmp_path / "x.csv", *model, *options)
    assert [row["id"] for row in rows(done.out)] == ["a", "b"]
    expected = tiny.encode(["a cat", "a dog"], precision="ubinary").tolist()
    assert [row["embedding"] for row in rows(done.out)] == expected
    done = run("embed", tmp_path / "x.csv", *model, *options, "-o", tmp_path / "x.npy")
    assert done.err.endswith("x.npy: 2 x 4, ubinary\n")


@pytest.mark.parametrize(("precision", "width"), [("float32", 32), ("ubinary", 4)])
def test_no_texts_give_an_array_of_the_right_width(run, model, tmp_path, precision, width):
    options = ("--precision", precision, "-o", tmp_path / "x.npy")
    done = run("embed", *model, *options)
    assert (done.status, done.err) == (0, f"{tmp_path}/x.npy: 0 x {width}, {precision}\n")
    assert np.load(tmp_path / "x.npy").shape == (0, width)
    assert run("embed", *model).out == ""


def test_a_megabyte_on_a_line_and_windows_line_ends(run, model, tiny):
    huge = "word " * 200_000
    done = run("embed", *model, stdin=f"\ufeff{huge}\r\nend\r\n".encode())
    expected = tiny.encode([huge, "end"], truncate="silent")
    np.testing.assert_allclose([r["embedding"] for r in rows(done.out)], expected, atol=1e-5)


@pytest.mark.filterwarnings("default::polyvec.errors.TruncationWarning")
def test_truncated_texts_are_counted_in_one_line(run, model, one_line):
    done = run("embed", *model, stdin=b"word " * 100)
    assert "polyvec: warning: 1 of 1 texts were longer than the model's 64 tokens" in one_line(
        done, status=0
    )


def test_a_file_that_is_its_own_output_is_refused(run, model, tmp_path, one_line):
    source = tmp_path / "x.jsonl"
    source.write_text('{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    for output in (source, tmp_path / "link.jsonl"):
        assert "input and output are the same file" in one_line(
            run("embed", source, *model, "-o", output)
        )
    assert source.read_text() == '{"text": "a"}\n'


@pytest.mark.equality
def test_no_more_than_a_window_of_texts_is_held(run, model, tmp_path, monkeypatch):
    """Equal texts are computed once, so 20,000 of them cost little."""
    read, written, most = [0], [0], [0]
    read_texts, vector_file = texts.read_texts, vectors.vector_file

    def counted(*args, **options):
        for record in read_texts(*args, **options):
            read[0] += 1
            most[0] = max(most[0], read[0] - written[0])
            yield record

    class Counted:
        def __init__(self, path):
            self.inner = vector_file(path)

        def __enter__(self):
            write = self.inner.__enter__()

            def count(ids, part):
                assert ids == [str(written[0] + i) for i in range(len(part))]
                written[0] += len(part)
                write(ids, part)

            return count

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    monkeypatch.setattr(texts, "read_texts", counted)
    monkeypatch.setattr(vectors, "vector_file", Counted)
    stdin = b"a\nb\nc\nd\n" * 5000
    assert run("embed", *model, "-o", tmp_path / "x.npy", stdin=stdin).status == 0
    assert read == written == [20_000]
    assert most[0] <= 8192
    found = np.load(tmp_path / "x.npy")
    np.testing.assert_array_equal(found[:4], found[-4:])


# ---- index and search ---------------------------------------------------------------------------


def test_index_then_search(run, model, tiny, tmp_path):
    folder = tmp_path / "index"
    done = run("index", folder, *model, stdin=b"a cat\na dog\na boat\n")
    assert (done.status, done.out) == (0, "")
    printed = done.err.splitlines()
    assert printed[0] == f"{folder}: 3 texts, 3 newly embedded"
    assert printed[1] == f"next: polyvec search {folder} 'your question'"
    again = run("index", folder, *model, stdin=b"a cat\na dog\na bird\n")
    assert "3 texts, 1 newly embedded" in again.err
    # The model is the one that the index names.
    done = run("search", folder, "a dog", "--top-k", 9, "--json")
    assert (done.status, done.err) == (0, "")
    scores = tiny.encode(["a cat", "a dog", "a bird"]) @ tiny.encode("a dog")
    found = rows(done.out)
    assert [row["id"] for row in found] == [str(i) for i in np.argsort(-scores)]
    assert found[0]["text"] == "a dog"
    assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert [row["query"] for row in found] == ["a dog"] * 3


def test_results_are_lines_of_score_id_and_the_part_that_fits(run, model, tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"id": "os.walk", "text": "os.walk: \\n\\nGo through folders.\\nMore."}\n'
        '{"id": "b\\nc", "text": "bell \\u0007 and \\u001b[31mred"}\n'
    )
    run("index", tmp_path / "index", tmp_path / "x.jsonl", *model)
    done = run("search", tmp_path / "index", "os.walk: Go through folders. More.", "other", "-k", 2)
    lines = done.out.splitlines()
    assert [lines[0], lines[3]] == ["os.walk: Go through folders. More.", "other"]
    assert lines[1].split(maxsplit=1)[1] == "os.walk  Go through folders. More."
    assert lines[2].split(maxsplit=1)[1] == "b c  bell   and  [31mred"


def test_an_index_of_nothing_is_searched_without_result(run, model, tmp_path):
    assert "0 texts, 0 newly" in run("index", tmp_path / "i", *model).err
    done = run("search", tmp_path / "i", "a cat")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_search_says_what_is_wrong(run, model, tmp_path, one_line, minilm_folder):
    folder = tmp_path / "index"
    assert "contains no index; build one with: polyvec index" in one_line(
        run("search", folder, "a")
    )
    run("index", folder, *model, stdin=b"a\n")
    for query in ("", " \n"):
        assert "the query is empty" in one_line(run("search", folder, query))
    assert "'0' is not a positive integer" in one_line(run("search", folder, "a", "-k", 0))
    printed = one_line(run("search", folder, "a", "--model", minilm_folder))
    assert "built with another model" in printed
    (folder / "manifest.json").write_text("{")
    assert "manifest.json: damaged" in one_line(run("search", folder, "a"))


def test_index_says_what_is_wrong(run, model, tmp_path, one_line):
    (tmp_path / "x.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n')
    printed = one_line(run("index", tmp_path / "index", tmp_path / "x.jsonl", *model))
    assert "duplicate id '1' (texts 1 and 2)" in printed
    assert not (tmp_path / "index").exists()
    assert "contains other files and no index" in one_line(run("index", tmp_path, *model))


# ---- evaluate and recipes -----------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / ("a folder with a long name [x] " * 5).strip()
    folder.mkdir()
    data = [("a cat", "a kitten", 5), ("a cat", "a boat", 1), ("a dog", "a puppy", 4)]
    lines = [json.dumps({"sentence1": a, "sentence2": b, "score": s}) for a, b, s in data]
    (folder / "test.jsonl").write_text("\n".join(lines))
    return folder


def test_scores_are_tab_separated_where_no_terminal_is(run, tiny_bert, pairs, tmp_path):
    done = run("evaluate", tiny_bert, pairs, "-o", tmp_path / "scores.json")
    header, spearman, pearson = (line.split("\t") for line in done.out.splitlines())
    assert header == [
        "data",
        "subset",
        "split",
        "measure",
        "score",
        "texts",
        "truncated",
        "seconds",
    ]
    assert spearman[:4] == [pairs.name, "", "test", "spearman"]
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["model"] == str(tiny_bert)
    assert float(pearson[4]) / 100 == pytest.approx(
        result["results"][0]["scores"]["pearson"], abs=1e-4
    )
    assert done.err == f"{pairs.name} (test)  1/1\n"


def test_evaluate_says_what_is_wrong_before_a_model_is_loaded(run, pairs, tmp_path, one_line):
    for arguments, message in [
        ((pairs, "--split", "dev"), "no split 'dev'. Known: test."),
        ((pairs, tmp_path / "gone"), "gone: no such folder"),
        ((pairs, "-o", tmp_path / "gone" / "x.json"), "gone does not exist"),
        ((pairs, "-o", "/dev/null"), "/dev/null: not a regular file"),
    ]:
        assert message in one_line(run("evaluate", "/no/such/model", *arguments))
    assert "no such folder" in one_line(run("evaluate", "/no/such/model", pairs))


def test_recipes_are_listed_whole_and_shown(run, one_line):
    listed = [line.split("\t") for line in run("recipes", "list").out.splitlines()]
    assert listed[0] == ["recipe", "system", "pooling", "backbone", "paper"]
    assert "all-minilm" in [row[0] for row in listed]
    assert {len(row) for row in listed} == {5}
    shown = run("recipes", "show", "all-minilm")
    assert "[embedder]" in shown.out
    printed = one_line(run("recipes", "show", "all-minlm"))
    assert "recipe 'all-minlm' is not known. Did you mean 'all-minilm'?" in printed


RECIPE = """
[system]
name = "R"
paper = "none"
tasks = ["similarity"]
[embedder]
backbone = "no/such"
pooling = "mean"
[expect.nano]
"stsb test spearman" = { at_least = 0.5, measured = 0.6 }
"""


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB. See polyvec --help"),
        (["embde"], "invalid choice: 'embde'"),
        (["embed", "--colour"], "unrecognized arguments: --colour"),
        (["embed", "gone.txt"], "gone.txt: no such file"),
        (["embed", "."], "bad.jsonl:2: not JSON"),
        (["embed", "x.pdf"], "unknown file type 'pdf'. Known: txt, jsonl, json, csv, tsv, parquet"),
        (["embed", "x.txt", "--column", "text"], "plain text has no column 'text'"),
        (
            ["embed", "x.txt", "-o", "x.doc"],
            "vector format 'doc' is not known. Known: npy, jsonl, parquet",
        ),
        (["embed", "x.txt", "-o", ""], "vector format ''|the value is empty"),
        (["embed", "x.txt", "-o", "gone/x.npy"], "gone/x.npy: the folder .*gone does not exist"),
        (["embed", "x.txt", "--model", "/gone"], "/gone: no such folder"),
        (
            ["embed", "x.txt", "--model", "no/such"],
            "no/such: .*not be downloaded from the hub",
        ),
        (["embed", "x.txt", "--model", "gone.toml"], "gone.toml: cannot be read"),
        (["embed", "x.txt", "--prompt-name", "q", "MODEL"], "prompt_name 'q' is not stored with"),
        (["embed", "x.txt", "--prompt-name", "q", "--prompt", "p"], "not allowed with argument"),
        (["embed", "x.txt", "--truncate-dim", "0"], "'0' is not a positive integer"),
        (["embed", "x.txt", "--truncate-dim", "33", "MODEL"], "truncate_dim 33 is not between"),
        (
            ["embed", "x.txt", "--batch-size", "-1"],
            "'-1' is not a positive integer|expected one arg",
        ),
        (["embed", "x.txt", "--precision", "int4", "MODEL"], "precision 'int4' is not known"),
        (["embed", "x.txt", "--precision", "int8", "MODEL"], "int8 needs stored ranges"),
        (["embed", "x.txt", "--device", "tpu", "MODEL"], "device 'tpu' cannot be used"),
        (["embed", "x.txt", "--device", "meta", "MODEL"], "device 'meta' cannot be used"),
        (["embed", "bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["index", "i", "bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["recipes", "check", "r.toml"], "r has figures to measure: pass the folder of data sets"),
        (["recipes", "check", "r.toml", "--scale", "micro"], "scale 'micro' is not known"),
    ],
)
def test_a_mistake_is_one_line(run, model, one_line, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POLYVEC_DATA", raising=False)
    (tmp_path / "x.txt").write_text("a\n")
    (tmp_path / "x.pdf").touch()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nno\n')
    (tmp_path / "r.toml").write_text(RECIPE)
    before = sorted(tmp_path.iterdir())
    given = [part for a in arguments for part in (model if a == "MODEL" else [a])]
    if "bad.jsonl" in given and given[0] == "embed":
        given += model
    done = run(*given)
    assert re.search(message, one_line(done))
    assert sorted(tmp_path.iterdir()) == before


def test_a_flaw_late_in_the_input_leaves_nothing(run, model, one_line, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n' * 10_000 + "no\n")
    printed = one_line(run("embed", tmp_path / "bad.jsonl", *model, "-o", tmp_path / "x.npy"))
    assert "bad.jsonl:10001: not JSON" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MemoryError(), 2, "out of memory; try a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried"), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(32, "Broken pipe"), 141, "standard output was closed by its reader"),
        (OSError(28, "x", "a.npy"), 2, "polyvec: a.npy: no space left on the device"),
        (OSError(122, "Disk quota exceeded", "a.npy"), 2, "a.npy: no space left on the device"),
        (PermissionError(13, "Permission denied", "a"), 2, "polyvec: a: Permission denied"),
        (OSError("hub\nunreachable"), 2, "polyvec: hub unreachable"),
    ],
)
def test_what_the_machine_refuses_is_one_line(run, one_line, monkeypatch, error, status, message):
    def fail(options):
        raise error

    monkeypatch.setattr("polyvec.cli.recipes.run", fail)
    assert message in one_line(run("recipes", "list"), status)


def test_our_own_mistakes_are_not_hidden(run, monkeypatch):
    def fail(options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("polyvec.cli.recipes.run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run("recipes", "list")


@pytest.mark.parametrize("verb", [[], *([verb] for verb in cli.VERBS)])
def test_help_goes_to_standard_output_and_has_an_example(run, verb):
    done = run(*verb, "--help")
    assert (done.status, done.err) == (0, "")
    assert "example: " in done.out


def example_of(run, verb: str) -> str:
    """The command after "example:" in a verb's help; a backslash continues a line."""
    text = run(*([verb] if verb else []), "--help").out
    (command,) = re.findall(r"^example: ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return command


@pytest.mark.medium
def test_the_examples_run(run, tmp_path, minilm_folder):
    """In the order of the verbs: search uses the index that the example before it built."""
    outputs, folder = {}, tmp_path / "folder"
    folder.mkdir()
    for verb in ("", *cli.VERBS):
        if verb in ("demo", "serve", "verify"):  # have tests of their own
            continue
        work = tmp_path / f"example-{verb}"
        work.mkdir()
        example = example_of(run, verb).replace("/tmp/", f"{tmp_path}/")
        (call,) = polyvec_calls(example, folder=folder, work=work)
        done = run(*call.arguments, stdin=call.stdin)
        assert done.status == 0, done.err
        outputs[verb] = done.out
    assert len(json.loads(outputs["embed"])["embedding"]) == 4
    assert outputs[""] == outputs["embed"]
    assert re.fullmatch(r"  0\.\d{3}  0  a cat\n", outputs["search"])
    assert "pairs\t\ttest\tspearman\t100.00" in outputs["evaluate"]
    assert "all-minilm\t" in outputs["recipes"]


# ---- full disks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", vectors.WRITERS)
def test_a_disk_that_takes_no_more_is_one_line(run, model, tmp_path, one_line, small_files, kind):
    (tmp_path / "x.txt").write_text("".join(f"{i}\n" for i in range(600)))
    with small_files(8192):
        done = run("embed", tmp_path / "x.txt", *model, "-o", tmp_path / f"v.{kind}")
    assert one_line(done) == f"polyvec: {tmp_path}/v.{kind}: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (["--plain"], r"/\S+: File too large"),
        ([], ": the disk is full; what was stored before is there.*"),
    ],
)
def test_an_index_that_does_not_fit_keeps_the_old_one(
    run, model, tmp_path, one_line, small_files, kind, error
):
    folder = tmp_path / "pets"
    run("index", folder, *model, *kind, stdin=b"a cat\n")
    lines = "".join(f"text {i}\n" for i in range(300)).encode()
    with small_files(16_384):
        done = run("index", folder, *model, *kind, stdin=lines)
    assert re.fullmatch(rf"polyvec: {folder}{error}\n", one_line(done))
    assert run("search", folder, "cat").out.endswith("  0  a cat\n")
    assert run("index", folder, *model, stdin=lines).status == 0
    names = sorted(path.name.split("-")[0] for path in folder.iterdir())
    plain = [".polyvec", "items", "manifest.json", "vectors"]
    assert names == (plain if kind else [".polyvec", "polyvec.json", "texts"])
