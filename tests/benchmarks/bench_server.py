"""Many clients at once on a live server: no answer but 200 and 429, and memory that stays where it is.

    python tests/benchmarks/bench_server.py --clients 50 --seconds 60

Each client steps a story of its own, asks for previews, attributions and analyses in between, and begins anew after some tokens. One that is told
429 comes again after a moment. The model is the built-in one, since the server is measured: behind a larger model it would only wait longer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
PROMPTS = ("Once upon a time", "The capital of France is", "When Mary and John went to the shop, John gave a book to", "Half of 48 is")


def start() -> tuple[subprocess.Popen[str], str]:
    """A server of its own, and where it is."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "lensplorer.cli", "serve", "--port", "0", "--no-dashboard"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    found = re.search(r"http://[^/\s]+", process.stdout.readline())  # type: ignore[union-attr]
    if not found:
        raise SystemExit("The server did not start.")
    return process, found[0]


def resident(pid: int) -> float:
    """MiB of memory that the process has."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


async def work(client: httpx.AsyncClient, number: int, until: float, seen: Counter[str], waits: list[float]) -> None:
    """One client."""
    rng = random.Random(number)
    prompt, completion = rng.choice(PROMPTS), list[int]()
    while time.monotonic() < until:
        body = {"prompt": prompt, "use_chat_template": False, "completion_ids": completion}
        kind = rng.choices(("step", "preview", "attribution", "analysis"), (6, 3, 1, 1))[0]
        if kind == "step":
            path, body = "/api/step", {**body, "params": {"temperature": 1.2, "seed": number}}
        elif kind == "preview":
            path = "/api/preview"
        elif kind == "attribution":
            path, body = "/api/attribution", {**body, "target_index": len(completion), "target_token_id": 5, "method": "input_x_gradient"}
        else:
            path, body = "/api/analyses/logit_lens", {"prompt": prompt, "top_k": 3}
        started = time.monotonic()
        try:
            response = await client.post(path, json=body)
        except httpx.HTTPError as error:
            seen[type(error).__name__] += 1
            continue
        seen[str(response.status_code)] += 1
        if response.status_code == 200:
            waits.append(time.monotonic() - started)
            if kind == "step":
                step = response.json()
                completion = [] if step["done"] or len(completion) > 60 else step["new_completion_ids"]
                if not completion:
                    prompt = rng.choice(PROMPTS) + rng.choice(("", " a", " the"))
        elif response.status_code == 429:
            await asyncio.sleep(rng.uniform(0.1, 0.5))


async def run(url: str, pid: int, clients: int, seconds: float) -> tuple[Counter[str], list[float], list[float]]:
    """Statuses, times to an answer, and the memory, once a second after the first sixth."""
    seen, waits, memory = Counter[str](), list[float](), list[float]()
    until = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=clients)) as client:
        for _ in range(200):
            try:
                await client.get("/api/model/status")
                break
            except httpx.TransportError:
                await asyncio.sleep(0.1)

        async def watch() -> None:
            await asyncio.sleep(seconds / 6)
            while time.monotonic() < until:
                memory.append(resident(pid))
                await asyncio.sleep(1)

        await asyncio.gather(watch(), *(work(client, number, until, seen, waits) for number in range(clients)))
    return seen, waits, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=15)
    given = parser.parse_args()
    process, url = start()
    try:
        seen, waits, memory = asyncio.run(run(url, process.pid, given.clients, given.seconds))
    finally:
        process.terminate()
        process.wait(30)
    waits.sort()
    print(f"{given.clients} clients, {given.seconds:.0f} s: {dict(seen)}")
    median, most = (1000 * waits[int(share * len(waits))] for share in (0.5, 0.99))
    print(f"{len(waits) / given.seconds:.0f} answers/s; median {median:.0f} ms, 99 % {most:.0f} ms")
    fifths = [memory[min(len(memory) - 1, round(share * len(memory) / 5))] for share in range(6)]
    print(f"memory from a sixth of the time on, MiB: {', '.join(f'{value:.0f}' for value in fifths)}")
    if set(seen) - {"200", "429"}:
        raise SystemExit("an answer was neither 200 nor 429")


if __name__ == "__main__":
    main()
