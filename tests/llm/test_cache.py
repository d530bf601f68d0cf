"""Answers on disk: what is kept, what is asked again, and what a killed process leaves."""

import collections
import json
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

from polyvec.errors import AnswerWarning, DamagedCacheWarning, DataError, SettingsError
from polyvec.llm.answers import Answer, Completion
from polyvec.llm.cache import CachedLanguageModel
from polyvec.llm.function import FunctionLanguageModel
from polyvec.llm.language_model import LanguageModel
from polyvec.storage.json_store import JsonStore, key_of


class Counted:
    """A function that notes what it was asked."""

    def __init__(self, function=str.upper):
        self.function, self.asked = function, []

    def __call__(self, prompt):
        self.asked.append(prompt)
        return self.function(prompt)


@pytest.fixture
def rule():
    return Counted()


def cached(rule, folder, name="rule", **options):
    return CachedLanguageModel(FunctionLanguageModel(rule, name), folder, **options)


class Fixed(LanguageModel):
    """Gives the same completion and log-probabilities for every prompt, and counts them."""

    identity = "fixed"

    def __init__(self, completion=None):
        super().__init__()
        self.completion, self.asked = completion, 0

    def stream_checked(self, prompts, settings):
        for number in reversed(range(len(prompts))):
            self.asked += 1
            yield number, self.completion

    def logprobs_checked(self, prompts, continuations):
        self.asked += len(prompts)
        return [
            np.array([-len(p) / 3, -len(c) / 7], np.float32)
            for p, c in zip(prompts, continuations, strict=True)
        ]


def segments(folder):
    return sorted(folder.glob("*/*.jsonl"))


# ---- hits and misses ----------------------------------------------------------------------------


def test_answers_of_an_older_format_are_asked_again(rule, tmp_path):
    """Such as those to chats in which names of special tokens were not yet text."""
    chat = [{"role": "user", "content": "a <|im_end|>"}]
    model = cached(rule, tmp_path)
    described = [0.0, [], 256, []]
    key = key_of([1, "answers", [["user", "a <|im_end|>"]], described, 1, None])
    old = {"text": "stale", "finish": "stop", "new_tokens": 1, "parsed": None, "error": None}
    store = JsonStore(tmp_path / key_of(model.identity))
    store.put(key, {"answers": [old], "prompt_tokens": 1})
    assert model.generate([chat])[0].text != "stale"


def test_a_second_model_finds_what_the_first_was_asked(rule, tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "c"}]
    first = cached(rule, tmp_path).generate(["a", "b", chat])
    second = cached(rule, tmp_path).generate(["a", "b", chat, "d"])
    assert rule.asked == ["a", "b", "c", "d"]
    assert [each.cached for each in first] == [False] * 3
    assert [each.cached for each in second] == [True] * 3 + [False]
    assert [each.answers for each in second[:3]] == [each.answers for each in first]
    assert [each.prompt_tokens for each in second[:3]] == [1, 1, 1]


@pytest.mark.parametrize(
    "changed",
    [
        {"max_new_tokens": 5},
        {"temperature": 0.7},
        {"stop": ("x",)},
        {"stop": ("x", "y")},
        {"schema": {"type": "string"}},
        {"temperature": 0.5, "seed": 1},
        {"temperature": 0.5, "top_p": 0.5},
        {"temperature": 0.5, "n": 2},
    ],
)
def test_other_settings_are_another_question(tmp_path, changed):
    rule = Counted('"{}"'.format)
    model = cached(rule, tmp_path)
    for settings in ({}, {"temperature": 0.5}, changed, changed):
        model.generate(["a"], **settings)
    assert len(rule.asked) == 3


def test_settings_that_do_nothing_are_the_same_question(rule, tmp_path):
    model = cached(rule, tmp_path)
    for settings in ({}, {"seed": 3}, {"top_p": 0.5}, {"stop": []}, {"temperature": 0}):
        model.generate(["a"], **settings)
    assert rule.asked == ["a"]


def test_the_order_of_a_schema_is_part_of_the_question(tmp_path):
    """Constrained decoding writes the keys in that order."""
    rule = Counted(lambda prompt: "{}")
    model = cached(rule, tmp_path)
    for names in ("ab", "ba", "ab"):
        model.generate(["x"], schema={"properties": {key: {"type": "string"} for key in names}})
    assert len(rule.asked) == 2


def test_another_model_a_chat_and_a_text_are_not_mixed(rule, tmp_path):
    cached(rule, tmp_path, "one").generate(["a"])
    cached(rule, tmp_path, "two").generate(["a"])
    two = cached(rule, tmp_path, "two")
    two.generate([[{"role": "user", "content": "a"}]])
    two.generate([[{"role": "assistant", "content": "a"}]])
    two.generate(['[["user", "a"]]'])
    assert rule.asked == ["a", "a", "a", "a", '[["user", "a"]]']


def test_equal_prompts_are_asked_once(rule, tmp_path):
    model = cached(rule, tmp_path)
    found = model.generate(["a", "b", "a", "a"], temperature=1.0)
    assert rule.asked == ["a", "b"]
    assert [each.text for each in found] == ["A", "B", "A", "A"]
    assert [each.cached for each in found] == [False, False, True, True]
    assert (model.usage.prompts, model.usage.cached, model.usage.new_tokens) == (4, 2, 2)


def test_hits_stream_first(rule, tmp_path):
    model = cached(rule, tmp_path)
    model.generate(["b", "d"])
    assert [number for number, _ in model.stream(["a", "b", "c", "d"])] == [1, 3, 0, 2]


def test_odd_texts_come_back_as_they_were(tmp_path):
    rule = Counted(lambda prompt: f"{prompt}\u2028\n\x00\ud800 漢字 🙂 \"'\\")
    for _ in range(2):
        found = cached(rule, tmp_path).generate(["\ud83d x", "x" * 100_000])
    assert len(rule.asked) == 2
    assert [each.text for each in found] == [rule.function(prompt) for prompt in rule.asked]


def test_the_ledger_is_the_models(rule, tmp_path):
    inner = FunctionLanguageModel(rule)
    inner.usage.new_price = 1e6
    model = CachedLanguageModel(inner, tmp_path)
    model.generate(["a b", "c"])
    CachedLanguageModel(inner, tmp_path).generate(["a b"])
    assert (inner.usage.prompts, inner.usage.cached, inner.usage.cost) == (3, 1, 3.0)


def test_no_prompt_and_no_identity_is_in_the_files(rule, tmp_path):
    cached(Counted(lambda prompt: "y"), tmp_path, "my-url").generate(["secret"])
    (path,) = segments(tmp_path)
    assert "secret" not in path.read_text() and "my-url" not in path.read_text() + str(path)


# ---- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "options", "kept"),
    [
        (Completion((), error="gone"), {}, False),
        (Completion((Answer("x", "stop", 1),), error="gone"), {}, False),
        (Completion((Answer("x", "length", 1),)), {}, True),
        (Completion((Answer("x", "length", 1),)), {"keep_cut": False}, False),
        (Completion((Answer("x", "refusal", 1),)), {}, False),
        (Completion((Answer("x", "refusal", 1),)), {"keep_refused": True}, True),
        (Completion((Answer("x", "stop", 1), Answer("y", "refusal", 1))), {}, False),
        (Completion((Answer("x", "stop", 1, error="no JSON"),)), {}, False),
        (Completion((Answer("", "stop", 0),)), {}, True),
        (Completion((Answer('{"a": [1.5, null]}', "stop", 9, {"a": [1.5, None]}),)), {}, True),
    ],
)
def test_what_is_kept(tmp_path, completion, options, kept):
    inner = Fixed(completion)
    for number in range(2):
        found = dict(CachedLanguageModel(inner, tmp_path, **options).stream(["a", "b", "a"]))
        assert [found[i].answers for i in range(3)] == [completion.answers] * 3
        assert [found[i].error for i in range(3)] == [completion.error] * 3
        assert all(each.cached for each in found.values()) == (number == 1 and kept)
    assert inner.asked == (2 if kept else 4)
    assert bool(segments(tmp_path)) == kept


def test_problems_of_kept_answers_are_still_counted(tmp_path):
    for _ in range(2):
        with pytest.warns(AnswerWarning, match="1 of 1 answers have problems: 1 cut"):
            cached(Counted(), tmp_path).generate(["one two three"], max_new_tokens=2)


def test_log_probabilities_are_kept_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("polyvec.llm.cache.ARRAYS_AT_ONCE", 2)
    inner = Fixed()
    prompts, continuations = ["a", "bb", "a", "ccc"], [" x", " yy", " x", " x"]
    expected = inner.logprobs(prompts, continuations)
    inner.asked = 0
    for _ in range(2):
        found = CachedLanguageModel(inner, tmp_path).logprobs(prompts, continuations)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == np.float32
    assert inner.asked == 3


def test_scores_are_kept_as_the_model_gives_them(tmp_path):
    """A server has probabilities of choices without log-probabilities of texts."""

    class Judge(Fixed):
        def score_checked(self, prompts, choices):
            self.asked += len(prompts)
            return np.array([[1 / 3, len(p)] for p in prompts], np.float32)

    inner = Judge()
    for prompts in (["a", "bb", "a"], ["bb", "a", "ccc"]):
        found = CachedLanguageModel(inner, tmp_path).score(prompts, ["yes", "no"])
        np.testing.assert_array_equal(found, Judge().score(prompts, ["yes", "no"]))
        assert found.dtype == np.float32
    assert inner.asked == 3
    CachedLanguageModel(inner, tmp_path).score(["a"], ["no", "yes"])
    assert inner.asked == 4
    assert CachedLanguageModel(inner, tmp_path).score([], ["no", "yes"]).shape == (0, 2)


# ---- damage -------------------------------------------------------------------------------------


def test_a_torn_last_line_is_dropped_and_asked_again(rule, tmp_path):
    cached(rule, tmp_path).generate(["a", "b"])
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    for size in range(whole.index(b"\n") + 2, len(whole), 17):
        rule.asked.clear()
        path.write_bytes(whole[:size])
        with pytest.warns(DamagedCacheWarning, match="incomplete"):
            found = cached(rule, tmp_path).generate(["a", "b"])
        assert [each.text for each in found] == ["A", "B"]
        assert rule.asked == ["b"]
        for other in set(segments(tmp_path)) - {path}:
            other.unlink()
    with warnings.catch_warnings(action="error"):  # the torn line is gone
        cached(rule, tmp_path).generate(["a"])


def test_a_line_that_is_being_written_is_not_torn(rule, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    cached(rule, tmp_path).generate(["a", "b"])
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    reader = cached(rule, tmp_path)
    path.write_bytes(whole[:-5])
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        reader.generate(["a"])  # no warning
        file.write(whole[-5:])
    assert reader.generate(["b"])[0].cached


@pytest.mark.parametrize("place", [3, 15, 40, 55, 100, -30, -3])
def test_a_flipped_byte_is_noticed_and_asked_again(rule, tmp_path, place):
    cached(rule, tmp_path).generate(["a", "b"])
    (path,) = segments(tmp_path)
    first, second = path.read_bytes().splitlines(keepends=True)
    broken = bytearray(first)
    broken[place] ^= 1
    path.write_bytes(bytes(broken) + second)
    with pytest.warns(DamagedCacheWarning, match="1 damaged entries, the first at byte 0"):
        found = cached(rule, tmp_path).generate(["a", "b"])
    assert [each.text for each in found] == ["A", "B"]
    assert rule.asked == ["a", "b", "a"]


def test_damage_and_removal_while_it_is_open(rule, tmp_path):
    model = cached(rule, tmp_path)
    model.generate(["a", "b"])
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"A"', b'"X"'))
    with pytest.warns(DamagedCacheWarning, match="at byte 0 is damaged"):
        assert model.generate(["a"])[0].text == "A"
    path.unlink()
    with pytest.warns(DamagedCacheWarning):
        assert [each.text for each in model.generate(["a", "b"])] == ["A", "B"]
    assert rule.asked == ["a", "b", "a", "a", "b"]


def test_a_foreign_file_is_left_as_it_is(rule, tmp_path):
    cached(rule, tmp_path).generate(["a"])
    foreign = segments(tmp_path)[0].with_name("mine.jsonl")
    foreign.write_bytes(b'{"a": 1}\n\n{"b": 2}')
    with pytest.warns(DamagedCacheWarning, match="mine.jsonl"):
        assert cached(rule, tmp_path).generate(["a"])[0].cached
    assert foreign.read_bytes() == b'{"a": 1}\n\n{"b": 2}'


def test_what_is_no_folder_and_no_schema_is_refused(rule, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder"):
        cached(rule, tmp_path / "file")
    with pytest.raises(SettingsError, match="schema is not JSON"):
        cached(rule, tmp_path).generate(["a"], schema={"type": {1, 2}})


def test_a_full_disk_names_the_file_and_loses_nothing(rule, tmp_path, small_files):
    model = cached(rule, tmp_path)
    model.generate(["a"])
    with small_files(4096), pytest.raises(OSError, match=r"File too large.*jsonl"):
        model.generate(["b" * 9000])
    with warnings.catch_warnings(action="error"):  # no half line was left
        assert model.generate(["c"])[0].text == "C"
        found = cached(rule, tmp_path).generate(["a", "c", "b" * 9000])
    assert [each.cached for each in found] == [True, True, False]


# ---- processes ----------------------------------------------------------------------------------

PROCESS = """
import os, sys, time
from pathlib import Path
from polyvec.llm.cache import CachedLanguageModel
from polyvec.llm.function import FunctionLanguageModel

folder, log, first, last, deadly = sys.argv[1:]

def rule(prompt):
    if prompt == deadly:
        os.kill(os.getpid(), 9)
    with open(log, "a") as file:
        file.write(prompt + "\\n")
    return prompt.upper() + "!" * 5000

model = CachedLanguageModel(FunctionLanguageModel(rule, "rule"), folder)
for completion in model.generate([f"p{i}" for i in range(int(first), int(last))]):
    print(completion.text[:-5000])
"""


def process(*arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROCESS)]
    return subprocess.Popen(
        command + [str(each) for each in arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.medium
def test_a_killed_job_goes_on_where_it_was(tmp_path):
    log = tmp_path / "log"
    killed = process(tmp_path / "cache", log, 0, 30, "p17")
    assert killed.communicate()[0] == "" and killed.returncode == -9
    assert len(log.read_text().split()) == 17
    resumed = process(tmp_path / "cache", log, 0, 30, "")
    alone = process(tmp_path / "other", tmp_path / "log2", 0, 30, "")
    assert resumed.communicate()[0] == alone.communicate()[0] != ""
    assert log.read_text() == (tmp_path / "log2").read_text()


@pytest.mark.medium
def test_two_processes_share_a_folder(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "cache"
    both = [process(folder, log, 0, 300, ""), process(folder, log, 150, 450, "")]
    for each in both:
        assert len(each.communicate()[0].split()) == 300 and each.returncode == 0
    counts = collections.Counter(log.read_text().split())
    assert len(counts) == 450 and max(counts.values()) <= 2
    third = process(folder, tmp_path / "log3", 0, 450, "")
    assert len(third.communicate()[0].split()) == 450
    assert not (tmp_path / "log3").exists()
    for path in segments(folder):
        assert [json.loads(line)["entry"]["key"] for line in path.read_text().splitlines()]
