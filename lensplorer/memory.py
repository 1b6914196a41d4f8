"""How much memory is free, and how a person reads a number of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: Any = "cpu") -> int:
    """Memory that a run on ``device`` may still take: what the machine has free, or less where this process is limited.

    Counted are the limits of a control group (containers) and of the process's address space (``ulimit -v``). On CUDA, the device's own memory.
    """
    import torch

    device = torch.device(str(device))
    if device.type == "cuda":
        held_free = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(held_free)
    import psutil

    return max(0, min(int(psutil.virtual_memory().available), *_limits(psutil.Process())))


def _limits(process: Any) -> list[int]:
    """Room under each limit of this process; a machine without such limits has none of them."""
    found = []
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        reclaimable = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        found.append(limit - used + int(reclaimable.get("inactive_file", 0)))
    except (OSError, ValueError):  # no control group, or "max"
        pass
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - int(process.memory_info().vms))
    except ImportError:  # Windows
        pass
    return found or [2**62]


def readable(n_bytes: float) -> str:
    """``3.2 GB``, ``470 MB``.

    >>> readable(3_210_000_000), readable(470_000_000), readable(12_000)
    ('3.2 GB', '470 MB', '0 MB')
    """
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
