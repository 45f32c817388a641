"""Loading checkpoints: incomplete ones are refused in one line, and transformers' verbosity is left as it was."""

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ResNetConfig, ResNetForImageClassification
from transformers.utils import logging

from helpers.tiny_towers import save_tower
from livt_hf import LivtMAEForPreTraining, ViTForBalancedClassification
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.models.loading import enable_gradient_checkpointing, load_classifier, load_image_processor, load_model
from livt_hf.training.checkpoint import TRAINED_FILE

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


def save_without(folder, *prefixes):
    """A saved autoencoder without the weights whose names begin with one of the prefixes."""
    LivtMAEForPreTraining(LivtMAEConfig(**SIZES, **DECODER)).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def test_an_incomplete_encoder_is_refused_and_the_verbosity_restored(tmp_path):
    save_without(tmp_path, "vit.layernorm.")
    logging.set_verbosity_info()
    try:
        with pytest.raises(
            ValueError, match=r"pretrained: .*: it lacks the weights layernorm\.bias, layernorm\.weight;"
        ):
            ViTForBalancedClassification.from_mae(tmp_path, {"ant": 2, "bee": 1})
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_warning()


def test_optional_weights_may_be_missing_and_are_returned(tmp_path):
    save_without(tmp_path, "decoder.decoder_pred.")
    names = ["decoder.decoder_pred.bias", "decoder.decoder_pred.weight"]
    with pytest.raises(ValueError, match="it lacks the weights decoder.decoder_pred.bias, decoder.decoder_pred.weight"):
        load_model(LivtMAEForPreTraining, tmp_path, "mae")
    _, missing = load_model(LivtMAEForPreTraining, tmp_path, "mae", optional=lambda model: names, quiet=True)
    assert missing == names


def test_a_tower_without_a_classifier_is_one_line_without_a_report(tmp_path, caplog):
    folder = save_tower("clip", tmp_path)
    logging.enable_propagation()
    try:
        with pytest.raises(ValueError, match=r"it lacks the weights classifier\.bias, classifier\.weight"):
            load_classifier(folder)
    finally:
        logging.disable_propagation()
    assert not caplog.messages


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    folder = save_tower("dinov2", tmp_path / "whole")
    with pytest.raises(ValueError, match=r"cannot be loaded as a model: it has no image processor \(preprocessor_con"):
        load_image_processor(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match=r"incomplete metadata.*; copy or download it again$"):
        load_model(AutoModel, folder, "model")
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / TRAINED_FILE).touch()
    with pytest.raises(ValueError, match=r"no config\.json \(a checkpoint of light fine-tuning holds only what"):
        load_model(AutoModel, tmp_path / "checkpoint-4", "model")


def test_an_architecture_without_gradient_checkpointing_is_named():
    model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=2))
    model.supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match="^gradient_checkpointing: ResNetForImageClassification does not support it"):
        enable_gradient_checkpointing(model)
