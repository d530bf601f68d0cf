"""polyvec compress: texts in, text out, what was dropped in colour or as a page."""

import json

import pytest

from polyvec.compress.text.sections import TEXT_COMPRESSOR
from polyvec.recipe import SCALES, all_recipes

TEXT = (
    b"The sky was grey over the harbour. Ships came and went.\n"
    b"The code of Ann is 4711. The code of Bob is 8192.\n\nCats slept on the wall.\n"
)
NANO = ("--tokenizer", "polyvec/nano-lm")
LEXICAL = ("--method", "lexical", "--unit", "sentence", *NANO)
RECIPES = [each for each in all_recipes() if each[TEXT_COMPRESSOR] is not None]


def test_text_comes_out_and_a_line_of_numbers_on_stderr(run):
    found = run("compress", *LEXICAL, "-q", "the code of Bob", "--tokens", 13, stdin=TEXT)
    assert (found.status, found.out) == (0, "The code of Bob is 8192.\n")
    assert "tokens to" in found.err and found.err.count("\n") == 1


def test_lines_are_one_text_and_each_compresses_every_one(run):
    options = ("compress", "--method", "random", *NANO, "--rate", 0.5, "--json")
    (row,) = map(json.loads, run(*options, stdin=TEXT).out.splitlines())
    assert row["num_tokens"] == round(0.5 * row["num_tokens_in"])
    text = TEXT.decode().rstrip("\n")
    assert "".join("".join(text[a:b] for a, b in row["kept"]).split()) == "".join(
        row["text"].split()
    )
    rows = [json.loads(line) for line in run(*options, "--each", stdin=TEXT).out.splitlines()]
    assert len(rows) == 3


def test_records_are_passages(run, tmp_path):
    path = tmp_path / "found.jsonl"
    rows = [{"text": "Rain fell.\n\nIt was cold."}, {"text": "The code is 7."}]
    path.write_text("\n".join(map(json.dumps, rows)))
    options = (*LEXICAL[:2], "--unit", "passage", *NANO)
    found = run("compress", path, *options, "-q", "What is the code?", "--tokens", 10)
    assert found.out == "The code is 7.\n"


def test_what_was_dropped_is_shown(run, tmp_path):
    page = tmp_path / "page.html"
    text = b"<b>Ann</b> came\x1b[2J to us. The code is 7. Bob left."
    options = (*LEXICAL, "-q", "the code", "--tokens", 7, "--show", "--html", page)
    found = run("compress", *options, stdin=text)
    assert "[-<b>Ann</b> came[2J to us. -]The code is 7.[- Bob left.-]" in found.err
    assert "\x1b" not in found.err
    html = page.read_text()
    assert "to us. </del>The code is 7.<del> Bob left.</del>" in html
    assert "<del>&lt;b&gt;Ann&lt;/b&gt; came" in html
    assert "<b>" not in html


def test_no_file_takes_the_place_of_another(run, one_line, tmp_path):
    text, page = tmp_path / "text.txt", tmp_path / "page.html"
    text.write_bytes(TEXT)
    options = ("compress", text, *LEXICAL, "-q", "the code of Bob", "--tokens", 13)
    for more in (("-o", text), ("--html", text), ("-o", page, "--html", page)):
        assert "same file; not overwritten" in one_line(run(*options, *more))
    assert text.read_bytes() == TEXT and not page.exists()


def test_each_says_which_text_does_not_fit(run, one_line):
    options = ("compress", *LEXICAL, "-q", "the code of Bob", "--each", "--rate", 0.5)
    found = run(*options, stdin=TEXT[56:90] + b"\nHi.")
    # The first text was done, and is not lost.
    assert found.status == 2 and len(found.out.splitlines()) == 1
    assert "text 2 of 2: the question has" in found.err.splitlines()[-1]
    assert "nothing to compress" in one_line(run(*options, stdin=b"\n \n"))


def test_a_word_to_keep_that_is_not_there_is_noted(run):
    options = ("compress", "--method", "random", *NANO, "--tokens", 13, "--keep", "zebra")
    found = run(*options, stdin=TEXT)
    assert found.status == 0 and "note: to keep, but not in the text: 'zebra'" in found.err


def test_output_goes_to_a_file(run, tmp_path):
    path = tmp_path / "short.txt"
    found = run(
        "compress", *LEXICAL, "-q", "the code of Bob", "--tokens", 13, "-o", path, stdin=TEXT
    )
    assert (found.out, path.read_text()) == ("", "The code of Bob is 8192.\n")


@pytest.mark.parametrize(
    ("options", "stdin", "message"),
    [
        (("--tokens", 0), TEXT, "tokens is 0, expected a whole number from 1"),
        (("--tokens", "-4"), TEXT, "'-4' is not a whole number"),
        (("--rate", "half"), TEXT, "is not a share"),
        (("--rate", 2), TEXT, "rate is 2.0"),
        ((), TEXT, "give a budget"),
        (("--tokens", 9), b"", "the context is empty"),
        (("--tokens", 9), b"\n \n", "the context is empty"),
        (("--tokens", 4, "-q", "Where does the code of Bob come from?"), TEXT, "more than the"),
        (("--tokens", 9, "--method", "lexicle"), TEXT, "Did you mean 'lexical'"),
        (("--tokens", 9, "--method", "all-minilm"), TEXT, "has no section [text_compressor]"),
        (("--tokens", 9, "--method", "pcrl"), TEXT, "train a token classifier first"),
        (("--tokens", 9, "--method", "filco", "--unit", "word", "-q", "Who?"), TEXT, "anew"),
        (("--tokens", 9, "--unit", "line"), TEXT, "unit 'line' is not known"),
        (("--tokens", 9, "--html", "/nowhere/page.html"), TEXT, "does not exist"),
    ],
)
def test_bad_input_is_one_line(run, one_line, options, stdin, message):
    given = options if "--method" in options else (*options, "--method", "random")
    found = run("compress", *NANO, *given, stdin=stdin)
    assert message in one_line(found)
    assert found.out == ""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda each: each.key)
@pytest.mark.parametrize("scale", SCALES)
def test_every_recipe_builds_at_every_scale_without_loading_weights(recipe, scale):
    from polyvec.compress.text import sections

    made = sections.build(recipe.at(TEXT_COMPRESSOR, scale), None, scale)
    assert hasattr(made, "compress")


@pytest.mark.medium
@pytest.mark.parametrize(
    "recipe",
    [each for each in RECIPES if each.key not in ("llmlingua-2", "pcrl")],
    ids=lambda each: each.key,
)
def test_every_recipe_compresses_at_scale_nano(recipe, minilm_folder, recwarn):
    question = "Where did the cats sleep?"
    text = TEXT.decode() * 3
    found = recipe.build("nano").compress(text, question, tokens=40)
    assert found.num_tokens <= 40 < found.num_tokens_in
    assert found.written or "".join(piece for piece, _ in found.parts()) == text.strip("\n") + "\n"
