"""Publishing of files: what others can read."""

import os

import pytest
import torch
from safetensors.torch import save_file

from livt_hf.files import publish, publish_files


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write(folder):
    (folder / "part").mkdir()
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors")
    save_file({"weight": torch.ones(1)}, folder / "part" / "model.safetensors")
    (folder / "config.json").write_text("{}")


def permissions(folder):
    return {file.name: oct(file.stat().st_mode & 0o777) for file in folder.rglob("*") if file.is_file()}


def test_safetensors_are_as_readable_as_other_files(umask, tmp_path):
    """safetensors writes files of mode 600 whatever the umask."""
    with publish_files(tmp_path / "model") as folder:
        write(folder)
    staging = tmp_path / "staging"
    staging.mkdir()
    write(staging)
    publish(staging, tmp_path / "checkpoint")
    expected = oct(0o666 & ~umask)
    assert permissions(tmp_path / "model") == {"model.safetensors": expected, "config.json": expected}
    assert set(permissions(tmp_path / "checkpoint").values()) == {expected}
    assert len(list((tmp_path / "checkpoint" / "part").iterdir())) == 1
