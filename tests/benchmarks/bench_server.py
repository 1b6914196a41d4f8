"""Fifty clients at once on a live server, of which half leave early: what the others see, and whether memory stays where it is.

    python tests/benchmarks/bench_server.py --seconds 60
    python tests/benchmarks/bench_server.py --seconds 60 [--shape smollm2 | --model .models/SmolLM2-135M-Instruct.Q4_1.gguf]

First one client alone: previews, steps and lenses of short prompts, on an idle server. Then the same beside a long analysis, which yields between
two runs of the model: so the run under way is waited for, and no more. Then 24 of the clients do as the first, with a second between an answer and
the next request, for a quarter of the time given. Then all at once, for that time: beside the 24, one asks for one long analysis after another, and
25 ask for long ones every few seconds and hang up within one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script: the shapes are in tests

from tests.benchmarks import shapes

ROOT = Path(__file__).parents[2]
PROMPTS = ("Once upon a time", "The capital of France is", "When Mary and John went to the shop, John gave a book to", "Half of 48 is")
WORDS = "Once upon a time there was a little girl who went to the shop. "
ALONE = 60  # short requests of the first client


def start(model: str) -> tuple[subprocess.Popen[str], str]:
    """A server of its own, and where it is."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "lensplorer.cli", "serve", "--port", "0", "--no-dashboard", "--model", model],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    found = re.search(r"http://[^/\s]+", process.stdout.readline())  # type: ignore[union-attr]
    if not found:
        raise SystemExit("The server did not start.")
    for _ in range(200):
        try:
            httpx.get(f"{found[0]}/api/model/status")
            break
        except httpx.TransportError:
            time.sleep(0.1)
    return process, found[0]


def resident(pid: int) -> float:
    """MiB of memory that the process has."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


def short(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A request of a few tokens, of which some were not seen before."""
    prompt = rng.choice(PROMPTS)
    body = {"prompt": prompt, "use_chat_template": False, "completion_ids": [rng.randrange(5, 1000)]}
    kind = rng.choices(("preview", "step", "lens"), (5, 4, 1))[0]
    if kind == "lens":
        return "/api/analyses/logit_lens", {"prompt": prompt, "top_k": 3}
    return f"/api/{kind}", body | ({"params": {"temperature": 1.2, "seed": rng.randrange(1000)}} if kind == "step" else {})


def long(rng: random.Random, sentences: int) -> tuple[str, dict[str, Any]]:
    """A request of many runs over hundreds of tokens."""
    text = WORDS * sentences
    if rng.random() < 0.5:
        body = {"prompt": f"{text}{rng.randrange(1000)}", "target": 5, "method": "integrated_gradients", "max_steps": 32}
        return "/api/analyses/attribute", body
    runs = {name: {"prompt": f"{text}{who} gave a book to"} for name, who in (("clean", "Mary"), ("corrupt", "John"))}
    return "/api/analyses/activation_patching", {**runs, "hook": "resid_pre", "metric": {"target": 5, "versus": 6}}


@dataclass
class Seen:
    """What the clients have seen: statuses, seconds of each answer to a short request by client, and how many long ones ended."""

    statuses: Counter[str] = field(default_factory=Counter)
    waits: dict[int, list[float]] = field(default_factory=dict)
    long: int = 0
    left: int = 0


async def ask(client: httpx.AsyncClient, seen: Seen, path: str, body: dict[str, Any]) -> bool:
    response = await client.post(path, json=body)
    seen.statuses[str(response.status_code) if response.status_code in (200, 429) else f"{response.status_code} {response.text[:80]}"] += 1
    return response.status_code == 200


async def ask_short(client: httpx.AsyncClient, seen: Seen, number: int, rng: random.Random) -> None:
    started = time.perf_counter()
    if await ask(client, seen, *short(rng)):
        seen.waits.setdefault(number, []).append(time.perf_counter() - started)


async def stay(client: httpx.AsyncClient, seen: Seen, number: int, sentences: int) -> None:
    rng = random.Random(number)
    while True:
        await asyncio.sleep(rng.uniform(0.5, 1.5))
        await ask_short(client, seen, number, rng)


async def stay_long(client: httpx.AsyncClient, seen: Seen, number: int, sentences: int) -> None:
    rng = random.Random(number)
    while True:
        seen.long += await ask(client, seen, *long(rng, sentences))


async def leave(client: httpx.AsyncClient, seen: Seen, number: int, sentences: int) -> None:
    """Ask for a long analysis and hang up: the connection of a request that is cancelled is closed."""
    rng = random.Random(number)
    while True:
        await asyncio.sleep(rng.uniform(2, 6))
        try:
            await asyncio.wait_for(ask(client, seen, *long(rng, sentences)), rng.uniform(0.2, 1.0))
        except TimeoutError:
            seen.left += 1


async def alone(url: str, seconds: float, sentences: int, *, beside_long: bool) -> list[float]:
    """What the short requests of one client take, in seconds; fewer where they take long."""
    seen, rng, until = Seen(), random.Random(0), time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=600) as client, httpx.AsyncClient(base_url=url, timeout=600) as other:
        for _ in range(5):
            await ask_short(client, Seen(), 0, rng)
        task = asyncio.create_task(stay_long(other, seen, 1, sentences)) if beside_long else None
        for _ in range(ALONE):
            await asyncio.sleep(rng.uniform(0.02, 0.1))  # not in step with the runs
            await ask_short(client, seen, 0, rng)
            if time.perf_counter() > until:
                break
        if task is not None:
            task.cancel()
    return seen.waits[0]


async def crowd(url: str, pid: int, kinds: list[Callable[..., Any]], seconds: float, sentences: int) -> tuple[Seen, list[float]]:
    """What one client of each of these kinds sees, and the server's memory, once a second after the first sixth."""
    seen, memory = Seen(), list[float]()
    connections = [httpx.AsyncClient(base_url=url, timeout=600) for _ in kinds]
    tasks = [asyncio.create_task(kind(client, seen, number, sentences)) for number, (kind, client) in enumerate(zip(kinds, connections))]
    await asyncio.sleep(seconds / 6)
    for _ in range(round(seconds * 5 / 6)):
        memory.append(resident(pid))
        await asyncio.sleep(1)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            seen.statuses[repr(outcome)] += 1
    for client in connections:
        await client.aclose()
    return seen, memory


def milliseconds(waits: list[float]) -> str:
    ordered = sorted(1000 * wait for wait in waits)
    return f"median {statistics.median(ordered):.0f} ms, 90 % {ordered[int(0.9 * len(ordered))]:.0f} ms, slowest {ordered[-1]:.0f} ms"


def times(waits: list[float], idle: list[float]) -> str:
    return f"{statistics.median(waits) / statistics.median(idle):.1f} x idle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    shapes.shape_argument(parser, default=None)
    parser.add_argument("--model", default="storyworld", help="the model where no shape is given")
    parser.add_argument("--sentences", type=int, default=16, help="of the long prompts, each of 15 tokens or more")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.shape:
            shapes.save(shapes.plain_model(given.shape), Path(folder))
        bench(given, folder if given.shape else given.model)


def bench(given: argparse.Namespace, model: str) -> None:
    """One client, then all of them.

    Raises:
        SystemExit: an answer was neither 200 nor 429.
    """
    staying: list[Callable[..., Any]] = [stay] * (given.clients - given.clients // 2 - 1)
    process, url = start(model)
    try:
        idle = asyncio.run(alone(url, given.seconds, given.sentences, beside_long=False))
        print(f"short requests, idle server:          {milliseconds(idle)}", flush=True)
        beside = asyncio.run(alone(url, given.seconds, given.sentences, beside_long=True))
        print(f"  beside one long analysis:           {milliseconds(beside)}; median {times(beside, idle)}", flush=True)
        some, _ = asyncio.run(crowd(url, process.pid, staying, given.seconds / 4, given.sentences))
        few = list(chain.from_iterable(some.waits.values()))
        print(f"  among {len(staying)} clients that do the same:  {milliseconds(few)}; median {times(few, idle)}", flush=True)
        everybody = [*staying, stay_long, *([leave] * (given.clients // 2))]
        seen, memory = asyncio.run(crowd(url, process.pid, everybody, given.seconds, given.sentences))
        waits = list(chain.from_iterable(seen.waits.values()))
        print(f"  and among all {given.clients}:                   {milliseconds(waits)}; median {times(waits, idle)}")
    finally:
        process.terminate()
        process.wait(60)
    answers = [len(seen.waits.get(number, [])) for number in range(len(staying))]
    print(f"answers to short requests: {len(waits)}, by client {min(answers)} to {max(answers)}; long analyses to their end: {seen.long}")
    print(f"requests whose client left: {seen.left}; statuses: {dict(seen.statuses)}")
    fifths = [memory[min(len(memory) - 1, round(share * len(memory) / 5))] for share in range(6)]
    print(f"memory from a sixth of the time on, MiB: {', '.join(f'{value:.0f}' for value in fifths)}")
    if set(seen.statuses) - {"200", "429"}:
        raise SystemExit("an answer was neither 200 nor 429")
    if min(answers) == 0:
        raise SystemExit("a client got no answer at all")


if __name__ == "__main__":
    main()
