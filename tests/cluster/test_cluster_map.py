"""The page of groups: what is in it, what does not run, and what a browser shows."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from clusters_by_hand import planted

from polyvec.cluster.clusterer import TextClusterer
from polyvec.cluster.page import MOST_POINTS, families, thinned, write_page
from polyvec.cluster.projection import plane

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--no-first-run")
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='o'\">"


@pytest.fixture(scope="module")
def found():
    texts, vectors, _ = planted(spread=0.1)
    return TextClusterer(k=4).fit([EVIL, *texts[1:]], vectors=vectors)


@pytest.fixture(scope="module")
def dom(tmp_path_factory, found):
    """`dom(part)`: the page after its script ran, at the address page.html#part."""
    program = next((each for name in BROWSERS if (each := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    path = tmp_path_factory.mktemp("map") / "map.html"
    write_page(path, "Groups <b>here</b>", found, {"texts": "48"})

    def run(part=""):
        home = tmp_path_factory.mktemp("browser")
        address = f"file://{path}#{part}"
        command = [program, *QUIET, f"--user-data-dir={home}", "--dump-dom", address]
        return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode()

    return run


def test_the_page_is_one_file_with_every_text(tmp_path, found):
    write_page(tmp_path / "map.html", "t", found, {"texts": "48"})
    text = (tmp_path / "map.html").read_text()
    assert not re.search(r"(src|href)=[\"']?http|@import|url\(", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert data["text"] == list(found.texts) and data["group"] == found.labels.tolist()
    assert min(data["x"]) == 0 and max(data["y"]) == 1
    first = (tmp_path / "map.html").read_bytes()
    write_page(tmp_path / "map.html", "t", found, {"texts": "48"})
    assert (tmp_path / "map.html").read_bytes() == first


@pytest.mark.medium
def test_texts_are_data_and_the_script_runs(dom):
    seen = dom()
    assert 'data-ready="yes"' in seen
    assert "<title>Groups &lt;b&gt;here&lt;/b&gt;</title>" in seen
    assert "owned" not in re.search(r"<title>.*?</title>", seen).group()


@pytest.mark.medium
def test_a_group_that_is_chosen_lists_its_texts(dom, found):
    seen = dom("group=2")
    assert seen.count("<li>") == found.sizes[2]
    assert 'data-group="2" aria-pressed="true"' in seen
    assert seen.count('aria-pressed="true"') == 1


@pytest.mark.medium
def test_a_search_counts_and_lists_what_it_finds(dom):
    seen = dom("search=pin%20code%20question%201")
    assert "3 found" in seen and seen.count("<li>") == 3  # 1, 10 and 11


def test_many_texts_are_thinned_by_the_size_of_their_groups():
    labels = np.array([0] * 90_000 + [1] * 9_990 + [2] * 10)
    rows = thinned(labels, 0)
    kept = np.bincount(labels[rows])
    assert len(rows) <= MOST_POINTS and kept.tolist() == [18_000, 1_998, 2]


def test_many_groups_are_a_tree_of_families():
    draw = np.random.default_rng(0)
    centers = np.repeat(10 * draw.standard_normal((4, 3)), 4, 0) + draw.standard_normal((16, 3))
    vectors = np.repeat(centers, 3, 0) + 0.01 * draw.standard_normal((48, 3))
    found = TextClusterer(k=16).fit([f"text {i}" for i in range(48)], vectors=vectors)
    tree = families(found)
    assert sorted(len(groups) for groups in tree) == [4, 4, 4, 4]
    assert sorted(group for groups in tree for group in groups) == list(range(16))


def test_a_plane_keeps_what_is_apart_apart():
    _, vectors, gold = planted(spread=0.05)
    places, how = plane(vectors, method="PCA")
    assert how == "PCA" and places.shape == (48, 2)
    assert places.min() == 0 and places.max() == 1
    middle = [places[np.array(gold) == group].mean(0) for group in range(4)]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(middle) for b in middle[i + 1 :]]
    assert min(apart) > 0.1
    line = np.array([[0.0], [1.0], [4.0]], np.float32)
    assert sorted(plane(line, method="PCA")[0][:, 0].tolist()) == [0, 0.25, 1]
