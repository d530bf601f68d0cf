"""The report as Markdown: read by a parser, its tables are whole and its texts inert."""

import pytest
from markdown_it import MarkdownIt
from report_examples import MODEL_SHA256, bitext_outcome, mixed_report, report_of, task

from polyvec.errors import InputError
from polyvec.evaluate.outcome import Item, Outcome
from polyvec.evaluate.report import markdown, write_markdown
from polyvec.evaluate.report.markdown_page import escaped

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
BREAKERS = [
    "<script>alert(1)</script>",
    "a | b | c",
    "line\n\n# heading\n\n| a |\n| --- |",
    "`code` ``` fence",
    "[link](http://evil.example) ![img](x.png) www.evil.example https://evil.example",
    "**bold** _it_ ~~gone~~ $x$ &amp; &#60;",
    "</details> <!-- open",
    "back\\|slash \\",
    "- list\n1. one\n> quote\n---",
    "@someone a@b.org #12",
]


def tables(text: str) -> list[list[list[str]]]:
    """Tables of cells, as they are read."""
    found, in_cell = [], False
    for token in PARSER.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            in_cell = True
        elif token.type == "inline" and in_cell:
            found[-1][-1].append(plain(token))
            in_cell = False
    return found


def plain(token) -> str:
    return "".join(
        one.content for one in token.children if one.type in ("text", "text_special", "code_inline")
    )


def kinds(text: str) -> set[str]:
    """Everything that the parser sees in a line but words."""
    inner = [child for token in PARSER.parse(text) for child in token.children or []]
    return {one.type for one in inner} - {"text", "text_special"}


@pytest.mark.parametrize("text", BREAKERS)
def test_a_text_is_a_text(text):
    line = "- value: " + escaped(text)
    tokens = PARSER.parse(line)
    assert [one.type for one in tokens if one.type != "inline"] == [
        "bullet_list_open",
        "list_item_open",
        "paragraph_open",
        "paragraph_close",
        "list_item_close",
        "bullet_list_close",
    ]
    comments = [c for t in tokens for c in t.children or [] if c.type == "html_inline"]
    assert kinds(line) <= {"html_inline"} and {c.content for c in comments} <= {"<!-- -->"}
    (inline,) = [one for one in tokens if one.type == "inline"]
    assert plain(inline) == "value: " + " ".join(text.split())
    (cells,) = tables(f"| a | b |\n| --- | --- |\n| {escaped(text)} | end |")
    assert cells[1] == [" ".join(text.split()), "end"]


def test_no_link_and_no_mention_is_left():
    for word in ("http://", "https://", "www."):
        assert word not in escaped(f"see {word}evil.example")
    assert "@s" not in escaped("@someone") and "@b" not in escaped("a@b.org")
    assert escaped("nDCG@10") == "nDCG@10"


def test_the_report_says_what_the_page_says():
    report = mixed_report()
    text = markdown(report)
    found = tables(text)
    scores = {row[0].split()[0].rstrip(","): row for rows in found[:5] for row in rows[1:]}
    for one in report.tasks[:5]:
        row = scores[one.result.task]
        assert row[2] == f"{100 * one.result.scores[one.result.main_measure]:.2f}"
        if one.result.published is not None:
            assert row[4] == f"{100 * one.result.published:.2f}"
    assert scores["stsb"][0] == "stsb test; corresponds to STSBenchmark"
    assert scores["tatoeba"][0] == "tatoeba test, 24 subsets"
    assert scores["short"][3] == "–"
    assert "scifact: 37.0 % (37 of 100)" in text
    assert text.count("<details>") == text.count("</details>") > 10
    widths = [{len(row) for row in rows} for rows in found]
    assert all(len(width) == 1 for width in widths)


def test_planted_texts_change_nothing_around_them():
    evil = " ".join(BREAKERS)
    item = Item(evil, (evil, evil), 0.0, None, ((evil, evil, 0.5, 0),))
    pair = Item(evil, (evil, evil), 0.0, 1.0)
    tasks = [
        task(evil, Outcome(evil, evil, {evil: 0.0}, (item,) * 9), {evil: 1.0}, note=evil),
        task("sts", Outcome("sts", evil, {evil: 0.0}, (pair, *[Item("x", ("a",), 1.0, 0.5)] * 8))),
        task("s", bitext_outcome(0), subset=evil),
        task("s", bitext_outcome(1), subset="b"),
    ]
    text = markdown(report_of(*tasks, model=evil, notes=(evil,), compared=(evil, evil)))
    allowed = ("<details><summary>", "</details>")
    for token in PARSER.parse(text):
        if token.type == "html_block":
            assert token.content.startswith(allowed), token.content
        for child in token.children or []:
            if child.type == "html_inline":
                assert child.content in ("<!-- -->", "<br>")
            assert child.type not in ("link_open", "image", "s_open", "em_open")
    for rows in tables(text):
        assert len({len(row) for row in rows}) == 1
    headings = [t for t in PARSER.parse(text) if t.type == "heading_open"]
    assert len(headings) == 1 + 4 + 3 + 2


def test_the_same_report_gives_the_same_file(tmp_path):
    write_markdown(tmp_path / "report.md", mixed_report())
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == markdown(mixed_report())
    with pytest.raises(InputError, match="no tasks"):
        markdown(report_of())
    assert MODEL_SHA256[:12] in markdown(mixed_report())
