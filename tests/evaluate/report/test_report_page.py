"""The page: its numbers are the report's, its texts are data, and it needs nothing but itself."""

import re
import time

import numpy as np
import pytest
from report_examples import (
    MODEL_SHA256,
    bitext_outcome,
    classification_outcome,
    clustering_outcome,
    mean,
    mixed_report,
    read,
    report_of,
    retrieval_outcome,
    sts_outcome,
    task,
)

from polyvec.errors import DataError, InputError
from polyvec.evaluate.outcome import Item, Outcome
from polyvec.evaluate.report import html, write_html
from polyvec.evaluate.report.facts import facts, groups

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def report():
    return mixed_report()


@pytest.fixture(scope="module")
def page(report):
    return html(report)


@pytest.fixture(scope="module")
def tree(page):
    return read(page)


def details_of(tree, name):
    """A task's folded section."""
    return next(
        one for one in tree.all("details", kind="task") if one.one(kind="title").text == name
    )


def table_rows(table) -> list[list[str]]:
    rows = [[cell.text for cell in row.children] for row in table.all("tr")]
    return [row for row in rows if row]


def test_the_overview_has_every_tasks_numbers(report, tree):
    shown = {
        row.attributes["data-task"]: row for row in tree.all("tr") if "data-task" in row.attributes
    }
    assert set(shown) == {one.result.task for one in report.tasks}
    for one in report.tasks:
        result = one.result
        if result.subset:
            continue
        row = shown[result.task]
        assert (
            row.one(kind="score").one("b").text == f"{100 * result.scores[result.main_measure]:.2f}"
        )
        assert row.one(kind="seconds").text == "2.0 s"
        if result.published is not None:
            difference = 100 * (result.scores[result.main_measure] - result.published)
            assert (
                row.one("td", kind="published").text
                == f"{100 * result.published:.2f} {difference:+.2f}"
            )
        else:
            assert row.one("td", kind="published").text == "–"


def test_every_interval_holds_its_score(report, tree):
    rows = [row for row in tree.all("tr") if "data-task" in row.attributes]
    for row in rows:
        low, _, high = row.one("td", kind="interval").text.partition(" to ")
        score = row.one(kind="score").one("b").text
        if row.attributes["data-task"] == "short":
            assert low == "–"
        else:
            assert float(low) < float(score) < float(high)
        label = row.one("svg").attributes["aria-label"]
        assert label.startswith(score) and (low == "–" or f"{low} to {high}" in label)


def test_bars_are_as_long_as_the_scores(tree):
    for row in (row for row in tree.all("tr") if "data-task" in row.attributes):
        fill = row.one("rect", kind="fill").attributes
        assert fill["width"] == f"{float(row.one(kind='score').one('b').text):g}%"


def test_tasks_are_sorted_within_their_kind_and_kinds_have_means(report, tree):
    names = [row.attributes["data-task"] for row in tree.all("tr") if "data-task" in row.attributes]
    first, second = (one.result.scores["spearman"] for one in report.tasks[:2])
    assert names[:2] == (["stsb", "sts16"] if first > second else ["sts16", "stsb"])
    assert f"mean Spearman {50 * (first + second):.2f}" in tree.one("tr", kind="kind").text
    tile = tree.one(kind="tiles").children[0]
    assert [one.text for one in tile.children][1] == f"{50 * (first + second):.2f}"


def test_all_scores_of_a_task_are_there(report, tree):
    for one in report.tasks[:5]:
        section = details_of(tree, one.result.task)
        numbers = {cell.text for cell in section.all("td", kind="num")}
        for value in one.result.scores.values():
            assert f"{100 * value:.2f}" in numbers
    matrix = table_rows(details_of(tree, "scifact").one(kind="matrix"))
    assert matrix[0] == ["At", "1", "3", "5", "10", "20", "100"]
    assert matrix[2] == ["Recall", "50.00", "50.00", "50.00", "50.00", "–", "50.00"]


def test_many_scores_are_a_matrix_and_the_main_ones_family_is_seen_first():
    names = [
        f"{by}_{measure}" for by in ("cosine", "dot", "max") for measure in ("ap", "f1", "recall")
    ]
    scores = {name: number / 10 for number, name in enumerate(names)}
    tree = read(html(report_of(task("p", Outcome("pair_classification", "max_ap", scores)))))
    assert [row[0] for row in table_rows(tree.one("table", kind="scores"))[1:]] == [
        "max AP",
        "max F1",
        "max Recall",
    ]
    assert table_rows(tree.one("table", kind="matrix"))[1:] == [
        ["cosine", "0.00", "10.00", "20.00"],
        ["dot", "30.00", "40.00", "50.00"],
        ["max", "60.00", "70.00", "80.00"],
    ]


def test_slices_are_those_of_the_facts(report, tree):
    for found in facts(report).tasks:
        if found.subsets or not found.num_items:
            continue
        rows = table_rows(details_of(tree, found.name).one(kind="slices"))[1:]
        slices = found.shown[0].details.slices
        assert [row[1] for row in rows] == [str(one.num_items) for one in slices]
        assert [row[3] for row in rows] == [f"{100 * one.score:.2f}" for one in slices]
        assert sum(one.num_items for one in slices) == found.num_items


def test_the_worst_items_are_there_with_their_texts(report, tree):
    lowest = min(item.value for item in report.tasks[2].outcome.items)
    items = details_of(tree, "scifact").all("li", kind="item")
    assert len(items) == 10
    assert items[0].one(kind="value").text == f"{100 * lowest:.2f}"
    assert items[0].one(kind="missing").children[1].text.startswith("wanted ")
    assert [one.one(kind="grade").text for one in items[0].one(kind="found").children] == [
        "not relevant",
        "not relevant",
    ]
    pairs = details_of(tree, "stsb").all("li", kind="item")
    assert len(pairs) == 10 and {one.one(kind="verdict").text for one in pairs} <= {
        "Too similar",
        "Not similar enough",
    }
    wrong = details_of(tree, "banking77").all("li", kind="item")
    assert len(wrong) == 10 and all("predicted as label 9" in one.text for one in wrong)


def test_notices_come_before_the_scores(tree, page):
    notices = [one.text for one in tree.all("li", kind="notice")]
    assert any("scifact 37.0 % (37 of 100)" in one for one in notices)
    assert any("scifact a part of the documents" in one for one in notices)
    assert any("Some tasks were training data." in one for one in notices)
    assert any("sts16 corresponds to STS16" in one for one in notices)
    assert any("by more than 1 point" in one for one in notices)
    assert page.index('id="notices"') < page.index('id="overview"')


def test_the_task_that_lost_most_is_named_first():
    tasks = [task(f"t{cut}", clustering_outcome(), num_truncated=cut) for cut in (3, 90, 0, 12)]
    (notice,) = read(html(report_of(*tasks))).all("li", kind="notice")
    assert [one.one("b").text for one in notice.all("li")] == ["t90", "t12", "t3"]


def test_errors_come_first():
    found = report_of(
        task("nan", Outcome("clustering", "v", {"v": float("nan")})),
        task("good", clustering_outcome(), model_sha256="ef" * 32),
    )
    tree = read(html(found))
    errors = [one.text for one in tree.all("li", kind="error")]
    assert "NaN or infinite" in errors[0] and "nan 1 of 1 score" in errors[0]
    assert "other weights" in errors[1] and "good efefefefefef" in errors[1]
    names = [row.attributes["data-task"] for row in tree.all("tr") if "data-task" in row.attributes]
    assert names == ["good", "nan"]  # and what has no score stands last
    assert not tree.one(kind="tiles").children  # two measures have no mean


def test_a_copy_never_carries_the_official_name(tree):
    for name in [one.text for one in tree.all("a")] + [t.text for t in tree.all(kind="title")]:
        assert name not in ("STSBenchmark", "STS16")
    cell = next(row for row in tree.all("tr") if row.attributes.get("data-task") == "stsb")
    assert "corresponds to STSBenchmark" in cell.one("th").text


def test_subsets_are_one_task_with_the_five_best_and_the_five_worst(report, tree):
    section = details_of(tree, "tatoeba")
    rows = table_rows(section.one(kind="subsets"))[1:]
    assert len(rows) == 24
    scores = [float(row[2]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    shown = [one.one(kind="title").text for one in section.all("details", kind="subset")]
    assert shown == [row[0] for row in [*rows[:5], *rows[-5:]]]
    row = next(row for row in tree.all("tr") if row.attributes.get("data-task") == "tatoeba")
    assert row.one(kind="score").one("b").text == f"{np.mean(scores):.2f}"
    assert "24 subsets · 720 pairs" in row.text


def test_a_score_of_all_subsets_is_taken_as_it_is():
    parts = [task("t", bitext_outcome(n), subset=f"s{n}") for n in range(3)]
    whole = task("t", Outcome("bitext", "f1", {"f1": 0.123}))
    (found,) = facts(report_of(*parts, whole)).tasks
    assert found.score == 0.123 and found.interval is None and len(found.members) == 3
    (found,) = facts(report_of(*parts)).tasks
    assert found.score == pytest.approx(np.mean([p.outcome.main_score for p in parts]))


def test_an_interval_is_only_shown_of_the_score_that_the_items_make():
    outcome = retrieval_outcome()
    other = Outcome("retrieval", "map", {"map": 0.99}, outcome.items, outcome.paired, mean)
    (found,) = facts(report_of(task("t", other))).tasks
    assert found.interval is None
    (found,) = facts(report_of(task("t", outcome))).tasks
    assert found.interval is not None


def test_pairs_similarities_are_grouped_by_gold_score():
    items = tuple(Item(str(i), ("a", "b"), i / 10, float(i)) for i in range(7))
    outcome = Outcome("sts", "spearman", {"spearman": 1.0}, items, similarities={"pairs": [0.1]})
    found = groups(outcome)
    assert [name for name, _ in found] == ["gold 0 to 2", "gold 2 to 4", "gold 4 to 6"]
    assert [len(values) for _, values in found] == [2, 2, 3]
    lost = Outcome("x", "m", {"m": 1.0}, similarities={"a": [np.nan], "b": [], "c": [np.nan, 1.0]})
    assert [(name, values.tolist()) for name, values in groups(lost)] == [("c", [1.0])]


def test_comparison_rows(tree):
    rows = table_rows(tree.one(kind="comparison"))
    assert rows[1][0] == "stsb" and rows[1][4:] == ["+2.00", "+1.00 to +3.00", "0.002", "yes"]
    assert rows[2][0] == "scifact" and rows[2][7] == "no"


def test_texts_are_data_everywhere():
    item = Item(EVIL, (EVIL, EVIL), 0.0, None, ((EVIL, EVIL, 0.5, 0),))
    outcome = Outcome(
        EVIL, EVIL, {EVIL: 0.0}, (item,) * 9, similarities={EVIL: [0.1], EVIL + "2": [0.2]}
    )
    labelled = tuple(Item(EVIL, (EVIL,), 0.5, EVIL + str(i % 2)) for i in range(9))
    words = {"note": EVIL, "official_task": EVIL, "split": EVIL}
    hashes = {"data_sha256": EVIL, "model_sha256": EVIL}
    found = html(
        report_of(
            task(EVIL, outcome, {EVIL: 1.0}, num_truncated=1, **words, **hashes),
            task("s", bitext_outcome(0), subset=EVIL),
            task("s", bitext_outcome(1), subset="b"),
            task("c", Outcome("classification", "accuracy", {"accuracy": 0.5}, labelled)),
            model=EVIL,
            notes=(EVIL,),
            compared=(EVIL, EVIL),
            comparison=mixed_report().comparison,
        )
    )
    tree = read(found)
    assert found.count("&lt;script&gt;") > 15
    assert not tree.all("script") and not tree.all("img")
    for one in tree.all():
        assert not any(name.startswith("on") for name in one.attributes), one


def test_nothing_is_loaded_and_no_script_may_run(page, tree):
    policy = tree.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not {one.name for one in tree.all()} & {"script", "link", "img", "iframe", "object"}
    for one in tree.all():
        assert "src" not in one.attributes and "action" not in one.attributes
        assert one.attributes.get("href", "#").startswith("#")
    style = tree.one("style").text
    assert "url(" not in style and "@import" not in style and "://" not in page


def test_links_lead_to_elements_of_the_page(tree):
    ids = [one.attributes["id"] for one in tree.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for link in tree.all("a"):
        assert link.attributes["href"][1:] in ids


def test_the_page_can_be_read_aloud(tree):
    assert tree.one("html").attributes["lang"] == "en"
    for cell in tree.all("th"):
        assert cell.attributes.get("scope") in ("col", "row", "rowgroup"), cell
    for chart in tree.all("svg"):
        labelled = chart.attributes.get("role") != "img" or chart.attributes["aria-label"]
        assert labelled
    for table in tree.all("table"):
        heads = [one for row in table.one("thead").all("tr") for one in row.children]
        assert heads and all(one.name == "th" and one.text for one in heads)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough_in_light_and_dark(tree, scheme):
    """WCAG AA: 4.5 for text, 3 for what a chart is read by."""
    blocks = re.findall(r":root \{(.*?)\}", tree.one("style").text)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))
    for text in ("ink", "muted", "link"):
        for ground in ("page", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for level in ("error", "warning", "remark", "good"):
        assert contrast(colours["ink"], colours[f"{level}-panel"]) >= 4.5
    assert contrast(colours["good"], colours["good-panel"]) >= 4.5
    assert contrast(colours["muted"], colours["good-panel"]) >= 4.5
    for line in ("fill", "mark", "g0", "g1", "g2", "g3", "g4", "g5"):
        assert contrast(colours[line], colours["page"]) >= 3, line


def test_the_same_report_gives_the_same_bytes(page):
    assert html(mixed_report()) == page


def test_files_are_whole_or_not_there(tmp_path, report, page):
    write_html(tmp_path / "page.html", report)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    with pytest.raises(DataError, match="does not exist"):
        write_html(tmp_path / "none" / "page.html", report)
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_a_report_without_tasks_is_refused():
    with pytest.raises(InputError, match="no tasks"):
        html(report_of())


def test_a_published_score_that_is_not_a_fraction_is_refused():
    with pytest.raises(InputError, match=r"stsb: the published score 82.03 is not a fraction"):
        html(report_of(task("stsb", sts_outcome(), published=82.03)))


@pytest.mark.parametrize(
    "outcome",
    [
        clustering_outcome(),
        Outcome("sts", "spearman", {"spearman": -0.4}, (Item("1", ("a", "b"), 0.3, 4.0),)),
        Outcome("retrieval", "ndcg@10", {"ndcg@10": 1.0}, (Item("1", ("a",), 1.0),)),
        Outcome("retrieval", "ndcg@10", {"ndcg@10": 0.0}, (Item("1", (), 0.0),)),
        Outcome("x", "m", {"m": 0.5}, (), None, None, {"equal": np.ones(5)}),
        Outcome("x", "m", {"m": float("inf")}, (), None, None, {"one": np.array([0.1])}),
        Outcome(
            "summarization",
            "spearman",
            {"spearman": 0.1},
            tuple(Item(str(i), ("t",), float("nan")) for i in range(9)),
        ),
        Outcome(
            "sts",
            "spearman",
            {"spearman": 0.1},
            tuple(Item(str(i), ("a", "b"), float(i), float("nan")) for i in range(9)),
            similarities={"pairs": np.arange(9.0)},
        ),
    ],
)
def test_strange_outcomes_still_make_a_page(outcome):
    tree = read(html(report_of(task("strange", outcome, {}))))
    assert details_of(tree, "strange").one(kind="scores")


def test_measured_by_result_without_newer_fields():
    """Results that know nothing of subsets, counterparts and published scores are shown, too."""

    class Bare:
        task, split, kind, main_measure = "t", "test", "clustering", "v"
        scores, num_texts, num_truncated, seconds = {"v": 0.5}, 3, 0, 1.0
        data_sha256, model_sha256 = "cd" * 32, MODEL_SHA256

    bare = task("t", Outcome("clustering", "v", {"v": 0.5}))
    found = read(html(report_of(type(bare)(Bare(), bare.outcome, {}))))
    assert found.one(kind="score").one("b").text == "50.00"


def test_thirty_tasks_are_small_and_quick():
    outcomes = [sts_outcome(1000), retrieval_outcome(500), classification_outcome(1000)]
    text = " ".join(f"word{i}" for i in range(80))
    long = tuple(
        Item(str(i), (text, text), 0.0, None, ((str(i), text, 0.5, 0),) * 5) for i in range(500)
    )
    zeros = np.zeros((500, 1))
    outcomes.append(Outcome("retrieval", "map", {"map": 0.0}, long, zeros, mean))
    found = report_of(*(task(f"t{i}", outcomes[i % 4]) for i in range(30)))
    began = time.process_time()
    page = html(found)
    assert time.process_time() - began < 6  # 1 s on a quiet machine
    assert len(page.encode()) < 1_000_000


def test_two_hundred_subsets_are_compact():
    subsets = [task("many", bitext_outcome(n), subset=f"s{n}") for n in range(200)]
    page = html(report_of(*subsets))
    assert len(page.encode()) < 400_000
    assert len(read(page).all("details", kind="subset")) == 10
