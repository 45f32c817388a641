"""A folder to upload, and a Hub on the loopback interface."""

from types import SimpleNamespace

import pytest

from helpers.hub_folder import TOKEN, make_model
from helpers.hub_server import Hub, redirect_client, serve


@pytest.fixture
def folder(tmp_path):
    return make_model(tmp_path / "model")


@pytest.fixture
def hub(monkeypatch):
    """A running Hub for the client of this process, whose own retries do not wait."""
    with serve(Hub(token=TOKEN)) as state:
        redirect_client(monkeypatch, state)
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        yield state
