"""Batches of row numbers: every row once, no equal texts, one data set, the same everywhere."""

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from polyvec.data.training.batches import Batches
from polyvec.data.training.dataset import TrainingData
from polyvec.data.training.mixing import Mixing, counts, passes
from polyvec.data.training.rows import TrainingRow
from polyvec.data.training.sources import TrainingSet
from polyvec.data.training.table import DataTable
from polyvec.errors import DataError, SettingsError


def a_set(name, rows, **options):
    return TrainingSet(name, rows, DataTable(name=name, **options))


def plain(name, size, **options):
    return a_set(
        name, [TrainingRow(f"{name} q{i}", (f"{name} d{i}",)) for i in range(size)], **options
    )


def crowded(size, num_documents, seed=0):
    """Rows of which many share a document."""
    draw = np.random.default_rng(seed)
    return a_set(
        "crowded",
        [TrainingRow(f"q{i}", (f"d{draw.integers(num_documents)}",)) for i in range(size)],
    )


def three(**options):
    return TrainingData([plain("a", 103, **options), plain("b", 40), plain("c", 9)])


@pytest.mark.parametrize("one_dataset", [True, False])
@pytest.mark.parametrize("group_by_length", [True, False])
def test_every_row_comes_once_an_epoch(one_dataset, group_by_length):
    mixing = Mixing(one_dataset=one_dataset, group_by_length=group_by_length)
    epoch = Batches(three(), 16, mixing).epoch(3)
    assert sorted(itertools.chain(*epoch)) == list(range(152))
    assert epoch.dropped == ()
    assert epoch.num_rows == 152
    assert max(map(len, epoch)) == 16


@pytest.mark.parametrize("one_dataset", [True, False])
@pytest.mark.parametrize("num_documents", [7, 60, 500])
def test_no_batch_has_equal_texts_and_no_row_is_lost(one_dataset, num_documents):
    data = TrainingData([crowded(400, num_documents), plain("b", 40)])
    epoch = Batches(data, 16, Mixing(one_dataset=one_dataset)).epoch(0)
    for batch in epoch:
        texts = [text for number in batch for text in data[int(number)].texts]
        assert len(set(texts)) == len(texts)
    assert sorted(itertools.chain(*epoch)) == list(range(440))
    assert epoch.num_moved > 0


def test_the_number_of_moved_rows_is_reported():
    rows = [TrainingRow("q", ("d1",)), TrainingRow("q", ("d2",)), TrainingRow("r", ("d3",))]
    data = TrainingData([a_set("x", rows)])
    epoch = Batches(data, 2, Mixing(shuffle=False)).epoch(0)
    assert [list(batch) for batch in epoch] == [[0, 2], [1]]
    assert (epoch.num_moved, epoch.num_small) == (1, 1)
    assert "1 rows moved to a later batch" in epoch.report()
    assert Batches(data, 2, Mixing(shuffle=False, duplicates=True)).epoch(0).num_moved == 0


def test_waiting_rows_fill_whole_batches_where_they_can():
    """A document in a fifth of the rows, and 20 batches of 4: one for each of the 16, and more."""
    rows = [TrainingRow(f"q{i}", (f"d{i if i % 5 else 'same'}",)) for i in range(80)]
    for epoch in range(20):
        found = Batches(TrainingData([a_set("x", rows)]), 4).epoch(epoch)
        assert list(map(len, found)) == [4] * 20


@pytest.mark.medium
@pytest.mark.parametrize("num_documents", [40, 80, 200])
def test_whole_batches_are_at_least_as_many_as_those_of_sentence_transformers(num_documents):
    datasets = pytest.importorskip("datasets")
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    data = TrainingData([crowded(640, num_documents)])
    columns = {"a": [row.query for row in data], "b": [row.positives[0] for row in data]}
    theirs = NoDuplicatesBatchSampler(
        datasets.Dataset.from_dict(columns), batch_size=32, drop_last=False
    )
    num_theirs = sum(len(batch) == 32 for batch in theirs)
    ours = Batches(data, 32).epoch(0)
    assert len(ours) - ours.num_small >= num_theirs


def test_every_epoch_has_as_many_batches_as_the_first():
    """Which rows wait for others differs between epochs; transformers counts the first."""
    draw = np.random.default_rng(0)
    rows = [TrainingRow(f"q{a}", (f"d{b}",)) for a, b in draw.integers(25, size=(300, 2))]
    data = TrainingData([a_set("x", rows), plain("b", 40)])
    own = {len(cut(data, epoch)) for epoch in range(40)}
    assert len(own) > 1  # or the test shows nothing
    batches = Batches(data, 16)
    num_batches = len(batches.epoch(0))
    for number in range(40):
        epoch = batches.epoch(number)
        assert len(epoch) == num_batches
        taken = [int(row) for batch in epoch for row in batch]
        assert sorted([*taken, *epoch.dropped]) == list(range(340))
        assert epoch.num_repeated == 0
    whole = Batches(data, 18, Mixing(drop_last=True))
    found = [whole.epoch(number) for number in range(40)]
    assert {len(epoch) for epoch in found} == {len(found[0])}
    assert {len(batch) for epoch in found for batch in epoch} == {18}
    again = max(found, key=lambda epoch: epoch.num_repeated)
    assert f"{again.num_repeated} batches repeated" in again.report()


def cut(data, epoch):
    """The batches of an epoch that is not made as long as another."""
    return Batches(data, 16)._epoch(epoch)


def test_rows_that_fit_no_batch_are_dropped_and_reported():
    rows = [TrainingRow(f"q{i}", ("same",)) for i in range(6)]
    data = TrainingData([a_set("x", rows), plain("b", 8)])
    epoch = Batches(data, 4, Mixing(smallest=2)).epoch(0)
    assert sorted(epoch.dropped) == list(range(6))
    assert "6 rows left out" in epoch.report()
    dropped = Batches(three(), 16, Mixing(drop_last=True)).epoch(0)
    assert set(map(len, dropped)) == {16}
    assert len(dropped.dropped) == 152 - dropped.num_rows == 103 % 16 + 40 % 16 + 9
    with pytest.raises(DataError, match=r"6 rows give no batch of 4 without equal texts"):
        Batches(TrainingData([a_set("x", rows)]), 4, Mixing(drop_last=True)).epoch(0)


def test_a_batch_has_rows_of_one_data_set():
    data = three()
    for batch in Batches(data, 16).epoch(0):
        assert len({data.set_of(int(number)) for number in batch}) == 1
    mixed = Batches(data, 16, Mixing(one_dataset=False)).epoch(0)
    assert any(len({data.set_of(int(number)) for number in batch}) > 1 for batch in mixed)


def test_rows_without_in_batch_negatives_may_share_texts():
    rows = [TrainingRow(f"q{i}", ("same",), in_batch=False) for i in range(8)]
    epoch = Batches(TrainingData([a_set("x", rows)]), 4).epoch(0)
    assert list(map(len, epoch)) == [4, 4]


def test_each_epoch_has_its_own_order_and_repeats_it():
    data = three()
    first = [list(map(int, batch)) for batch in Batches(data, 16).epoch(0)]
    again = [list(map(int, batch)) for batch in Batches(three(), 16).epoch(0)]
    assert first == again
    assert first != [list(map(int, batch)) for batch in Batches(data, 16).epoch(1)]
    assert first != [list(map(int, batch)) for batch in Batches(data, 16, seed=1).epoch(0)]
    # The order of the batches too: not all of "a", then all of "b".
    owners = [data.set_of(batch[0]) for batch in first]
    assert owners != sorted(owners)


def test_without_shuffling_rows_keep_the_order_of_the_file():
    epoch = Batches(three(), 16, Mixing(shuffle=False)).epoch(1)
    assert list(itertools.chain(*epoch)) == list(range(152))


@pytest.mark.medium
def test_every_process_has_the_same_batches():
    """String hashing differs between processes; batches must not."""
    code = (
        "from polyvec.data.training.batches import Batches\n"
        "from polyvec.data.training.dataset import TrainingData\n"
        "from polyvec.data.training.rows import TrainingRow\n"
        "from polyvec.data.training.sources import TrainingSet\n"
        "rows = [TrainingRow(f'q{i}', (f'd{i % 7}', f'e{i}', f'f{i}')) for i in range(50)]\n"
        "data = TrainingData([TrainingSet('x', rows)])\n"
        "batches = Batches(data, 8)\n"
        "print([batch.tolist() for batch in batches.epoch(2)], batches.rows(2, 0))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_a_share_is_size_to_the_power_of_the_temperature():
    assert counts(["a", "b"], [1000, 10], Mixing()) == [1000, 10]
    assert counts(["a", "b"], [1000, 10], Mixing(temperature=0)) == [505, 505]
    # 1000 ** 0.5 = 31.62, 10 ** 0.5 = 3.16: shares 0.909 and 0.091 of 1,010
    assert counts(["a", "b"], [1000, 10], Mixing(temperature=0.5)) == [918, 92]
    weights = {"a": 1.0, "b": 4.0}
    assert counts(["a", "b"], [1000, 10], Mixing(weights=weights)) == [202, 808]


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        (Mixing(temperature=-1), "temperature is -1"),
        (Mixing(weights={"a": 1.0}), "none for the data set 'b'"),
        (Mixing(weights={"a": 1.0, "bb": 1.0}), "no data set 'bb'. Did you mean 'b'"),
        (Mixing(weights={"a": 1.0, "b": 0.0}), "'b' is 0.0, expected above 0"),
    ],
)
def test_shares_that_are_none_are_refused(mixing, message):
    with pytest.raises(SettingsError, match=message):
        counts(["a", "b"], [5, 5], mixing)


def test_small_sets_repeat_and_large_ones_go_on_in_the_next_epoch():
    data = TrainingData([plain("large", 90), plain("small", 10)])
    batches = Batches(data, 10, Mixing(temperature=0))
    seen = Counter()
    for epoch in range(9):
        numbers = list(map(int, itertools.chain(*batches.epoch(epoch))))
        assert len(numbers) == 100
        assert Counter(data.set_of(number) for number in numbers) == {0: 50, 1: 50}
        small = Counter(number for number in numbers if number >= 90)
        assert set(small.values()) == {5}
        seen.update(number for number in numbers if number < 90)
    assert set(seen.values()) == {5}  # 9 epochs of 50 are 5 passes over 90


def test_passes_are_permutations_one_after_another():
    found = passes(7, 0, 21, [1], shuffle=True)
    assert [sorted(found[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert list(passes(7, 5, 9, [1], shuffle=True)) == list(found[5:9])
    assert list(found[:7]) != list(found[7:14])


def test_weights_in_the_tables_of_the_sets():
    data = TrainingData([plain("a", 30, weight=1.0), plain("b", 10, weight=1.0)])
    assert Batches(data, 10).counts == [20, 20]


def test_rows_of_similar_length_come_together():
    draw = np.random.default_rng(0)
    rows = [TrainingRow(f"{i}" + "x" * int(draw.integers(500))) for i in range(320)]
    data = TrainingData([a_set("x", rows)])

    def spread(mixing):
        found = Batches(data, 16, mixing).epoch(0)
        lengths = [[len(data[int(number)].query) for number in batch] for batch in found]
        return np.mean([max(each) - min(each) for each in lengths]), lengths

    grouped, lengths = spread(Mixing(group_by_length=True))
    assert grouped < spread(Mixing())[0] / 5
    # Batches are shuffled, so the epoch does not go from short to long.
    assert [each[0] for each in lengths] != sorted(each[0] for each in lengths)


def test_rows_of_another_group_stand_beside_those_of_every_batch():
    data = TrainingData([plain("a", 40), plain("b", 9), plain("chats", 10, group="chats")])
    batches = Batches(data, 8, Mixing(group_sizes={"chats": 3}))
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            assert [data.set_of(int(number)) == 2 for number in batch[-3:]] == [True] * 3
            assert all(data.set_of(int(number)) < 2 for number in batch[:-3])
    beside = [int(n) for epoch in range(2) for batch in batches.epoch(epoch) for n in batch[-3:]]
    counted = Counter(beside)
    assert set(counted) == set(range(49, 59))
    assert max(counted.values()) - min(counted.values()) <= 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({}, "no size for the group 'chats'"), ({"chat": 1, "chats": 1}, "no group 'chat'")],
)
def test_sizes_of_groups_are_checked(sizes, message):
    data = TrainingData([plain("a", 4), plain("chats", 4, group="chats")])
    with pytest.raises(SettingsError, match=message):
        Batches(data, 2, Mixing(group_sizes=sizes))


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(SettingsError, match="batch_size is 0"):
        Batches(three(), 0)
