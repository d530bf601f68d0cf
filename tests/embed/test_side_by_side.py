"""Batches on several threads: the same vectors, the same errors, and torch as it was."""

import threading
from contextvars import ContextVar

import numpy as np
import pytest
import torch

from polyvec import Embedder
from polyvec.embed import encoding
from polyvec.embed.backbone import attention
from polyvec.embed.side_by_side import each_on_one_thread
from polyvec.errors import ModelError
from polyvec.interfaces import RunOptions

WORDS = ("bread", "keeps", "long", "in", "a", "cold", "and", "dry", "place", "of", "stone")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tiny_bert) -> Embedder:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("fused layers are used on x86 processors with AVX2 only")
    return Embedder.from_pretrained(tiny_bert)


def texts(number: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 120))) for _ in range(number)]


def names_of_threads(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The threads that compute batches, and how many threads each has."""
    seen: dict[str, int] = {}
    forward = encoding.EncodeRun._forward

    def noted(self, batch, start):
        seen[threading.current_thread().name] = torch.get_num_threads()
        return forward(self, batch, start)

    monkeypatch.setattr(encoding.EncodeRun, "_forward", noted)
    return seen


def test_vectors_and_counts_are_those_of_one_thread_after_another(model, monkeypatch):
    inputs = texts(300)
    seen = names_of_threads(model, monkeypatch)
    vectors, found = model.encode_vectors(inputs)
    assert seen == {"polyvec-encode_0": 1, "polyvec-encode_1": 1}
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(encoding, "SHARES", 10**9)
    seen.clear()
    others, expected = model.encode_vectors(inputs)
    assert seen == {"MainThread": 2}
    np.testing.assert_allclose(others.to_dense(), vectors.to_dense(), atol=1e-6)
    assert (found.num_tokens, found.num_texts) == (expected.num_tokens, expected.num_texts)
    assert found.num_computed_tokens == found.num_tokens and found.forward_s > 0


def test_outputs_of_tokens_share_their_operations(model, monkeypatch):
    seen = names_of_threads(model, monkeypatch)
    model.encode(texts(300), output_value="token_embeddings")
    assert seen == {"MainThread": 2}


def test_batches_of_so_many_tokens_as_asked_for_share_their_operations(model, monkeypatch):
    seen = names_of_threads(model, monkeypatch)
    model.encode_vectors(texts(300), options=RunOptions(batch_tokens=10**6))
    assert seen == {"MainThread": 2}


def test_few_texts_share_their_operations(model, monkeypatch):
    seen = names_of_threads(model, monkeypatch)
    model.encode(texts(20))
    assert seen == {"MainThread": 2}


def test_layers_of_transformers_are_computed_by_one_thread_at_a_time(model, monkeypatch):
    """Nobody promises that a family's modules may be called from several at once."""
    seen = names_of_threads(model, monkeypatch)
    model.backbone.model.encoder.layer[0].register_forward_hook(lambda module, args, out: None)
    model.encode(texts(300))
    assert seen == {"MainThread": 2}


def test_an_error_names_its_text_and_leaves_torch_as_it_was(model):
    inputs = texts(300)
    model.encode(inputs[:2])
    with torch.no_grad():
        model.backbone.model.get_input_embeddings().weight[3100] = torch.nan
    (word,) = model.tokenizer.convert_ids_to_tokens([3100])
    inputs[211] = f"a cold {word}"
    with pytest.raises(ModelError, match=r"inputs\[211\] holds NaN"):
        model.encode(inputs)
    assert torch.get_num_threads() == 2
    assert not [each for each in threading.enumerate() if each.name.startswith("polyvec-encode")]


def test_attention_of_many_lengths_is_the_models_own(model, monkeypatch):
    inputs = texts(300)
    vectors = model.encode(inputs)
    monkeypatch.setattr(attention, "FEW", 10**6)  # keys as they are
    monkeypatch.setattr(encoding, "SHARES", 10**9)
    np.testing.assert_allclose(model.encode(inputs), vectors, atol=1e-6)


variable: ContextVar[int] = ContextVar("variable")


def test_threads_see_the_callers_context_and_threads_to_come_torchs_number():
    variable.set(7)
    found = list(each_on_one_thread(lambda item: (item, variable.get()), range(5), 2))
    assert found == [(item, 7) for item in range(5)]
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_fewer_items_than_threads():
    assert list(each_on_one_thread(lambda item: item + 1, [1], 8)) == [2]
    assert torch.get_num_threads() == 2


def test_the_first_error_leaves_items_that_wait():
    done: list[int] = []

    def compute(item: int) -> None:
        if item == 3:
            raise ValueError("three")
        done.append(item)

    with pytest.raises(ValueError, match="three"):
        list(each_on_one_thread(compute, range(10_000), 2))
    assert len(done) < 9_999


def test_a_caller_who_stops_is_not_computed_for():
    done: list[int] = []
    found = each_on_one_thread(lambda item: done.append(item), range(100_000), 2)
    next(found)
    found.close()
    number = len(done)
    assert number < 100_000
    assert not [each for each in threading.enumerate() if each.name.startswith("polyvec-encode")]
    assert len(done) == number


def test_threads_that_cannot_start_are_an_error_and_leave_torch_as_it_was(monkeypatch):
    start = threading.Thread.start

    def refused(self: threading.Thread) -> None:
        if self.name == "polyvec-encode_1":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(each_on_one_thread(lambda item: item, range(8), 2))
    assert torch.get_num_threads() == 2
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]
