"""Run by a Python that has the real circuit-tracer: load transcoders with its own loaders, write some, or check feature JSON. Prints JSON.

python in_circuit_tracer.py read FILE ...      # what each makes of a fixed input: features, output
python in_circuit_tracer.py write FOLDER       # transcoders as it saves them
python in_circuit_tracer.py features FILE ...  # the features' numbers, by its own model of a feature file
"""

import json
import sys
from pathlib import Path

import torch
from circuit_tracer.frontend.feature_models import Model
from circuit_tracer.transcoder import single_layer_transcoder as theirs
from circuit_tracer.transcoder.activation_functions import JumpReLU

D_MODEL, D_SAE = 32, 96
CPU = torch.device("cpu")


def given():
    """The input that both sides use. [position, d_model]"""
    return torch.sin(torch.arange(5 * D_MODEL, dtype=torch.float32)).reshape(5, D_MODEL)


def loaded(path):
    if path.endswith(".npz"):
        return theirs.load_gemma_scope_transcoder(path, 1, device=CPU)
    if "gemma_scope_2" in path:
        return theirs.load_gemma_scope_2_transcoder(path, 1, device=CPU)
    return theirs.load_relu_transcoder(path, 1, device=CPU)


def read(paths):
    with torch.no_grad():
        answers = {path: (transcoder.encode(given()), transcoder(given())) for path in paths for transcoder in [loaded(path)]}
    return {path: {"features": features.tolist(), "output": output.tolist()} for path, (features, output) in answers.items()}


def write(folder):
    torch.manual_seed(0)
    for name, function, skip in (("relu", torch.relu, False), ("relu_skip", torch.relu, True), ("jumprelu_skip", JumpReLU(torch.rand(D_SAE)), True)):
        made = theirs.SingleLayerTranscoder(D_MODEL, D_SAE, function, 1, skip, device=CPU, dtype=torch.float32)
        for parameter in (made.W_enc, made.W_dec, made.b_enc, made.b_dec, *([made.W_skip] if skip else [])):
            torch.nn.init.normal_(parameter, std=0.1)
        Path(folder, name).mkdir()
        made.to_safetensors(str(Path(folder, name, "layer_1.safetensors")))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "write":
        write(*arguments)
    elif command == "read":
        json.dump(read(arguments), sys.stdout)
    else:
        json.dump({path: Model.model_validate_json(Path(path).read_text()).index for path in arguments}, sys.stdout)
