"""Loading in the background while the old model answers; what may be loaded; a failure is said and changes nothing."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from fastapi.testclient import TestClient

from lensplorer.errors import ConfigError, ModelError
from lensplorer.models import load_model
from lensplorer.server.app import create_app
from lensplorer.server.models import ModelRefused, ModelService, ModelStore
from lensplorer.server.settings import ServerSettings, is_path
from lensplorer.trace import run_trace

TOKEN = "a token that nobody can guess"
STEP = {"prompt": "Once upon a", "use_chat_template": False, "params": {"greedy": True}}


class SlowLoader:
    """Loads when it is let go."""

    def __init__(self, models):
        self.models, self.go, self.calls = models, threading.Event(), []

    def __call__(self, name, dtype):
        self.calls.append((name, dtype))
        assert self.go.wait(60)
        if name not in self.models:
            raise ModelError(f"There is no model {name!r}.")
        return self.models[name]


@pytest.fixture()
def slow(storyworld, tiny_model):
    """(client, loader): a server on storyworld whose next model waits to be let go."""
    loader = SlowLoader({"other": tiny_model("qwen2")})
    settings = ServerSettings(model="storyworld")
    app = create_app(settings, model=storyworld, store=ModelStore(settings, load=loader))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client, loader


def test_the_old_model_answers_while_the_new_one_loads(slow):
    client, loader = slow
    before = client.post("/api/step", json=STEP).json()
    assert client.post("/api/model/load", json={"model_id": "other"}).json() == {"ok": True, "model_id": "other"}
    status = client.get("/api/model/status").json()
    assert (status["model_id"], status["loading"], status["ready"], status["serving"]) == ("other", True, False, "storyworld")
    assert client.post("/api/step", json=STEP).json() == before
    busy = client.post("/api/model/load", json={"model_id": "third"})
    assert busy.status_code == 409 and "'other' is still being loaded" in busy.json()["detail"]
    loader.go.set()
    client.app.state.server.models.wait(60)
    status = client.get("/api/model/status").json()
    assert (status["loading"], status["ready"], status["error"]) == (False, True, None) and status["vocab_size"] != 1793
    after = client.post("/api/step", json=STEP).json()
    assert after["model"]["vocab_size"] == status["vocab_size"]
    assert loader.calls == [("other", "float32")]


def test_a_failure_is_said_and_the_old_model_goes_on(slow):
    client, loader = slow
    loader.go.set()
    client.post("/api/model/load", json={"model_id": "nonsense"})
    client.app.state.server.models.wait(60)
    status = client.get("/api/model/status").json()
    assert (status["ready"], status["loading"], status["serving"], status["model_id"]) == (False, False, "storyworld", "storyworld")
    assert status["error"] == "There is no model 'nonsense'."
    assert client.post("/api/step", json=STEP).status_code == 200
    client.post("/api/model/load", json={"model_id": "other"})
    client.app.state.server.models.wait(60)
    assert client.get("/api/model/status").json()["error"] is None


def test_before_the_first_model_requests_are_asked_to_come_again(storyworld):
    settings = ServerSettings(model="storyworld")
    loader = SlowLoader({"storyworld": storyworld})
    app = create_app(settings, store=ModelStore(settings, load=loader))
    with TestClient(app, base_url="http://127.0.0.1") as client:  # starting it loads the model
        early = client.post("/api/step", json=STEP)
        assert early.status_code == 503 and "Retry-After" in early.headers and "being loaded" in early.json()["detail"]
        assert client.get("/api/model/status").json()["ready"] is False
        loader.go.set()
        app.state.server.models.wait(60)
        assert client.post("/api/step", json=STEP).status_code == 200


def test_an_unknown_name_is_the_librarys_error(client):
    empty = client.post("/api/model/load", json={"model_id": "  "})
    assert empty.status_code == 400 and "empty" in empty.json()["detail"]
    assert client.post("/api/model/load", json={"model_id": 3}).status_code == 422
    assert client.post("/api/model/load", json={}).status_code == 422


def test_a_broken_loader_shows_no_traceback(storyworld, caplog):
    def broken(name, dtype):
        raise RuntimeError("secret detail")

    service = ModelService(ModelStore(ServerSettings(), load=broken), storyworld)
    service.load("other")
    service.wait(60)
    assert "RuntimeError" in service.status()["error"] and "secret" not in service.status()["error"]
    assert "secret detail" in caplog.text


@pytest.mark.parametrize(
    "name", ["./model", "/etc", "~/model", "..", "a/../../b", "C:\\model", "model.gguf", "a/b/c.gguf", "gpt2", "nonsense/nonsense"]
)
def test_elsewhere_no_path_and_no_other_name_is_loaded(serving, name):
    client = serving(address="0.0.0.0", token=TOKEN)
    response = client.post("/api/model/load", json={"model_id": name}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 403 and "may not be loaded" in response.json()["detail"]
    assert client.app.state.server.models.status()["loading"] is False
    with pytest.raises(ModelRefused):  # what a page of the dashboard would ask for
        client.app.state.server.store.get(name)


def test_what_may_be_loaded(tmp_path, monkeypatch):
    here, there = ServerSettings(), ServerSettings(address="0.0.0.0", token=TOKEN, model="gpt2")
    assert (
        here.may_load("gpt2") and here.may_load("owner/repository/model.gguf") and not ServerSettings(allowed_models=("gpt2",)).may_load("storyworld")
    )
    assert there.may_load("gpt2") and there.may_load("storyworld-mini") and not there.may_load("distilgpt2")
    for path in ("./model", "model.gguf"):
        with pytest.raises(ConfigError, match="is a path"):
            ServerSettings(allowed_models=(path,))
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert is_path("files") and not here.may_load("files") and not here.may_load("./gpt2")
    assert is_path("gpt2") and not there.may_load("gpt2")  # a folder of that name has come up: it would be read instead


@pytest.mark.parametrize("address", [{}, {"address": "0.0.0.0", "token": TOKEN}])
def test_a_path_is_loaded_from_the_folders_given_alone(tmp_path, monkeypatch, address):
    (tmp_path / "given" / "model").mkdir(parents=True)
    (tmp_path / "given" / "model" / "model.gguf").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "given" / "way_out").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    settings = ServerSettings(model="./other/first", model_dirs=(tmp_path / "given",), **address)
    for path in ("./given/model", "given/model/model.gguf", str(tmp_path / "given" / "no such model"), "./given"):
        assert settings.may_load(path), path
    for path in ("./other", "given/../other/x/", "./given/way_out", "/etc", "/", "~", "~nobody-of-this-name/model", "./\0", "./" + "a" * 400, "\\x"):
        assert not settings.may_load(path), path
        with pytest.raises(ModelRefused, match="--model-dir"):
            ModelStore(settings).check(path)
    ModelStore(settings).check("./other/first")  # the one the server was started with
    with pytest.raises(ConfigError, match="no folder"):
        ServerSettings(model_dirs=(tmp_path / "nowhere",))


def test_a_folder_that_holds_no_model_is_said_to_and_no_more(tmp_path, monkeypatch, storyworld):
    (tmp_path / "secret name.txt").touch()
    outside = ModelService(ModelStore(ServerSettings()), storyworld)
    with pytest.raises(ModelRefused) as there:
        outside.load(str(tmp_path))
    with pytest.raises(ModelRefused) as nowhere:
        outside.load(str(tmp_path / "x"))
    assert str(nowhere.value) == str(there.value).replace(str(tmp_path), str(tmp_path / "x"))  # not even whether it is there
    inside = ModelService(ModelStore(ServerSettings(model_dirs=(tmp_path,))), storyworld)
    inside.load(str(tmp_path))
    inside.wait(60)
    assert "not a model" in inside.status()["error"] and "secret" not in inside.status()["error"]


def test_a_model_at_hand_does_not_wait_for_another(storyworld):
    loader = SlowLoader({})
    store = ModelStore(ServerSettings(model="storyworld"), load=loader)
    store.keep(storyworld)

    def wait_for_another():
        with pytest.raises(ModelError):
            store.get("gpt2")

    slow = threading.Thread(target=wait_for_another)
    slow.start()
    while not loader.calls:
        pass
    assert store.get() is storyworld
    loader.go.set()
    slow.join(60)
    assert not slow.is_alive()


def test_a_model_nobody_holds_is_let_go(tiny_folder):
    store = ModelStore(ServerSettings(model_dirs=(tiny_folder("gpt2"),)))
    model = store.get(str(tiny_folder("gpt2")))
    assert store.get(str(tiny_folder("gpt2"))) is model
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_the_dashboard_gets_the_model_of_the_api(client, storyworld):
    server = client.app.state.server
    assert server.store.get() is server.store.get("storyworld") is server.models.served.model is storyworld


def test_the_tree_of_tokens_is_begun_anew(monkeypatch, storyworld):
    from lensplorer.server import models

    monkeypatch.setattr(models, "_TREE_TOKENS", 40)
    served = models.Served(storyworld, 512)
    first = served._tree
    for last in range(20, 26):
        ids = [0, *range(5, 15), last]
        torch.testing.assert_close(served.logits(ids), run_trace(storyworld, ids, reads=[]).logits[-1], atol=1e-4, rtol=1e-4)
    assert served._tree is not first and served._tree.n_runs < 6


def test_the_longest_prompt_fits_what_is_kept(monkeypatch, storyworld):
    from lensplorer.server import models

    monkeypatch.setattr(models, "_LEAST_BYTES", 1)
    served = models.Served(storyworld, 300)
    for first in (5, 6, 7):
        served.logits([first] * 300)
    assert served._tree.n_bytes <= served._tree.max_bytes


def test_the_dtype_is_that_of_the_settings():
    store = ModelStore(ServerSettings(dtype="bfloat16"), load=load_model)
    assert store.get("storyworld-mini").lensplorer_info.dtype == "bfloat16"
