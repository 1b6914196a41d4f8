"""A machine that is short of memory, and the end of the context: what fits is opened, what does not is refused in a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lensplorer.errors import PromptError
from lensplorer.session import Session

SHORT_OF_MEMORY = """
import resource, sys
import psutil
import lensplorer as lp
from lensplorer.errors import TraceError
from lensplorer.memory import free_bytes
from lensplorer.session import Session

model = lp.load_model(sys.argv[1])
ids = list(model.tokenizer("When Mary and John went to the store, John gave a drink to Mary. " * 200).input_ids)
session = Session(model, ids[:20])
session.trace().logits_at(19, 20)
limit = psutil.Process().memory_info().vms + 2_000_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print("free", free_bytes())
try:
    lp.run_trace(model, ids[:1500])
except TraceError as error:
    print("refused", error)
session.set_prompt(ids[:1500])
print("opened", round(float(session.trace().logits_at(1499, 1500).max()), 3))
session.append(5)
session.pop()
try:
    lp.residual_decomposition(lp.run_trace(model, ids[:1500], reads=["hook_pattern"]))
except TraceError as error:
    print("refused", error)
print("still", len(session.ids), round(float(session.trace().logits_at(1499, 1500).max()), 3))
"""


def test_with_two_gigabytes_free_a_long_text_opens_and_a_whole_run_is_refused(real_file: Path) -> None:
    pytest.importorskip("resource", reason="limits of a process's memory are Unix's")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SHORT_OF_MEMORY, str(real_file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [word for word, _ in said] == ["free", "refused", "opened", "refused", "still"]
    assert 1.5e9 < float(said[0][1]) <= 2e9
    assert "1,500 tokens takes about" in said[1][1] and "of memory, and" in said[1][1]
    assert said[4][1] == f"1500 {said[2][1]}"


def test_the_context_s_last_token_and_one_more(real, monkeypatch: pytest.MonkeyPatch) -> None:
    n_ctx = real.cfg.n_ctx
    session = Session(real, "The capital of France is")
    before = session.state
    with pytest.raises(PromptError, match=f"{n_ctx + 1} tokens"):
        session.set_prompt([5] * (n_ctx + 1))
    assert session.state == before
    session.set_prompt([5] * n_ctx)
    with pytest.raises(PromptError):
        session.append(5)
    assert len(session.ids) == n_ctx
