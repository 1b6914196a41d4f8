"""The model's lock: one at a time, first come first served, re-entrant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from lensplorer.locks import FairLock, model_lock

TIMEOUT = 20  # seconds until a test that hangs fails


def wait_until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(TIMEOUT * 1000):
        if true():
            return
        pause.wait(0.001)
    raise AssertionError("It did not come to pass.")


def queue_up(lock: FairLock, work: list[Callable[[], None]]) -> list[threading.Thread]:
    """One thread for each, waiting for the lock in this order."""
    threads = []
    for position, do in enumerate(work):

        def serve(do: Callable[[], None] = do) -> None:
            with lock:
                do()

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        wait_until(lambda position=position: len(lock._waiting) == position + 1)  # type: ignore[misc]
    return threads


def finish(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_first_come_first_served() -> None:
    lock, served = FairLock(), []
    with lock:
        threads = queue_up(lock, [lambda i=i: served.append(i) for i in range(8)])  # type: ignore[misc]
        assert served == []
    finish(threads)
    assert served == list(range(8))


def test_a_busy_thread_cannot_starve_the_others() -> None:
    """The holder lets go and asks again at once: whoever waited comes first."""
    lock, served = FairLock(), []
    with lock:
        threads = queue_up(lock, [lambda: served.append("waiting")])
    with lock:
        served.append("busy")
    finish(threads)
    assert served == ["waiting", "busy"]


def test_one_at_a_time() -> None:
    lock, inside, most = FairLock(), [0], [0]

    def work() -> None:
        for _ in range(50):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                threading.Event().wait(0.0001)
                inside[0] -= 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    finish(threads)
    assert most == [1]


def test_reentrant() -> None:
    lock, served = FairLock(), []
    with lock:
        with lock:
            threads = queue_up(lock, [lambda: served.append(1)])
        assert served == []  # the inner exit keeps it
    finish(threads)
    assert served == [1]


def test_released_by_an_error() -> None:
    lock = FairLock()
    with pytest.raises(KeyError), lock:
        raise KeyError("x")
    with lock:
        pass
    assert lock._owner is None


class _Interrupted(threading.Event):
    """An event whose waiter is interrupted, before or after its turn came."""

    turn_first = False

    def wait(self, timeout: float | None = None) -> bool:
        if self.turn_first:
            super().wait(timeout)
        raise KeyboardInterrupt


@pytest.mark.parametrize("turn_first", [False, True])
def test_interrupted_while_waiting(turn_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is given up, or the lock passed on: the next in line is served."""
    lock, served = FairLock(), []
    monkeypatch.setattr(_Interrupted, "turn_first", turn_first)

    def interrupted() -> None:
        try:
            _serve(lock, served)
        except KeyboardInterrupt:
            served.append("interrupted")

    first = threading.Thread(target=interrupted, daemon=True)
    last = threading.Thread(target=_serve, args=(lock, served), daemon=True)
    with lock:
        with monkeypatch.context() as patch:
            patch.setattr("lensplorer.locks.threading", SimpleNamespace(Event=_Interrupted, Lock=threading.Lock, get_ident=threading.get_ident))
            first.start()
            wait_until(lambda: len(lock._waiting) == 1 if turn_first else served == ["interrupted"])
        waiting = len(lock._waiting)
        last.start()
        wait_until(lambda: len(lock._waiting) == waiting + 1)
    finish([first, last])
    assert served == ["interrupted", "served"] or (turn_first and sorted(served) == ["interrupted", "served"])
    assert lock._owner is None and not lock._waiting


def _serve(lock: FairLock, served: list[str]) -> None:
    with lock:
        served.append("served")


def test_one_lock_per_model() -> None:
    class Model:
        pass

    a, b = Model(), Model()
    assert model_lock(a) is model_lock(a)
    assert model_lock(a) is not model_lock(b)
