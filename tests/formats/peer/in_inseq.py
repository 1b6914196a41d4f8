"""Run by a Python that has the real Inseq: write files with it, or say what it reads. Prints one JSON object.

python in_inseq.py write MODEL_FOLDER OUT      # from the folder that holds MODEL_FOLDER, so that its name is what the files say
python in_inseq.py read FILE ...
"""

import contextlib
import io
import json
import sys

import inseq
import numpy as np

TEXT, GENERATED = "Once upon a time", "Once upon a time there was"


def viewed(loaded):
    """What its viewers make of the file as it is: the heat map as HTML and on the console, and the text with its scores."""
    console = io.StringIO()
    with contextlib.redirect_stdout(console):
        loaded.show()
    return {
        "show": loaded.show(display=False, return_html=True),
        "console": console.getvalue(),
        "show_tokens": loaded.show_tokens(display=False, return_html=True),
    }


def described(path):
    loaded = inseq.FeatureAttributionOutput.load(path, decompress=path.endswith(".gz"))
    found = []
    for sequence in loaded:
        # Inseq forgets in saving how many dimensions attention had, and then merges none by itself.
        dimensions = sequence.target_attributions.ndim - 2
        merged = sequence.aggregate(["mean"] * dimensions if type(sequence).__name__.startswith("Multi") else None, normalize=False)
        shown = merged.show(display=False, return_html=True, do_aggregation=False)
        found.append(
            {
                "kind": type(sequence).__name__,
                "source": [[token.token, token.id] for token in sequence.source],
                "target": [[token.token, token.id] for token in sequence.target],
                "start": sequence.attr_pos_start,
                "end": sequence.attr_pos_end,
                "scores": [[None if np.isnan(value) else value for value in row] for row in merged.target_attributions.tolist()],
                "step_scores": {name: values.tolist() for name, values in sequence.step_scores.items()},
                "pairs": sum(map(len, merged.get_scores_dicts(do_aggregation=False)["target_attributions"].values())),
                "shown": all(token.token.strip("Ġ") in shown for token in sequence.target[1:]),
            }
        )
    coarse = all(sequence.target_attributions.ndim == 2 for sequence in loaded)
    info = {key: loaded.info[key] for key in ("model_name", "attribution_method", "input_texts", "generated_texts")}
    return {"info": info, "sequences": found, "viewed": viewed(loaded) if coarse else None}


def write(model, out):
    for method, options in {"input_x_gradient": {"step_scores": ["probability"]}, "attention": {}, "occlusion": {}}.items():
        attributed = inseq.load_model(model, method, device="cpu").attribute(TEXT, GENERATED, show_progress=False, **options)
        attributed.save(f"{out}/{method}.json", overwrite=True)
    attributed.save(f"{out}/packed.json.gz", compress=True, overwrite=True)
    attributed.save(f"{out}/half.json", scores_precision="float16", overwrite=True)
    other = inseq.load_model(model, "occlusion", device="cpu").attribute("The capital of France", "The capital of France is", show_progress=False)
    (attributed + other).save(f"{out}/two.json", overwrite=True)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "write":
        write(*arguments)
    else:
        json.dump({path: described(path) for path in arguments}, sys.stdout)
