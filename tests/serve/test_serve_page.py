"""Search over HTTP, the map, and the page in a real browser: typed, clicked, looked at."""

import os
import sys

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("lancedb", reason="needs the extra 'index'")

import httpx
from test_serve_http import error_of, post, running

from polyvec.data.texts import Record
from polyvec.index.store import Index

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))  # noqa: PTH118, PTH120
from browser import Browser

EVIL = "</script><img src=x onerror=\"document.title='owned'\"> a kitten"
WORDS = ("cat", "engine", "river", "violin")
RECORDS = [
    Record(f"t{n}", f"text {n} about a {WORDS[n % 4]}", {"kind": WORDS[n % 4], "year": 2000 + n})
    for n in range(40)
]


@pytest.fixture(scope="module")
def address(embedder, tmp_path_factory):
    where = tmp_path_factory.mktemp("index") / "texts"
    index, _ = Index.build(where, [*RECORDS, Record("evil", EVIL, {})], embedder)
    with running({"tiny": embedder}, indexes={"texts": (index, embedder)}) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


def test_search_finds_filters_and_explains(address, embedder):
    body = {"query": RECORDS[5].text, "top_k": 3, "filter": "year > 2003", "explain": True}
    found = post(address, body, "/v1/search").json()
    first = found["results"][0]
    assert (first["id"], first["metadata"]) == ("t5", RECORDS[5].metadata)
    assert first["score"] == pytest.approx(1, abs=1e-4)
    assert first["explanation"]["components"][0]["name"] == "dense"
    assert all(each["metadata"]["year"] > 2003 for each in found["results"])
    words = {"query": "violin", "mode": "words", "filter": {"year": {"$lt": 2010}}}
    found = post(address, words, "/v1/search").json()["results"]
    assert {each["id"] for each in found} == {"t3", "t7"}


def test_indexes_and_the_map_are_described(address):
    (card,) = httpx.get(f"{address}/v1/indexes").json()["data"]
    assert (card["id"], card["texts"]) == ("texts", 41)
    assert card["fields"] == {"kind": "text", "year": "int"}
    found = httpx.get(f"{address}/v1/map", params={"field": "kind"}).json()
    assert len(found["x"]) == len(found["text"]) == found["total"] == 41
    assert np.array(found["x"]).min() == 0
    assert sorted(found["id"]) == sorted([*(each.id for each in RECORDS), "evil"])
    assert found["value"][found["id"].index("t2")] == "river"
    assert found["value"][found["id"].index("evil")] is None


def test_wrong_searches_are_one_clear_line(address):
    for body, status, says in (
        ({"query": ""}, 400, "query: the text is empty"),
        ({"query": "a", "filter": "colour = 1"}, 400, "no field 'colour'"),
        (
            {"query": "a", "filter": "year >"},
            400,
            "filter: 'year >': expected a value, got the end",
        ),
        ({"query": "a", "top_k": 0}, 400, "top_k"),
        ({"query": "word " * 900}, 400, "902 tokens, the model reads 64"),
        ({"query": "a", "mode": "magic"}, 400, "mode"),
        ({"query": "a", "index": "other"}, 404, "'other' is not here"),
    ):
        assert says in error_of(post(address, body, "/v1/search"), status)["message"]
    error_of(httpx.get(f"{address}/v1/map", params={"field": "colour"}), 400)


def test_the_page_loads_nothing_from_elsewhere(address):
    response = httpx.get(address)
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http" not in response.text.replace("http-equiv", "")


@pytest.mark.medium
def test_a_query_is_typed_and_its_texts_appear(address, browser):
    browser.open(address)
    browser.wait("document.querySelector('#index option')")
    browser.click("#query")
    browser.type("text 5 about a engine")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#hits > li').length === 10")
    assert "t5" in browser.run("document.querySelector('#hits li').textContent")
    assert "query=text+5" in browser.run("location.hash")
    browser.run("document.getElementById('query').value = 'a kitten'")
    browser.run("document.getElementById('mode').value = 'words'")
    browser.click("#search-form button")
    browser.wait("document.querySelector('#hits li .head').textContent.includes('evil')")
    assert browser.run("document.title") == "polyvec"  # the text stayed a text
    browser.run("document.getElementById('filter').value = 'colour = 1'")
    browser.click("#search-form button")
    browser.wait("document.getElementById('status').classList.contains('wrong')")
    assert "no field" in browser.run("document.getElementById('status').textContent")
    # A refused request is logged by the browser itself; there is nothing else.
    assert [each for each in browser.problems if "400" not in each] == []


@pytest.mark.medium
def test_the_map_is_drawn_zoomed_by_keys_and_listed(address, browser):
    browser.problems.clear()
    browser.open(f"{address}/#map?index=texts&field=kind")
    browser.wait("document.querySelectorAll('#legend li').length === 4")
    browser.wait("document.getElementById('in-view').textContent.includes('41')")
    browser.run("document.getElementById('canvas').focus()")
    for _ in range(6):
        browser.press("+")
    browser.wait("!document.getElementById('in-view').textContent.includes('41')")
    browser.click("#whole")
    browser.wait("document.getElementById('in-view').textContent.includes('41')")
    assert browser.problems == []


@pytest.mark.medium
def test_two_rankings_stand_side_by_side(address, browser):
    browser.problems.clear()
    browser.open(f"{address}/#compare")
    browser.wait("document.querySelectorAll('#left option').length === 2")
    browser.run("document.getElementById('right').value = 'tiny'")
    browser.run("document.getElementById('texts').value = 'a cat\\nan engine'")
    browser.click("#compare-query")
    browser.type("a cat")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#right-hits li').length === 2")
    assert "a cat" in browser.run("document.querySelector('#right-hits li').textContent")
    assert "in both" in browser.run("document.getElementById('overlap').textContent")
    assert browser.problems == []
