"""A table of keys holds what a dict would, in a tenth of the memory."""

import random
import tracemalloc

from polyvec.storage import key_table
from polyvec.storage.key_table import KeyTable, Place


def test_it_is_a_dict(monkeypatch):
    monkeypatch.setattr(key_table, "NUM_WAITING", 16)
    draw, expected, table = random.Random(0), {}, KeyTable()
    # Few halves, so that keys share them and are set again.
    halves = [draw.randbytes(8) for _ in range(20)] + [b"\0" * 8, b"\xff" * 8]
    for number in range(1500):
        key = draw.choice(halves) + draw.choice(halves)
        place = Place(draw.randrange(5), number, draw.random() < 0.5)
        table.set(key, place)
        expected[key] = place
        if number == 700:
            table.forget(3)
            expected = {key: at for key, at in expected.items() if at.source != 3}
    assert len(table) == len(expected)
    for key in (first + second for first in halves for second in halves):
        assert table.get(key) == expected.get(key)
        assert (key in table) == (key in expected)


def test_a_key_takes_few_bytes():
    draw, table, count = random.Random(0), KeyTable(), 2 * key_table.NUM_WAITING
    tracemalloc.start()
    for row in range(count):
        table.set(draw.randbytes(16), Place(0, row, False))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == count
    assert held / count < 30
