"""The docstrings of this Python: thousands of real texts, found without side effects."""

import subprocess
import sys

import pytest

from polyvec.data.docstrings import standard_library

PRINT_ALL = (
    "from polyvec.data.docstrings import standard_library as s; import hashlib\n"
    "records = s()\n"
    "print(hashlib.sha256(repr(records).encode()).hexdigest())"
)


@pytest.fixture(scope="module")
def by_id():
    records = standard_library()
    texts = {record.id: record.text for record in records}
    assert len(texts) == len(records), "ids are unique"
    return texts


def test_thousands_of_names_each_with_its_own_words(by_id):
    assert len(by_id) > 2500
    assert list(by_id) == sorted(by_id)
    for name, text in by_id.items():
        assert text.startswith(f"{name}: ")
        assert len(text) > len(name) + 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("subprocess.run", "Run command with arguments and return a CompletedProcess instance"),
        ("os.path.join", "Join two or more pathname components"),
        ("os.getcwd", "current working directory"),
        ("json.loads", "Deserialize"),
        ("collections.Counter", "counting hashable items"),
        ("builtins.len", "Return the number of items in a container"),
        ("math.sin", "Return the sine of x"),
        ("threading.Barrier", "Implements a Barrier"),
        ("re", "Support for regular expressions"),
        ("xml.etree.ElementTree.parse", "Parse XML document"),
    ],
)
def test_known_names_are_there(by_id, name, words):
    assert words in by_id[name]


def test_nothing_private_no_tests_and_no_second_names(by_id):
    for name in by_id:
        parts = name.split(".")
        assert not any(part.startswith("_") for part in parts)
        assert not {"test", "tests", "idle_test"} & set(parts[:-1])
        assert parts[0] in sys.stdlib_module_names
        assert parts[0] not in ("posix", "posixpath", "distutils", "antigravity", "this")


def test_a_fresh_python_prints_nothing_and_finds_the_same(by_id):
    runs = [
        subprocess.run(
            [sys.executable, *flags, "-c", PRINT_ALL], capture_output=True, text=True, check=True
        )
        for flags in ((), ("-W", "always"))
    ]
    assert runs[0].stdout == runs[1].stdout
    assert [run.stdout.count("\n") for run in runs] == [1, 1]
    assert [run.stderr for run in runs] == ["", ""]
