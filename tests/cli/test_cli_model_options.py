"""Options that change what is read of a text and how a model runs, in every verb that loads one."""

import json
import shlex

import numpy as np
import pytest

from polyvec import Embedder, Index
from polyvec.cli import _as_options, parser
from polyvec.data.texts import Record
from polyvec.errors import TruncationWarning

TEXTS = ["a cat", "two dogs in the rain", "the sea and the river and the lake and the rain"]
STDIN = "".join(f"{text}\n" for text in TEXTS).encode()


@pytest.fixture
def prompted(tmp_path, tiny_bert):
    """A model with stored prompts."""
    prompts = {"query": "search: ", "document": "text: ", "topic": "about: "}
    Embedder.from_pretrained(tiny_bert, prompts=prompts).save_pretrained(tmp_path / "prompted")
    return tmp_path / "prompted"


def vectors(done):
    assert done.status == 0, done.err
    return np.array([json.loads(line)["embedding"] for line in done.out.splitlines()])


def same(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)  # other batches round differently


@pytest.mark.parametrize(
    ("option", "loaded"),
    [
        (["--pooling", "first"], {"pooling": "first"}),
        (["--max-seq-length", "6"], {"max_seq_length": 6}),
        (["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_embed_loads_the_model_so(run, tiny_bert, tiny, option, loaded):
    found = vectors(run("embed", "--model", tiny_bert, *option, stdin=STDIN))
    expected = Embedder.from_pretrained(tiny_bert, **loaded).encode(TEXTS, truncate="silent")
    tolerance = 3e-2 if "dtype" in loaded else 1e-5
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert np.abs(found - tiny.encode(TEXTS)).max() > 1e-5


def test_the_limit_of_a_recipe(run):
    done = run("embed", "--recipe", "causal-mean", "--scale", "nano", "--max-seq-length", "4",
               "--truncate", "silent", stdin=STDIN)  # fmt: skip
    from polyvec import load_recipe

    embedder = load_recipe("causal-mean").build("nano")
    embedder.max_seq_length = 4
    same(vectors(done), embedder.encode(TEXTS, truncate="silent"))


@pytest.mark.parametrize("option", ["--dtype", "--pooling"])
def test_recipes_set_it_themselves(run, one_line, option):
    done = run("embed", "--recipe", "causal-mean", "--scale", "nano", option, "mean", stdin=STDIN)
    assert f"{option}: not for recipes" in one_line(done)


@pytest.mark.parametrize("option", [["--dtype", "int4"], ["--pooling", "mena"],
                                    ["--max-seq-length", "0"], ["--max-seq-length", "9999"],
                                    ["--truncate", "no"]])  # fmt: skip
def test_values_that_are_not_known(run, one_line, tiny_bert, option):
    assert option[1] in one_line(run("embed", "--model", tiny_bert, *option, stdin=STDIN))


@pytest.mark.filterwarnings("default::polyvec.errors.TruncationWarning")
def test_what_is_too_long(run, one_line, tiny_bert):
    limited = ["embed", "--model", tiny_bert, "--max-seq-length", "6"]
    warned = run(*limited, stdin=STDIN)
    assert warned.status == 0
    assert "raise --max-seq-length, or pass --truncate error or silent" in warned.err
    assert run(*limited, "--truncate", "silent", stdin=STDIN).err == ""
    error = one_line(run(*limited, "--truncate", "error", stdin=STDIN))
    assert "inputs[1] has 7 tokens, the model reads 6" in error
    assert "--truncate warn" in error


def test_calibrate(run, one_line, tiny_bert, tmp_path):
    tiny = Embedder.from_pretrained(tiny_bert)
    sample = tmp_path / "sample.txt"
    sample.write_text("\n".join(f"text {i} about {i * 7}" for i in range(50)))
    integers = ["embed", "--model", tiny_bert, "--precision", "int8", "--truncate-dim", "8"]
    assert "pass --calibrate FILE" in one_line(run(*integers, stdin=STDIN))
    found = vectors(run(*integers, "--calibrate", sample, stdin=STDIN))
    tiny.calibrate(sample.read_text().splitlines(), truncate_dim=8)
    expected = tiny.encode(TEXTS, precision="int8", truncate_dim=8)
    assert np.abs(found - expected).max() <= 1  # a level, where another batch rounds differently
    (tmp_path / "empty.txt").write_text("")
    for file, words in (("empty.txt", "contains no texts"), ("gone.txt", "no such file")):
        assert words in one_line(run(*integers, "--calibrate", tmp_path / file, stdin=STDIN))
    plain = run("embed", "--model", tiny_bert, "--calibrate", sample, stdin=STDIN)
    assert "only --precision int8 and uint8 have ranges" in one_line(plain)


# ---- an index remembers -------------------------------------------------------------------------

LOADED = ["--pooling", "first", "--max-seq-length", "16", "--truncate-dim", "8"]


def test_an_index_is_searched_as_it_was_built(run, tiny_bert, tmp_path):
    folder = tmp_path / "index"
    built = run("index", folder, "--model", tiny_bert, *LOADED, "--dtype", "float32", stdin=STDIN)
    assert built.status == 0, built.err
    index = Index.open(folder)
    assert index.description.dimensions["dense"] == 8
    assert shlex.split(index.description.options) == ["--dtype", "float32", *LOADED]
    found = run("search", folder, "a cat", "--json")
    assert found.status == 0, found.err
    embedder = Embedder.from_pretrained(
        tiny_bert, pooling="first", max_seq_length=16, truncate_dim=8
    )
    expected = index.search("a cat", embedder)[0]
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [(hit.id, hit.text) for hit in expected]
    np.testing.assert_allclose(
        [row["score"] for row in rows], [h.score for h in expected], atol=1e-5
    )


def test_an_index_of_other_settings_is_refused(run, one_line, tiny_bert, tmp_path):
    folder = tmp_path / "index"
    run("index", folder, "--model", tiny_bert, *LOADED, stdin=STDIN)
    error = one_line(run("search", folder, "a cat", "--pooling", "mean"))
    assert "--pooling first --max-seq-length 16 --truncate-dim 8" in error


def test_prompts_of_an_index_and_of_a_search(run, prompted, tmp_path):
    embedder = Embedder.from_pretrained(prompted)
    folder = tmp_path / "index"
    cases = [
        ([], {"role": "document"}),
        (["--prompt", "mine: "], {"prompt": "mine: "}),
        (["--prompt", ""], {"prompt": ""}),
        (["--prompt-name", "topic"], {"prompt_name": "topic"}),
        (["--role", "query"], {"role": "query"}),
        ([], {"role": "document"}),
    ]
    for options, choice in cases:
        built = run("index", folder, "--model", prompted, *options, stdin=STDIN)
        assert built.status == 0, built.err
        assert "3 newly embedded" in built.err  # vectors of another prompt are not reused
        same(np.array(Index.open(folder).vectors_NE), embedder.encode(TEXTS, **choice))
        again = run("index", folder, "--model", prompted, *options, stdin=STDIN)
        assert "0 newly embedded" in again.err
    index = Index.open(folder)
    for options, choice in cases:
        found = run("search", folder, "a cat", "--json", *options)
        rows = [json.loads(line) for line in found.out.splitlines()]
        query = embedder.encode("a cat", **({"role": "query"} if not options else choice))
        expected = np.sort(np.array(index.vectors_NE) @ query)[::-1]
        same([row["score"] for row in rows], expected)


def test_a_search_says_what_it_cuts(run, one_line, tiny_bert, tmp_path):
    folder = tmp_path / "index"
    run("index", folder, "--model", tiny_bert, "--max-seq-length", "6", "--truncate", "silent",
        stdin=STDIN)  # fmt: skip
    error = one_line(run("search", folder, TEXTS[2], "--truncate", "error"))
    assert "inputs[0] has" in error


def test_build_and_search_take_the_same_from_python(prompted, tmp_path):
    embedder = Embedder.from_pretrained(prompted, max_seq_length=6)
    records = [Record(str(i), text) for i, text in enumerate(TEXTS)]
    with pytest.warns(TruncationWarning):
        index, _ = Index.build(tmp_path / "index", records, embedder, prompt="x: ")
    (hits,) = index.search("a cat", embedder, prompt="x: ")
    assert (hits[0].text, pytest.approx(1, abs=1e-5)) == ("a cat", hits[0].score)
    Index.build(tmp_path / "index", records, embedder, prompt="y: ", truncate="silent")
    (hits,) = index.search("a cat", embedder, prompt="y: ")
    assert (hits[0].text, pytest.approx(1, abs=1e-5)) == ("a cat", hits[0].score)


def test_options_of_an_index_that_nobody_wrote(run, one_line, tiny_bert, tmp_path):
    embedder = Embedder.from_pretrained(tiny_bert)
    folder = tmp_path / "index"
    Index.build(folder, [Record("a", "a cat")], embedder, model=str(tiny_bert), options="--nope 'x")
    assert "built with unknown options" in one_line(run("search", folder, "a cat"))


# ---- advice -------------------------------------------------------------------------------------


def test_advice_names_options_that_there_are():
    known = {name for sub in parser()._subparsers._group_actions[0].choices.values()
             for action in sub._actions for name in action.option_strings}  # fmt: skip
    from polyvec.cli import ADVICE

    for _, advised in ADVICE:
        for word in advised.replace(",", "").split():
            assert not word.startswith("--") or word in known
    assert _as_options("read it, then pass\ntrust_remote_code=True") == (
        "read it, then pass --trust-remote-code"
    )
