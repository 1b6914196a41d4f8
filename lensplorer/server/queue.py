"""One request runs at a time: in rounds over the clients, short ones before long ones, and none for a client that has left.

Each request runs on a thread of its own, and only the one that has the turn goes on. Before each run of the model (``watching.tick``) it is stopped
if its client has left or its time is up. There it also hands the turn on where others wait: after a ``SLICE`` of time it counts as a long one, and
from then on its turn is one run. So what a long analysis is waited for is one run of the model, whatever it takes in all.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.types import Receive

from lensplorer.errors import Cancelled, LensplorerError
from lensplorer.hosts import is_loopback
from lensplorer.locks import holds_a_lock
from lensplorer.watching import watching

T = TypeVar("T")

SLICE = 0.02  #: seconds of the turn after which a request is a long one
SHARE = 3  #: times as long as its run took, a long one lets the short ones go first; then it has the turn, however many wait


class Busy(LensplorerError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which a place is likely to be free.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Dropped(Cancelled):
    """The client has left, or the server is being stopped."""


class TookTooLong(Cancelled):
    """A request has had all the time that the server gives one."""


class Request:
    """A function that waits for its turn, has it, or waits to have it again.

    Attributes:
        client: who asks.
        future: its outcome.
        turn: set while it has the turn.
        seconds: how long it has had the turn, until it gave it up last.
        begun: whether it has had the turn yet.
        dropped: whether it is to stop.
    """

    def __init__(self, function: Callable[[], Any], client: Hashable) -> None:
        self.function, self.client = function, client
        self.future: Future[Any] = Future()
        self.turn = threading.Event()
        self.seconds = 0.0
        self.begun = self.dropped = False


class Rounds:
    """Requests that wait, taken in rounds: one of each client, then another of each, so that one client's many wait for one another."""

    def __init__(self) -> None:
        self._clients: OrderedDict[Hashable, deque[Request]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._clients)

    def add(self, request: Request) -> None:
        self._clients.setdefault(request.client, deque()).append(request)

    def take(self) -> Request:
        """The next one; its client comes last then."""
        client, waiting = self._clients.popitem(last=False)
        request = waiting.popleft()
        if waiting:
            self._clients[client] = waiting
        return request

    def discard(self, request: Request) -> None:
        """Take one out of its place, if it is there."""
        waiting = self._clients.get(request.client, deque())
        if request in waiting:
            waiting.remove(request)
            if not waiting:
                del self._clients[request.client]


async def _stays() -> None:
    await asyncio.Event().wait()


class RunQueue:
    """Gives the turn to functions, each on its own thread.

    >>> queue = RunQueue(2)
    >>> ThreadPoolExecutor().submit(asyncio.run, queue.run(lambda: 6 * 7)).result()  # as asyncio.run, where a loop runs already
    42

    Args:
        size: how many may wait beside the one that runs; one client may have half of the places, rounded up.
        seconds: of the turn that a function may have in all.
        clock: the time in seconds.
    """

    def __init__(self, size: int, seconds: float = math.inf, clock: Callable[[], float] = time.perf_counter) -> None:
        self.size, self.seconds, self._clock = size, seconds, clock
        self._threads = ThreadPoolExecutor(size + 2, thread_name_prefix="lensplorer-run")  # one dropped may be unwinding
        self._mutex = threading.Lock()
        self._inside: list[Request] = []  # waiting and running
        self._short, self._long = Rounds(), Rounds()  # those of them that wait
        self._running: Request | None = None
        self._since = self._ticked = 0.0  # when it got the turn, and when its last run began
        self._long_due = 0.0  # when a long one has the turn though short ones wait
        self._freed = 0.0  # when a place became free last, or the queue was empty
        self._gap = 0.1  # seconds from one place that becomes free to the next, a running mean

    async def run(self, function: Callable[[], T], *, client: Hashable = None, left: Callable[[], Awaitable[None]] = _stays) -> T:
        """What ``function`` returns, once it has had its turns. When the caller is cancelled or ``left`` returns, it is dropped: at once while it
        waits, else before its next run of the model.

        Raises:
            Busy: ``size`` requests wait already, or the client has half of the places.
            TookTooLong: it has had the turn for ``seconds``.
            Dropped: ``left`` returned, or the queue was closed.
        """
        request = self._enter(function, client)
        answer = asyncio.wrap_future(request.future)
        leaving = asyncio.ensure_future(left())
        try:
            await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Dropped("The client has left.")
            return answer.result()
        finally:
            leaving.cancel()
            answer.cancel()
            self._drop(request)
            del request, answer  # they hold an error, which holds this frame

    def close(self) -> None:
        """Drop all that is inside."""
        for request in list(self._inside):
            self._drop(request)
        self._threads.shutdown(wait=False)

    # -- on the caller's thread ------------------------------------------------------------------------------------------------------

    def _enter(self, function: Callable[[], Any], client: Hashable) -> Request:
        with self._mutex:
            if not self._inside:
                self._freed = self._clock()
            if len(self._inside) > self.size:
                raise self._busy(f"{self.size} requests are waiting already")
            if sum(each.client == client for each in self._inside) >= (self.size + 2) // 2:
                raise self._busy(f"{(self.size + 2) // 2} requests of yours are waiting already, the most that one client may have here")
            request = Request(function, client)
            request.future.set_running_or_notify_cancel()  # who waits for it may go, its thread sets it nevertheless
            self._inside.append(request)
            self._short.add(request)
            if self._running is None:
                self._pass_on()
            return request

    def _busy(self, reason: str) -> Busy:
        """How long it takes until a place is free: as long as of late, and no less than it has taken by now."""
        seconds = max(1, math.ceil(min(max(self._gap, self._clock() - self._freed), self.seconds)))
        return Busy(f"{reason}: try again in {seconds} s.", seconds)

    def _drop(self, request: Request) -> None:
        """Take a request out of the queue; one that is under way stops at its next tick."""
        with self._mutex:
            if request not in self._inside:
                return
            request.dropped = True
            self._free(request)
            self._short.discard(request)
            self._long.discard(request)
            if not request.begun:
                request.future.set_exception(Dropped("The server is being stopped."))
            request.turn.set()  # where it waits to have the turn again, it ends without

    # -- under the mutex -------------------------------------------------------------------------------------------------------------

    def _free(self, request: Request) -> None:
        """Its place is another's."""
        now = self._clock()
        self._inside.remove(request)
        self._gap += 0.2 * (now - self._freed - self._gap)
        self._freed = now

    def _pass_on(self) -> None:
        """Give the turn to who is next."""
        now = self._clock()
        row = self._long if self._long and (now >= self._long_due or not self._short) else self._short
        self._running = request = row.take() if row else None
        self._since = self._ticked = now
        if request is None:
            return
        if request.begun:
            request.turn.set()
        else:
            request.begun = True
            self._threads.submit(self._work, request)

    # -- on the request's thread -----------------------------------------------------------------------------------------------------

    def _work(self, request: Request) -> None:
        try:
            with watching(partial(self._tick, request)):
                self._tick(request)
                result = request.function()
        except Cancelled as error:
            self._leave(request)
            request.future.set_exception(error.with_traceback(None))  # it would hold what was computed until the garbage collector comes by
        except BaseException as error:  # noqa: BLE001 whoever waits for it gets it
            self._leave(request)
            request.future.set_exception(error)
            del request  # the error holds this frame, and the request the error
        else:
            self._leave(request)
            request.future.set_result(result)

    def _tick(self, request: Request) -> None:
        """A run of the model is about to start: stop, or let others go first. Not while a lock is held, which they may need."""
        with self._mutex:
            now = self._clock()
            self._stop_if_due(request, now)
            took, self._ticked = now - self._ticked, now
            is_long = request.seconds > 0
            if not (self._short or self._long) or holds_a_lock() or (now - self._since < SLICE and not is_long):
                return
            if is_long or not self._long:
                self._long_due = now + SHARE * took
            request.seconds += now - self._since
            request.turn.clear()
            self._long.add(request)
            self._pass_on()
        request.turn.wait()
        self._stop_if_due(request, self._clock())

    def _stop_if_due(self, request: Request, now: float) -> None:
        if request.dropped:
            raise Dropped("The client has left, or the server is being stopped.")
        if request.seconds + now - self._since > self.seconds:
            raise TookTooLong(
                f"This took longer than the {self.seconds:g} s that this server gives a request, and was stopped. Ask for less at a time (a shorter"
                " prompt, fewer steps), or start the server with a larger --max-seconds."
            )

    def _leave(self, request: Request) -> None:
        with self._mutex:
            if request in self._inside:
                self._free(request)
            if self._running is request:
                self._pass_on()


def client_of(address: tuple[str, int] | None) -> Hashable:
    """Who asks. Another machine is one client, whatever it opens; on this machine all programs have one address, so each connection is one.

    >>> client_of(("192.0.2.7", 40000)), client_of(("127.0.0.1", 40000))
    ('192.0.2.7', ('127.0.0.1', 40000))
    """
    return address if address is None or is_loopback(address[0]) else address[0]


async def departure(receive: Receive) -> None:
    """Return when the client has left: once the body is read, nothing else comes from it."""
    while (await receive())["type"] != "http.disconnect":
        pass
