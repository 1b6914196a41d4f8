"""Requests that never come to their end, and a port that is taken."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from lensplorer.cli import app
from tests.security.conftest import Door

SECONDS = 2


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """A server that waits two seconds for a request."""
    served = Door("serve", "--receive-seconds", str(SECONDS), data=tmp_path_factory.mktemp("data"))
    yield served
    log = served.stop()
    assert "Traceback" not in log, log


def answer_to(door: Door, sent: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", door.port), 60) as plain:
        plain.sendall(sent)
        return b"".join(iter(lambda: plain.recv(4096), b""))


def test_a_half_sent_body_is_not_waited_for(impatient):
    head = b"POST /api/preview HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for rest in (b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
        answer = answer_to(impatient, head + rest)
        assert answer.startswith(b"HTTP/1.1 408") and b"was not there within 2 seconds" in answer


@pytest.mark.parametrize("sent", [b"", b"GET /expl", b"GET /explorer HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_nor_is_half_a_head(impatient, sent):
    assert answer_to(impatient, sent) == b""


def test_a_head_that_trickles_is_not_waited_for_anew(impatient):
    """Each byte by itself is in time; all of them are not."""
    with socket.create_connection(("127.0.0.1", impatient.port), 0.2) as plain, pytest.raises(OSError):
        for _ in range(100):
            plain.sendall(b"G")
            try:
                assert plain.recv(10) == b""
                raise ConnectionResetError
            except TimeoutError:
                continue
        pytest.fail("100 bytes, each after a fifth of a second, were waited for")


def test_a_page_that_is_open_is_not_closed_by_that(impatient):
    """A connection that was used once may wait: its next request has not begun."""
    with socket.create_connection(("127.0.0.1", impatient.port), 1.5 * SECONDS) as plain:
        request = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"
        plain.sendall(request)
        assert plain.recv(4096).startswith(b"HTTP/1.1 404")
        with pytest.raises(TimeoutError):
            while plain.recv(4096):
                pass
        plain.sendall(request)
        assert plain.recv(4096).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("command", ["explore", "serve"])
def test_a_port_in_use_is_said_before_the_model_is_loaded(command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(app, [command, "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1 and "cannot be served" in result.stderr and "--port" in result.stderr
    assert "Loading" not in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("address", ["no.such.host.invalid", "203.0.113.7", "x" * 300, "::zz"])
@pytest.mark.parametrize("command", ["explore", "serve"])
def test_so_is_an_address_that_is_not_this_machines(command, address):
    result = CliRunner().invoke(app, [command, "--port", "0", "--address", address])
    assert result.exit_code == 1 and "cannot be served" in result.stderr and "Traceback" not in result.output
