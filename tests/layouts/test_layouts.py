"""Every layout loads to the reference's vectors in float32 and bfloat16, or is refused by name."""

import json
import re

import pytest
from layouts import Equal, Refused, all_layouts
from measure import BFLOAT16, FLOAT32, RESULTS, largest_difference, refusal, smallest_cosine

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore"),  # warnings have tests of their own
]
EACH = pytest.mark.parametrize("each", all_layouts(), ids=lambda each: each.name)


@EACH
def test_a_layout_loads_equal_or_is_refused_by_name(each, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    expected = each.make(folder)
    if isinstance(expected, Refused):
        line = refusal(folder, expected)
        assert re.search(expected.message, line) and "\n" not in line
        return
    assert isinstance(expected, Equal)
    assert largest_difference(folder, expected) < FLOAT32
    if expected.bfloat16:
        assert smallest_cosine(folder, expected) > BFLOAT16


def test_the_table_has_every_layout():
    """Run python tests/layouts/measure.py and make docs if this fails."""
    assert list(json.loads(RESULTS.read_text("utf-8"))) == [each.name for each in all_layouts()]
