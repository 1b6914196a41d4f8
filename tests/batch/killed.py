"""Batches that are killed: ``python -m tests.batch.killed INPUT OUT KILLS`` kills one again and again at random moments, and prints how often.

A process that has the model forks one that runs the batch, so that twenty kills need not load it twenty times.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

OPTIONS = {
    "analyses": ["token_scores", {"name": "logit_lens", "top_k": 2}, {"name": "attribution_matrix", "method": "occlusion"}],
    "part_size": 4,
    "max_new_tokens": 2,
    "tokenlens": True,
}
#: Seconds of a life at most: a part or two.
LONGEST = 0.6


def main(source: str, out: str, kills: int) -> None:
    import torch

    from lensplorer.batch.engine import run_batch
    from lensplorer.models import load_model

    torch.set_num_threads(1)  # a fork has only the thread that forked
    model, rng, killed = load_model("storyworld"), random.Random(1), 0
    for life in range(kills):
        child = os.fork()
        if child == 0:
            run_batch(source, out, loaded=model, **OPTIONS)
            os._exit(0)
        while life == 0 and not any(Path(out).glob("parts/*.json")) and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.01)  # the first leaves something behind, however slow the machine
        time.sleep(rng.uniform(0, LONGEST))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
    print(killed)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
