"""One at a time, in order, and 429 when too many wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lensplorer.server.queue import Busy, RunQueue


def test_in_order_and_one_at_a_time():
    queue = RunQueue(10)
    running, most, order = 0, 0, []
    lock = threading.Lock()

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        order.append(number)
        with lock:
            running -= 1
        return number

    async def all_of_them():
        return await asyncio.gather(*(queue.run(lambda n=number: work(n)) for number in range(11)))

    assert asyncio.run(all_of_them()) == order == list(range(11)) and most == 1


def test_past_its_size_it_says_when_to_come_again():
    queue, go = RunQueue(2), threading.Event()

    async def crowd():
        waiting = [asyncio.create_task(queue.run(lambda: go.wait(60))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="2 requests are waiting") as busy:
            await queue.run(lambda: None)
        assert busy.value.retry_after >= 1
        waiting[2].cancel()  # its caller has gone: the place is free
        await asyncio.sleep(0)
        extra = asyncio.create_task(queue.run(lambda: 5))
        await asyncio.sleep(0)
        go.set()
        assert await extra == 5 and await waiting[0]

    asyncio.run(crowd())


def test_an_error_frees_the_place():
    queue = RunQueue(1)

    def broken():
        raise ValueError("no")

    for _ in range(5):
        with pytest.raises(ValueError, match="no"):
            asyncio.run(queue.run(broken))
    assert asyncio.run(queue.run(lambda: 1)) == 1


def test_over_http(serving):
    client = serving(queue_size=1)
    server = client.app.state.server
    go = threading.Event()
    held = [server.queue._thread.submit(go.wait, 60)]  # a run under way, and one that waits
    server.queue._inside = 2
    response = client.post("/api/preview", json={"prompt": "a"})
    assert response.status_code == 429 and int(response.headers["Retry-After"]) >= 1 and set(response.json()) == {"detail"}
    assert client.get("/api/model/status").status_code == 200  # which waits for nothing
    server.queue._inside = 0
    go.set()
    assert held[0].result(60) and client.post("/api/preview", json={"prompt": "a"}).status_code == 200
