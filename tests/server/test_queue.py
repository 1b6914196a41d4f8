"""One request at a time: in rounds over the clients, short ones before long ones, none for a client that has left, and 429 when too many wait.

A clock of their own tells the jobs the time, and each says how long its runs take: nothing here depends on how fast anything is.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from lensplorer.errors import Cancelled
from lensplorer.locks import FairLock
from lensplorer.server.queue import SHARE, SLICE, Busy, Dropped, RunQueue, TookTooLong, client_of
from lensplorer.watching import tick

RUN = 2.0**-4  # seconds of a run: beyond a slice, and added up without rounding


class Bench:
    """A queue, its clock, and the runs that were made, in order."""

    def __init__(self, size: int = 20, **options: Any) -> None:
        self.now = 0.0
        self.queue = RunQueue(size, clock=lambda: self.now, **options)
        self.runs: list[str] = []

    def job(self, name: str, runs: int = 1, seconds: float = RUN) -> Callable[[], str]:
        def work() -> str:
            for _ in range(runs):
                tick()
                self.runs.append(name)
                self.now += seconds
            return name

        return work

    async def after(self, first: Callable[[], Any], *rest: tuple[Callable[[], Any], str]) -> list[Any]:
        """The outcomes of the jobs (and their clients) that come while another client has the turn with ``first``, which ends once all have come."""
        come = threading.Event()

        def begin() -> Any:
            come.wait(60)
            return first()

        tasks = [asyncio.create_task(self.queue.run(begin, client="first"))]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(self.queue.run(job, client=client)) for job, client in rest]
        await asyncio.sleep(0)
        come.set()
        return await asyncio.gather(*tasks)


def test_one_at_a_time_and_in_order() -> None:
    bench = Bench()
    jobs = [(bench.job(str(number)), str(number)) for number in range(10)]
    assert asyncio.run(bench.after(bench.job("first"), *jobs)) == bench.runs == ["first", *map(str, range(10))]


def test_in_rounds_over_the_clients() -> None:
    """One client with many requests does not make another wait behind all of them."""
    bench = Bench()
    jobs = [(bench.job(f"a{number}"), "a") for number in range(4)] + [(bench.job("b0"), "b"), (bench.job("b1"), "b"), (bench.job("c0"), "c")]
    asyncio.run(bench.after(bench.job("first"), *jobs))
    assert bench.runs == ["first", "a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_short_one_goes_between_two_runs_of_a_long_one() -> None:
    bench = Bench()
    asyncio.run(bench.after(bench.job("long", 4), (bench.job("short"), "b")))
    assert bench.runs == ["long", "short", "long", "long", "long"]


def test_a_short_one_is_not_interrupted_within_its_slice() -> None:
    bench = Bench()
    asyncio.run(bench.after(bench.job("a", 3, SLICE / 4), (bench.job("b", 3, SLICE / 4), "b")))
    assert bench.runs == ["a"] * 3 + ["b"] * 3


def test_long_ones_take_turns_run_by_run_and_end_together() -> None:
    bench = Bench()
    asyncio.run(bench.after(bench.job("a", 3), (bench.job("b", 3), "b"), (bench.job("c", 3), "c")))
    assert sorted(bench.runs[-3:]) == ["a", "b", "c"] and max(bench.runs.index(name) for name in "abc") <= 3


def test_short_ones_without_end_leave_a_long_one_its_share() -> None:
    """However many short ones wait, the long one has a run for every ``SHARE`` times as long of them."""
    bench = Bench(size=100)
    short = [(bench.job("short"), str(number)) for number in range(90)]
    asyncio.run(bench.after(bench.job("long", 20), *short))
    places = [index for index, name in enumerate(bench.runs) if name == "long"]
    assert {after - before for before, after in itertools.pairwise(places)} == {SHARE + 1}


def test_nobody_is_made_to_wait_for_who_holds_a_lock() -> None:
    """Two that need the same lock around several runs: the second does not get the turn while the first is inside."""
    bench, lock = Bench(), FairLock()

    def locked(name: str) -> Callable[[], None]:
        def work() -> None:
            with lock:
                bench.job(name, 3)()
            bench.job(name.upper(), 2)()

        return work

    asyncio.run(asyncio.wait_for(bench.after(locked("a"), (locked("b"), "b")), 60))
    assert bench.runs[:4] == ["a", "a", "a", "b"] and bench.runs.count("b") == 3 and "".join(bench.runs).count("bbb") == 1


def test_a_client_that_leaves_while_it_waits_gives_its_place_up_at_once() -> None:
    bench, held = Bench(size=2), threading.Event()

    async def crowd() -> None:
        first = asyncio.create_task(bench.queue.run(lambda: held.wait(60), client="first"))
        await asyncio.sleep(0)
        leave = asyncio.Event()

        async def left() -> None:
            await leave.wait()

        gone = [asyncio.create_task(bench.queue.run(bench.job("gone"), client=name, left=left)) for name in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await bench.queue.run(bench.job("late"), client="late")
        leave.set()
        for task in gone:
            with pytest.raises(Dropped):
                await task
        task = asyncio.create_task(bench.queue.run(bench.job("late"), client="late"))  # while the first still runs
        await asyncio.sleep(0)
        held.set()
        assert await task == "late" and await first

    asyncio.run(crowd())
    assert bench.runs == ["late"]


def test_a_run_whose_client_leaves_stops_at_its_next_tick() -> None:
    bench = Bench()

    async def leaves() -> None:
        leave, ended, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
        dropped = threading.Event()

        def work() -> None:
            try:
                tick()
                bench.runs.append("run")
                loop.call_soon_threadsafe(leave.set)
                dropped.wait(60)
                tick()
                bench.runs.append("not reached")
            except Cancelled:
                ended.set()
                raise

        async def left() -> None:
            await leave.wait()

        with pytest.raises(Dropped):
            await bench.queue.run(work, client="a", left=left)
        dropped.set()
        assert await bench.queue.run(bench.job("next"), client="b") == "next"
        assert ended.is_set()

    asyncio.run(leaves())
    assert bench.runs == ["run", "next"]


def test_one_that_waits_for_another_turn_ends_at_once_when_its_client_leaves() -> None:
    bench = Bench()

    async def leaves() -> None:
        leave, ended = asyncio.Event(), threading.Event()
        begun, go, held = threading.Event(), threading.Event(), threading.Event()

        def long() -> None:
            begun.set()
            go.wait(60)
            try:
                bench.job("long", 3)()
            finally:
                ended.set()

        async def left() -> None:
            await leave.wait()

        task = asyncio.create_task(bench.queue.run(long, client="a", left=left))
        await asyncio.to_thread(begun.wait, 60)
        other = asyncio.create_task(bench.queue.run(lambda: held.wait(60), client="b"))
        await asyncio.sleep(0)
        go.set()
        while not bench.queue._long:
            await asyncio.sleep(0.001)
        leave.set()
        with pytest.raises(Dropped):
            await task
        assert await asyncio.to_thread(ended.wait, 60)  # while the other has the turn
        held.set()
        assert await other

    asyncio.run(leaves())
    assert bench.runs == ["long"]


def test_a_caller_that_is_cancelled_is_dropped_too() -> None:
    bench, held = Bench(), threading.Event()

    async def cancelled() -> None:
        first = asyncio.create_task(bench.queue.run(lambda: held.wait(60), client="a"))
        await asyncio.sleep(0)
        task = asyncio.create_task(bench.queue.run(bench.job("cancelled"), client="b"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        held.set()
        await first
        await bench.queue.run(bench.job("last"), client="c")

    asyncio.run(cancelled())
    assert bench.runs == ["last"]


def test_time_that_it_computes_is_bounded_and_time_that_it_waits_is_not() -> None:
    bench = Bench(seconds=10 * RUN)
    with pytest.raises(TookTooLong, match=r"longer than the 0\.625 s .* --max-seconds"):
        asyncio.run(bench.queue.run(bench.job("endless", 1000)))
    assert len(bench.runs) == 11 and asyncio.run(bench.queue.run(bench.job("next", 10)))
    bench.runs.clear()
    outcomes = asyncio.run(bench.after(bench.job("a", 9), *((bench.job(name, 9), name) for name in "bcde")))
    assert outcomes == list("abcde") and bench.now > 40 * RUN


def test_past_its_size_it_says_when_to_come_again() -> None:
    """As long as places took to become free of late, and no less than it has taken by now."""
    bench, begun, held = Bench(size=2, seconds=100.0), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        held.wait(60)

    async def crowd() -> None:
        for _ in range(50):
            await bench.queue.run(bench.job("a", seconds=5.0), client="a")
        waiting = [asyncio.create_task(bench.queue.run(wait, client=name)) for name in "abc"]
        await asyncio.to_thread(begun.wait, 60)
        for passed, expected in ((0.0, 5), (30.0, 30), (1000.0, 100)):
            bench.now += passed
            with pytest.raises(Busy, match=f"2 requests are waiting already: try again in {expected} s") as busy:
                await bench.queue.run(lambda: None, client="d")
            assert busy.value.retry_after == expected
        held.set()
        await asyncio.gather(*waiting)

    asyncio.run(crowd())


def test_one_client_has_half_of_the_places() -> None:
    bench, held = Bench(size=4), threading.Event()

    async def crowd() -> None:
        waiting = [asyncio.create_task(bench.queue.run(lambda: held.wait(60), client="a")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="3 requests of yours"):
            await bench.queue.run(bench.job("a"), client="a")
        waiting.append(asyncio.create_task(bench.queue.run(bench.job("b"), client="b")))
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(*waiting)

    asyncio.run(crowd())
    assert bench.runs == ["b"]


def test_on_another_machine_the_address_is_the_client_and_on_this_one_the_connection() -> None:
    assert client_of(("192.0.2.7", 1)) == client_of(("192.0.2.7", 2)) != client_of(("192.0.2.8", 1))
    assert client_of(("127.0.0.1", 1)) != client_of(("127.0.0.1", 2)) and client_of(("::1", 1)) != client_of(("::1", 2))


def test_an_error_frees_the_place() -> None:
    queue = RunQueue(1)

    def broken() -> None:
        raise ValueError("no")

    for _ in range(5):
        with pytest.raises(ValueError, match="no"):
            asyncio.run(queue.run(broken))
    assert asyncio.run(queue.run(lambda: 1)) == 1


def test_what_a_stopped_run_has_computed_is_let_go_at_once() -> None:
    """Not when the garbage collector comes by: it counts objects, and a few tensors are much memory."""
    queue = RunQueue(1, seconds=1.0, clock=iter(range(10**6)).__next__)

    class Tensor:
        pass

    gone = threading.Event()

    def endless() -> None:
        tensor = Tensor()
        weakref.finalize(tensor, gone.set)
        while tensor:
            tick()

    gc.collect()
    gc.disable()
    try:
        assert isinstance(queue._enter(endless, None).future.exception(60), TookTooLong)
        assert gone.wait(60)
    finally:
        gc.enable()


def test_closing_stops_all_that_is_inside() -> None:
    bench, begun, go = Bench(), threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        go.wait(60)
        bench.job("long", 3)()

    async def closed() -> None:
        tasks = [asyncio.create_task(bench.queue.run(job, client=name)) for name, job in (("a", long), ("b", bench.job("b")))]
        await asyncio.to_thread(begun.wait, 60)
        bench.queue.close()
        go.set()
        for task in tasks:
            with pytest.raises(Dropped):
                await task

    asyncio.run(closed())
    assert bench.runs == []


def test_over_http(serving: Any) -> None:
    client = serving(queue_size=1)
    queue, go = client.app.state.server.queue, threading.Event()
    for name in "ab":
        queue._enter(lambda: go.wait(60), name)  # a run under way, and one that waits
    response = client.post("/api/preview", json={"prompt": "a"})
    assert response.status_code == 429 and int(response.headers["Retry-After"]) >= 1 and set(response.json()) == {"detail"}
    assert client.get("/api/model/status").status_code == 200  # which waits for nothing
    go.set()
    while queue._inside:
        pass
    assert client.post("/api/preview", json={"prompt": "a"}).status_code == 200


def test_a_request_that_takes_too_long_is_504(serving: Any) -> None:
    client = serving()
    client.app.state.server.queue.seconds = -1.0
    response = client.post("/api/preview", json={"prompt": "a"})
    assert response.status_code == 504 and "--max-seconds" in response.json()["detail"]
