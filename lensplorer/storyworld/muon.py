"""Muon (Jordan et al. 2024): momentum whose update is made orthogonal, in float32.

`torch.optim.Muon` does the Newton-Schulz iteration in bfloat16, which processors without it emulate at a hundredth of the speed.
"""

from __future__ import annotations

import torch


def orthogonalise(matrix: torch.Tensor, *, steps: int = 4) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, about: singular values brought near 1 by a quintic Newton-Schulz iteration."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the root mean square of an AdamW step (0.2 √ of the longer side)."""

    def __init__(self, params: list[torch.nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                # a fused query-key-value matrix is three matrices
                parts = update.split(p.shape[0], dim=1) if p.shape[1] == 3 * p.shape[0] else (update,)
                update = torch.cat([orthogonalise(part) * 0.2 * max(part.shape) ** 0.5 for part in parts], dim=1)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
