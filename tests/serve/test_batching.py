"""The queue of a model: which texts share a batch, who is refused, who waits for whom."""

import asyncio
import threading

import pytest

from polyvec.serve.batching import Batcher, OverloadedError, TooLargeError
from polyvec.serve.settings import ServerSettings

FOREVER = float("inf")


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Model:
    """Records its batches; holds the first until it is let go; fails on the payload "bad"."""

    def __init__(self):
        self.batches, self.go, self.entered = [], threading.Event(), threading.Event()

    def __call__(self, key, payloads):
        self.batches.append((key, list(payloads)))
        self.entered.set()
        assert self.go.wait(10)
        if "bad" in payloads:
            raise ValueError("bad text")
        return [f"{key}:{payload}" for payload in payloads]


@pytest.fixture
def model():
    return Model()


def batcher(model, clock=None, **settings):
    return Batcher(model, ServerSettings(**settings), clock=clock or Clock())


def submit(queue, *tokens, key="k", payloads=None, timeout=FOREVER, **options):
    payloads = payloads or [str(each) for each in tokens]
    return queue.submit(payloads, tokens, [key] * len(tokens), timeout, **options)


async def entered(model):
    await asyncio.get_running_loop().run_in_executor(None, model.entered.wait, 10)


async def begun(queue, model, tokens):
    """A request that the model holds, so that what comes later waits."""
    ticket = submit(queue, tokens)
    await entered(model)
    return ticket


def test_results_come_back_in_the_order_of_the_request(model):
    async def scenario():
        queue = batcher(model, max_batch_tokens=5)
        model.go.set()
        return await submit(queue, 5, 1, 3, 2).answer

    assert asyncio.run(scenario()) == ["k:5", "k:1", "k:3", "k:2"]
    assert all(sum(map(int, batch)) <= 5 for _, batch in model.batches)


def test_short_requests_go_before_a_long_one_until_it_has_waited(model):
    """It has 9 s of work, they 4 s: it lets go first what comes within 2 * 5 s."""

    async def scenario(waited):
        clock = Clock()
        queue = batcher(model, clock, max_batch_tokens=10, batch_time=100, patience=2)
        queue.rate = 1.0
        running = await begun(queue, model, 1)
        long = submit(queue, 9)
        clock.now += waited
        shorts = [submit(queue, 4) for _ in range(2)]
        model.go.set()
        await asyncio.gather(running.answer, long.answer, *(each.answer for each in shorts))

    asyncio.run(scenario(9))
    assert [batch for _, batch in model.batches] == [["1"], ["4", "4"], ["9"]]
    model.__init__()
    asyncio.run(scenario(11))
    assert [batch for _, batch in model.batches] == [["1"], ["9"], ["4", "4"]]


def test_what_counts_is_the_work_of_a_request_not_of_its_texts(model):
    async def scenario():
        clock = Clock()
        queue = batcher(model, clock, max_batch_tokens=6, batch_time=100)
        queue.rate = 1.0
        running = await begun(queue, model, 1)
        clock.now += 1
        several, one = submit(queue, 3, 3, 3), submit(queue, 5)
        model.go.set()
        await asyncio.gather(running.answer, several.answer, one.answer)

    asyncio.run(scenario())
    assert [batch for _, batch in model.batches] == [["1"], ["5"], ["3", "3"], ["3"]]


def test_a_batch_takes_about_so_long():
    async def scenario():
        clock, batches = Clock(), []

        def twenty_a_second(key, payloads):
            batches.append(payloads)
            clock.now += sum(map(int, payloads)) / 20
            return list(payloads)

        queue = batcher(twenty_a_second, clock, batch_time=0.5)
        queue.rate = 20.0
        await submit(queue, 4, 4, 4, 40).answer
        return batches

    assert asyncio.run(scenario()) == [["4", "4"], ["4"], ["40"]]


def test_batches_are_larger_where_much_waits(model):
    async def scenario():
        clock = Clock()
        queue = batcher(model, clock, batch_time=0.1)
        queue.rate = 20.0
        running = await begun(queue, model, 1)
        waiting = submit(queue, *[1] * 80)
        clock.now += 1
        model.go.set()
        await asyncio.gather(running.answer, waiting.answer)

    asyncio.run(scenario())
    assert [len(batch) for _, batch in model.batches][:2] == [1, 10]


def test_texts_of_different_prompts_never_share_a_batch(model):
    async def scenario():
        queue = batcher(model)
        model.go.set()
        tickets = [submit(queue, 1, key=key) for key in ("a", "b", "a", "b")]
        return await asyncio.gather(*(each.answer for each in tickets))

    assert asyncio.run(scenario()) == [["a:1"], ["b:1"], ["a:1"], ["b:1"]]
    assert [(key, len(batch)) for key, batch in model.batches] == [("a", 2), ("b", 2)]


def test_a_request_is_refused_as_a_whole_by_the_tokens_that_wait(model):
    async def scenario():
        queue = batcher(model, max_queued_tokens=10)
        first = await begun(queue, model, 4)
        second = submit(queue, 3)
        with pytest.raises(OverloadedError, match="7 tokens wait, at most 10"):
            submit(queue, 2, 2)
        assert queue.queued_tokens == 7
        with pytest.raises(TooLargeError, match="11 tokens"):
            submit(queue, 6, 5)
        model.go.set()
        await asyncio.gather(first.answer, second.answer)
        assert queue.queued_tokens == 0

    asyncio.run(scenario())


def test_what_would_come_too_late_is_refused_at_once(model):
    async def scenario():
        queue = batcher(model)
        queue.rate = 10.0
        running = await begun(queue, model, 40)
        with pytest.raises(OverloadedError, match="longer than 5 s") as error:
            submit(queue, 20, timeout=5)
        assert error.value.seconds == pytest.approx(4)
        with pytest.raises(TooLargeError, match="Requested 60 tokens, max 50"):
            submit(queue, 60, timeout=5)
        accepted = submit(queue, 20, timeout=7)
        model.go.set()
        await asyncio.gather(running.answer, accepted.answer)

    asyncio.run(scenario())


def test_what_was_not_answered_in_time_leaves_the_queue(model):
    async def scenario():
        clock = Clock()
        queue = batcher(model, clock)
        running = await begun(queue, model, 1)
        late = submit(queue, 2, timeout=3)
        clock.now += 4
        model.go.set()
        await running.answer
        with pytest.raises(OverloadedError, match="not answered in 4"):
            await late.answer

    asyncio.run(scenario())
    assert len(model.batches) == 1


def test_what_cannot_be_computed_in_time_is_not_begun(model):
    async def scenario():
        clock = Clock()
        queue = batcher(model, clock, batch_time=3)
        queue.rate = 1.0
        running = await begun(queue, model, 1)
        late, soon = submit(queue, 5, timeout=7), submit(queue, 3, timeout=9)
        clock.now += 3
        model.go.set()
        await asyncio.gather(running.answer, soon.answer)
        with pytest.raises(OverloadedError, match="not answered in 3"):
            await late.answer

    asyncio.run(scenario())
    assert [batch for _, batch in model.batches] == [["1"], ["3"]]


def test_texts_of_a_client_that_hung_up_are_not_computed(model):
    async def scenario():
        queue = batcher(model)
        running = await begun(queue, model, 1)
        gone, waits = submit(queue, 2), submit(queue, 3)
        gone.answer.cancel()
        model.go.set()
        await asyncio.gather(running.answer, waits.answer)

    asyncio.run(scenario())
    assert [batch for _, batch in model.batches] == [["1"], ["3"]]


def test_a_bad_text_fails_its_own_request_alone(model):
    async def scenario():
        queue = batcher(model)
        running = await begun(queue, model, 1)
        bad = submit(queue, 1, 1, payloads=["bad", "good"])
        good = submit(queue, 1, 1, payloads=["x", "y"])
        model.go.set()
        await running.answer
        assert await good.answer == ["k:x", "k:y"]
        with pytest.raises(ValueError, match="bad text"):
            await bad.answer
        assert await submit(queue, 1).answer == ["k:1"]

    asyncio.run(scenario())


def test_the_rate_is_learned_from_full_batches(model):
    async def scenario():
        clock = Clock()

        def slow(key, payloads):
            clock.now += 2
            return payloads

        queue = batcher(slow, clock, max_batch_tokens=100)
        await submit(queue, 100).answer
        assert queue.rate == pytest.approx(50)
        await submit(queue, 1).answer
        assert queue.rate == pytest.approx(50)

    asyncio.run(scenario())


def test_a_small_batch_tells_only_that_the_rate_is_higher(model):
    async def scenario(seconds):
        clock = Clock()

        def slow(key, payloads):
            clock.now += seconds
            return payloads

        queue = batcher(slow, clock, max_batch_tokens=100, batch_time=100)
        queue.rate = 10.0
        await submit(queue, 5).answer
        return queue.rate

    assert asyncio.run(scenario(5)) == 10
    assert asyncio.run(scenario(0.1)) == pytest.approx(10 + 0.2 * 40)


def test_hundreds_of_requests_in_any_order_are_answered_once(model):
    async def scenario():
        model.go.set()
        queue = batcher(model, max_batch_tokens=37, clock=None, patience=0)
        tickets = [submit(queue, *(1 + (i * j) % 30 for j in range(1, 4))) for i in range(200)]
        answers = await asyncio.gather(*(each.answer for each in tickets))
        for i, answer in enumerate(answers):
            assert answer == [f"k:{1 + (i * j) % 30}" for j in range(1, 4)]

    asyncio.run(scenario())
    assert sum(len(batch) for _, batch in model.batches) == 600


# ---- clients ------------------------------------------------------------------------------------


def names(client, number):
    return [f"{client}{place}" for place in range(number)]


def test_clients_take_turns_by_tokens(model):
    """A hundred texts of one and then three of another: both have half of the next batch."""

    async def scenario():
        queue = batcher(model, max_batch_tokens=4)
        running = await begun(queue, model, 1)
        greedy = submit(queue, *[1] * 100, payloads=names("g", 100), client="greedy")
        small = submit(queue, *[1] * 3, payloads=names("s", 3), client="small")
        model.go.set()
        await asyncio.gather(running.answer, small.answer, greedy.answer)

    asyncio.run(scenario())
    batches = [batch for _, batch in model.batches[1:]]
    assert batches[:2] == [["s0", "g0", "s1", "g1"], ["s2", "g2", "g3", "g4"]]
    assert [len(batch) for batch in batches[2:]] == [4] * 23 + [3]


def test_a_text_behind_thousands_of_another_client_is_in_the_next_batch(model):
    async def scenario():
        queue = batcher(model, max_batch_tokens=8)
        running = await begun(queue, model, 1)
        greedy = submit(queue, *[1] * 5000, client="greedy")
        small = submit(queue, 1, payloads=["small"], client="small")
        model.go.set()
        await asyncio.gather(running.answer, small.answer)
        greedy.answer.cancel()

    asyncio.run(scenario())
    assert "small" in model.batches[1][1]


def test_a_long_text_of_one_client_is_not_passed_for_ever_by_short_ones_of_another(model):
    async def scenario():
        clock = Clock()
        queue = batcher(model, clock, max_batch_tokens=4, batch_time=100, patience=2)
        queue.rate = 1.0
        running = await begun(queue, model, 1)
        long = submit(queue, 9, client="long")
        clock.now += 20
        shorts = [submit(queue, 1, client="short") for _ in range(20)]
        model.go.set()
        await asyncio.gather(running.answer, long.answer, *(each.answer for each in shorts))

    asyncio.run(scenario())
    assert model.batches[1][1] == ["9"]


def test_a_client_has_a_share_of_the_queue(model):
    async def scenario():
        queue = batcher(model, max_queued_tokens=100)
        running = await begun(queue, model, 4)
        accepted = [submit(queue, 10, client="greedy") for _ in range(5)]
        with pytest.raises(OverloadedError, match="50 of your tokens wait, at most 50") as error:
            submit(queue, 10, client="greedy")
        assert error.value.seconds >= 1
        accepted.append(submit(queue, 10, client="small"))
        model.go.set()
        await asyncio.gather(running.answer, *(each.answer for each in accepted))
        assert not queue.waiting_of
        await submit(queue, 10, client="greedy").answer

    asyncio.run(scenario())


def test_one_request_may_be_as_large_as_the_queue_and_leaves_room_as_it_is_computed(model):
    async def scenario():
        queue = batcher(model, max_queued_tokens=100, max_batch_tokens=10)
        large = submit(queue, *[10] * 10, client="greedy")
        await entered(model)
        with pytest.raises(OverloadedError, match="100 tokens wait"):
            submit(queue, 1, client="small")
        model.entered.clear()
        model.go.set()
        await entered(model)
        with pytest.raises(OverloadedError, match="of your tokens wait, at most 50"):
            submit(queue, 1, client="greedy")
        await submit(queue, 1, client="small").answer
        assert not large.ended, "it had its turn before the rest of the large one"
        await large.answer

    asyncio.run(scenario())


def test_turns_are_counted_when_a_request_is_admitted(model):
    """Behind 60 tokens of another at 10 a second: 4 s for 20 of its own, of which 2 are theirs."""

    async def scenario():
        queue = batcher(model)
        queue.rate = 10.0
        running = await begun(queue, model, 10)
        greedy = submit(queue, 60, client="greedy")
        with pytest.raises(OverloadedError, match="30 tokens wait"):
            submit(queue, 20, client="small", timeout=4)
        with pytest.raises(OverloadedError, match="30 tokens wait"):
            submit(queue, 20, client="small", timeout=6, spent=2)
        small = submit(queue, 20, client="small", timeout=5)
        model.go.set()
        await asyncio.gather(running.answer, greedy.answer, small.answer)

    asyncio.run(scenario())
