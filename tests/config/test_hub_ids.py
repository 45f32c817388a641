"""Names on the Hub without a connection: an answer at once, with the name that was meant."""

import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from helpers.cli import the_error
from livt_hf.cli import main
from livt_hf.config import hub_ids
from livt_hf.config.hub_ids import check_reachable, similar_name, why_unavailable

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the port of the discard service


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Not offline, but nothing answers; an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    hub_ids._answers.cache_clear()
    yield tmp_path
    hub_ids._answers.cache_clear()


REASON = f"it is not in the local cache, and {NOWHERE} cannot be reached"


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (
            ["finetune", "--dataset=digits", "--output_dir=out", "--pretrained=facebok/dinov2-small"],
            "pretrained: 'facebok/dinov2-small' cannot be loaded: {}; did you mean 'facebook/dinov2-small'?",
        ),
        (
            ["pretrain", "--dataset=uoft-c/cifar10", "--output_dir=out"],
            "dataset: 'uoft-c/cifar10' cannot be loaded: {}; did you mean 'uoft-cs/cifar10'?",
        ),
        (
            [
                "compare",
                "--losses=ce",
                "--dataset=digits",
                "--output_dir=out",
                "--pretrained=none,facebok/vit-mae-base",
            ],
            "pretrained: 'facebok/vit-mae-base' cannot be loaded: {}; did you mean 'facebook/vit-mae-base'?",
        ),
        (
            ["predict", "--model", "org/model-x", "photo.jpg"],
            "model: 'org/model-x' cannot be loaded: {}; give a folder, or another Hub id",
        ),
        (
            ["export", "--model", "facebook/dinov2-small", "--format=timm", "--output_dir=out"],  # spelled correctly
            "model: 'facebook/dinov2-small' cannot be loaded: {}; give a folder, or another Hub id",
        ),
        (
            ["evaluate", "--model", "runs/clasifier", "--dataset=digits"],
            "model: 'runs/clasifier' cannot be loaded: {}; did you mean 'runs/classifier'?",
        ),
        (
            ["convert", "hf-hub:timm/vit", "out", "--source=timm"],
            "input: 'timm/vit' cannot be loaded: {}; give a folder, or another Hub id",
        ),
    ],
)
def test_a_name_that_cannot_be_loaded_is_answered_at_once(online, capsys, argv, error):
    for folder in ("runs/classifier", "runs/other"):
        (online / folder).mkdir(parents=True)
    (online / "runs" / "classifier" / "config.json").write_text("{}")
    assert the_error(capsys, main(argv)) == error.format(REASON)


def test_nothing_slow_is_imported_for_that_answer():
    code = "import sys; from livt_hf.cli import main; status = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", f"{code}; sys.exit(status)", "evaluate", "--dataset=digits", "--model=no/model"]
    settings = {"HF_ENDPOINT": NOWHERE, "HF_HUB_OFFLINE": "0"}
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr


def test_offline_mode_is_named(online, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reason = "it is not in the local cache, and offline mode is on (HF_HUB_OFFLINE)"
    assert why_unavailable("facebok/dinov2-small", "model") == reason
    check_reachable("model", "facebok/dinov2-small")  # is left to those who load it


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("model", "hub/models--ours--small/snapshots/0a1b"),
        ("dataset", "hub/datasets--ours--small/snapshots/0a1b"),
        ("dataset", "datasets/ours___small"),
    ],
)
def test_what_is_cached_needs_no_connection_and_is_offered(online, kind, folder):
    assert why_unavailable("ours/small", kind) == REASON
    (online / folder).mkdir(parents=True)
    assert why_unavailable("ours/small", kind) is None
    assert similar_name("ours/smal", kind) == " did you mean 'ours/small'?"


def test_a_slow_server_is_not_given_up(online, monkeypatch):
    monkeypatch.setattr(hub_ids, "SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert why_unavailable("ours/small", "model") is None


def test_a_name_server_that_never_answers_is_given_up(online, monkeypatch):
    """Resolving a name has no timeout."""
    end = threading.Event()
    monkeypatch.setattr(hub_ids, "SECONDS", 0.1)
    session = SimpleNamespace(head=lambda *args, **kwargs: end.wait(60))
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: session)
    assert why_unavailable("ours/small", "model") == REASON
    end.set()


def test_folders_beside_and_below_are_offered(online):
    for name in ("classifier", "runs/ce-seed0", "photos"):
        (online / name).mkdir(parents=True)
    for name in ("classifier", "runs/ce-seed0"):
        (online / name / "config.json").write_text("{}")
    assert similar_name("clasifier", "model") == " did you mean 'classifier'?"
    assert similar_name("run/ce-seed0", "model") == " did you mean 'runs/ce-seed0'?"
    assert similar_name(f"{online}/clasifier", "model") == f" did you mean '{online}/classifier'?"
    assert similar_name("photo", "dataset") == " did you mean 'photos'?"
    assert similar_name("photo", "model") == ""  # has no model
