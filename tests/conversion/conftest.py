"""Converted classifiers and official outputs for the tests of this folder."""

import json

import pytest
from safetensors.torch import load_file

from helpers.conversion import NAMES, POOLINGS
from helpers.paths import FIXTURES
from livt_hf.conversion.official import convert_checkpoint


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory):
    """Pooling -> folder of a converted official classifier with 12 named classes."""
    folder = tmp_path_factory.mktemp("classifiers")
    (folder / "names.json").write_text(json.dumps(NAMES))
    for pooling in POOLINGS:
        convert_checkpoint(
            FIXTURES / f"livt_finetune_{pooling}.pth",
            folder / pooling,
            "livt-finetune",
            num_attention_heads=3,
            dataset="inat18",
            labels=folder / "names.json",
        )
    return {pooling: folder / pooling for pooling in POOLINGS}


@pytest.fixture(scope="session")
def outputs():
    """Outputs of the official code for one batch."""
    return load_file(FIXTURES / "official_outputs.safetensors")
