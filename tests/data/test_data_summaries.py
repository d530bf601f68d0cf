"""What search over the standard library's docstrings finds: the demo's questions and thirty more.

The questions avoid names that came or went between Python 3.11 and 3.14. The thirty and their
answers were written before any of them was searched for.
"""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from polyvec.cli.demo import QUESTIONS
from polyvec.data.docstrings import standard_library, summaries, summary

THIRTY = tomllib.loads(Path(__file__).with_name("docstring_questions.toml").read_text("utf-8"))
SUBPROCESS = {"run", "Popen", "check_output", "getoutput", "getstatusoutput"}
DEMO = {
    "run a child process and capture its output": {f"subprocess.{name}" for name in SUBPROCESS},
    "parse a date from a string": {"time.strptime", "email.utils.parsedate"},
    "copy an object with everything inside it": {"copy.deepcopy"},
    "insert an item into a sorted list": {"bisect.insort", "bisect.insort_left"},
    "find the most common elements in a list": {"collections.Counter", "statistics.multimode"},
}


@pytest.fixture(scope="module")
def found(minilm):
    """The three nearest names of each question."""
    records = summaries()
    questions = [*DEMO, *THIRTY]
    scores_QN = (
        minilm.encode_query(questions)
        @ minilm.encode_document([record.text for record in records]).T
    )
    nearest = np.argsort(-scores_QN, axis=1, kind="stable")[:, :3]
    return {
        question: {records[row].id for row in rows}
        for question, rows in zip(questions, nearest, strict=True)
    }


@pytest.mark.medium
def test_four_of_the_demos_five_questions_are_answered(found):
    assert list(DEMO) == list(QUESTIONS)
    right = [question for question, answers in DEMO.items() if answers & found[question]]
    assert len(right) >= 4, set(DEMO) - set(right)


@pytest.mark.medium
def test_twenty_of_thirty_questions_written_before_looking_are_answered(found):
    assert len(THIRTY) == 30
    right = [question for question, answers in THIRTY.items() if set(answers) & found[question]]
    print(f"{len(right)} of {len(THIRTY)}")
    assert len(right) >= 20, set(THIRTY) - set(right)


def test_each_name_has_one_line_without_its_signature():
    text_of = {record.id: record.text for record in summaries()}
    assert set(text_of) == {record.id for record in standard_library()}
    assert all(text.startswith(f"{name}: ") for name, text in text_of.items())
    assert not [name for name, text in text_of.items() if "\n" in text or len(text) > 500]
    assert text_of["time.strptime"] == (
        "time.strptime: Parse a string to a time tuple according to a format specification."
    )


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return it, e.g. a list. Then more.", "Return it, e.g. a list."),
        ("len(x) -> int\nlen(x, y) -> int\n\nCount\n  them.\n\nMore.", "Count them."),
        ("f(x) -- does it. Well.", "does it."),
        ("f(x)", "f(x)"),
        ("Call f(x) twice", "Call f(x) twice"),
    ],
)
def test_the_summary_is_the_first_sentence(docstring, expected):
    assert summary(docstring) == expected
