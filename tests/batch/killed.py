"""A batch in a process of its own, for tests that kill it: ``python -m tests.batch.killed INPUT OUT``."""

import sys

from lensplorer.batch.engine import run_batch

OPTIONS = {
    "analyses": ["token_scores", {"name": "logit_lens", "top_k": 2}, {"name": "attribution_matrix", "method": "occlusion"}],
    "part_size": 4,
    "max_new_tokens": 2,
    "tokenlens": True,
}

if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    run_batch(sys.argv[1], sys.argv[2], progress=lambda progress: print(progress.done, flush=True), **OPTIONS)
