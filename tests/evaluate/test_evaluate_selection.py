"""Tasks by name, and our scores beside published ones."""

import dataclasses

import pytest

from polyvec.data.tasks.named import all_tasks, named_task
from polyvec.errors import DataError, InputError
from polyvec.evaluate.published import (
    beyond,
    join,
    markdown,
    read_published,
    rows,
    unexplained,
    with_scores,
)
from polyvec.evaluate.selection import select
from polyvec.evaluate.tasks import Result


@pytest.mark.medium
def test_every_named_task_is_in_the_shared_data(shared_data):
    for task in all_tasks(shared_data):
        subsets = task.subsets()
        assert subsets and len(set(subsets)) == len(subsets), task.name
        data = task.read(subsets[-1]) if not task.source.draw else None
        assert data is None or data.name == task.name
        assert task.name != task.naming.official_task  # a copy never has the official name


@pytest.mark.medium
def test_a_kind_all_or_a_name(shared_data):
    named = select(["stsb", "xquad"], data=shared_data, subsets=["de", "en"])
    assert [(each.name, each.subset) for each in named] == [
        ("stsb", ""),
        ("xquad", "de"),
        ("xquad", "en"),
    ]
    assert named[1].official_name == ("XQuADRetrieval", "validation", "de")
    for kind, spelling in (("sts", "STS"), ("bitext_mining", "bitext"), ("reranking",) * 2):
        found = select([spelling], data=shared_data)
        assert {each.task.kind for each in found} == {kind}
        assert found == select([kind], data=shared_data)
    found = select(["sts", "xquad"], data=shared_data, subsets=["de"])
    assert {(each.name, each.subset) for each in found if each.subset} == {
        ("stsb-multi", "de"),
        ("xquad", "de"),
    }
    published = {("STS12", "test", "default"): 0.5, ("XNLI", "test", "fr"): 0.6}
    found = with_scores(select(["all", "cranfield"], data=shared_data), published)
    assert [(each.name, each.subset) for each in found] == [
        ("sts12", ""),
        ("xnli", "fr"),
        ("cranfield", ""),
    ]
    joined = [join(result(each.name, 0.5, None), each, published).published for each in found]
    assert joined == [0.5, 0.6, None]
    with pytest.raises(DataError, match="none of the tasks has a published score"):
        with_scores(select(["retrieval"], data=shared_data), published)


def test_unknown_names_are_errors(shared_data, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'scifact'"):
        select(["scifacts"], data=shared_data)
    with pytest.raises(DataError, match="with --data"):
        select(["scifact"])
    with pytest.raises(InputError, match="xquad: no subset 'xx'"):
        select(["xquad"], data=shared_data, subsets=["xx"])
    with pytest.raises(InputError, match="kind 'sts' has no effect"):
        select(["stsb"], data=shared_data, kind="sts")
    with pytest.raises(InputError, match="subset 'de' has no effect"):
        select(["stsb", "scifact"], data=shared_data, subsets=["de"])
    with pytest.raises(DataError, match="no data of sts in"):
        select(["sts"], data=tmp_path)


def test_names_of_published_subsets():
    assert named_task("ntrex", ".").official_name("eng:zho-CN") == (
        "NTREXBitextMining",
        "test",
        "eng_Latn-zho_Hans",
    )
    assert named_task("tatoeba", ".").official_name("afr") == ("Tatoeba", "test", "afr-eng")
    assert named_task("nusax-bitext", ".").official_name("toba_batak")[2] == "eng-bbc"
    assert named_task("stsb", ".").official_name()[1:] == ("test", "default")
    assert named_task("cranfield", ".").official_name() == ("", "", "")


def test_published_scores_that_are_nan_are_skipped(tmp_path):
    path = tmp_path / "published.json"
    path.write_text('{"scores": {"A": {"test/de": 0.5, "test/fr": NaN}}}')
    assert read_published(path) == {("A", "test", "de"): 0.5}
    path.write_text('{"scores": {"A": 0.5}}')
    with pytest.raises(DataError, match="not published scores"):
        read_published(path)


def result(task, score, published, kind="sts", **more):
    facts = (kind, "spearman", {"spearman": score}, 2, 0, 0.1, "d" * 64, "m" * 64)
    return Result(task, "test", *facts, published=published, official_task="Official", **more)


def test_differences_beyond_tolerance_need_a_known_difference():
    near, far = result("near", 0.5005, 0.5), result("far", 0.502, 0.5)
    drawn = result("drawn", 0.509, 0.5, kind="classification")
    explained = dataclasses.replace(far, task="known", known_difference="another copy")
    all_four = [near, far, drawn, explained]
    assert [beyond(each) for each in all_four] == [False, True, False, True]
    assert unexplained(all_four) == [far]
    page = markdown("model", [*all_four, result("alone", 0.5, None)])
    assert "| far | Official | spearman | 1 | 50.20 | 50.00 | +0.20 |  | 1 | **none** |" in page
    assert "another copy" in page and "without a known difference: 1." in page
    assert "alone" not in page


def test_subsets_are_one_row():
    found = [
        result("multi", 0.50, 0.50, subset="de"),
        result("multi", 0.61, 0.60, subset="fr"),
    ]
    (row,) = rows(found)
    assert (row.num, round(row.ours, 2), round(row.published, 2)) == (2, 55.5, 55.0)
    assert row.largest.subset == "fr" and [each.subset for each in row.beyond] == ["fr"]
    assert "`multi`, beyond tolerance: fr +1.00." in markdown("model", found)
