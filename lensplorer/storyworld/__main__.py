"""Reproduces everything that ships in `data/`: both models, the SAEs, the ground truth, the figures and the cards.

    python -m lensplorer.storyworld

About two hours on two cores. Each part can be run by itself: `train`, `sae_training`, `ground_truth`, `evaluate`, `card`.
"""

from __future__ import annotations

import json

from lensplorer.storyworld import MODEL_NAMES, card, evaluate, ground_truth, model_path, sae_training, train


def main() -> None:
    for name in MODEL_NAMES:
        train.train(name, model_path(name))
        measured = evaluate.evaluate(model_path(name))
        (model_path(name) / "measured.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    sae_training.train_all()
    ground_truth.main()
    card.main()


if __name__ == "__main__":
    main()
