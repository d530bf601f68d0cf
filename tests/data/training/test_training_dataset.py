"""What an epoch takes of each row."""

from collections import Counter

import pytest

from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.data.training.table import DataTable
from polyvec.data.words import hash64
from polyvec.errors import DataError, SettingsError


def data(num_rows=6, num_positives=3, num_negatives=5, **options):
    rows = [
        TrainingRow(
            f"q{i}",
            tuple(f"p{i}.{j}" for j in range(num_positives)),
            tuple(f"n{i}.{j}" for j in range(num_negatives)),
            teacher_scores=tuple(map(float, range(num_positives + num_negatives))),
        )
        for i in range(num_rows)
    ]
    return TrainingData(
        [TrainingSet("other", [TrainingRow("x")]), TrainingSet("x", rows, DataTable(**options))]
    )


def test_the_epoch_takes_one_positive_and_all_negatives_by_default():
    row = data().drawn(1, 0)
    assert len(row.positives) == 1
    assert row.negatives == tuple(f"n0.{j}" for j in range(5))


@pytest.mark.parametrize("num_negatives", [0, 1, 3, 5, 9])
def test_negatives_are_drawn_anew_each_epoch(num_negatives):
    rows = data(num_negatives=5).sets[1].rows
    found = TrainingData([TrainingSet("x", rows, DataTable(num_negatives=num_negatives))])
    taken = [found.drawn(0, epoch).negatives for epoch in range(200)]
    assert {len(each) for each in taken} == {min(num_negatives, 5)}
    assert all(len(set(each)) == len(each) for each in taken)
    if 0 < num_negatives < 5:
        counted = Counter(text for each in taken for text in each)
        assert len(counted) == 5
        assert max(counted.values()) < 2 * min(counted.values())
    assert taken == [found.drawn(0, epoch).negatives for epoch in range(200)]


def test_other_rows_and_other_seeds_draw_otherwise():
    found = data(num_rows=30, num_positives=8)
    places = {found.drawn(number, 0).positives[0].split(".")[1] for number in range(1, 31)}
    assert len(places) > 4
    sets = found.sets
    other = TrainingData(sets, seed=7)
    assert any(other.drawn(number, 0) != found.drawn(number, 0) for number in range(1, 31))


def test_first_positives_and_first_negatives_on_request():
    found = data(num_rows=20, shuffle_positive=False)
    assert {found.drawn(number, 3).positives[0].split(".")[1] for number in range(1, 21)} == {"0"}
    rows = found.sets[1].rows
    led = TrainingData([TrainingSet("x", rows, DataTable(num_negatives=3, negatives_first=2))])
    taken = [led.drawn(0, epoch).negatives for epoch in range(20)]
    assert {each[:2] for each in taken} == {("n0.0", "n0.1")}
    assert {each[2] for each in taken} == {"n0.2", "n0.3", "n0.4"}


def test_a_teachers_scores_go_with_their_documents():
    found = TrainingData([TrainingSet("x", data().sets[1].rows, DataTable(num_negatives=2))])
    for epoch in range(10):
        row = found.drawn(0, epoch)
        expected = [float(row.positives[0].split(".")[1])]
        expected += [3 + float(each.split(".")[1]) for each in row.negatives]
        assert list(row.teacher_scores) == expected


def test_hashes_are_those_of_the_texts_that_are_drawn():
    rows = data(num_rows=12).sets[1].rows
    alone = [TrainingRow("a", ("b",), in_batch=False)]
    found = TrainingData(
        [
            TrainingSet("x", rows, DataTable(num_negatives=2, negatives_first=1)),
            TrainingSet("alone", alone),
            TrainingSet("y", rows, DataTable(num_positives=None, shuffle_positive=False)),
        ]
    )
    for epoch in range(3):
        texts = found.drawn_texts(epoch)
        for number in range(len(found)):
            row = found.drawn(number, epoch)
            expected = list(map(hash64, row.texts)) if row.in_batch else []
            assert texts.of(number) == expected


def test_rows_by_number():
    found = data()
    assert len(found) == 7
    assert found[0].query == "x"
    assert found[-1].query == "q5"
    assert [row.query for row in found[1:3]] == ["q0", "q1"]
    with pytest.raises(IndexError):
        found[7]


def test_no_sets_and_two_of_one_name_are_refused():
    with pytest.raises(SettingsError, match="needs data"):
        TrainingData([])
    with pytest.raises(DataError, match="two data sets are called 'x'"):
        TrainingData([TrainingSet("x", [TrainingRow("a")])] * 2)
