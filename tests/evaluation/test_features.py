"""Features of a split: as the model gives them, kept on disk, computed anew when what determines them changes."""

import os
import shutil

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

from helpers.tiny_models import save_tiny, tiny
from livt_hf import LivtMAEForPreTraining
from livt_hf.data import BadImageError, EvalTransform, ImageDataset, load_long_tailed, normalize
from livt_hf.data.transforms import image_processor
from livt_hf.evaluation import feature_cache
from livt_hf.evaluation.feature_cache import cache_file, read_features, writing
from livt_hf.evaluation.features import load_feature_model, split_features
from livt_hf.models.configuration_livt import LivtMAEConfig, store_class_counts
from livt_hf.models.features import pooled_features

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
PROCESSOR = image_processor(8, 0.875, MEAN, STD)
_VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache.constants, "HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "livt_hf" / "features"


@pytest.fixture(scope="module")
def train(data):
    return load_long_tailed(data)["train"]


def expected_features(model, split) -> np.ndarray:
    images = ImageDataset(split, EvalTransform(8, 0.875))
    pixels = torch.stack([images[index]["pixel_values"] for index in range(len(split))])
    with torch.no_grad():
        return pooled_features(model.eval(), normalize(pixels, MEAN, STD)).numpy()


def test_features_are_those_of_the_model_and_are_read_from_disk_next_time(train, folder, caplog, monkeypatch):
    caplog.set_level("INFO")
    model = tiny("vit").train()
    features = split_features(model, train, PROCESSOR, batch_size=3)
    assert model.training
    assert (features.shape, features.dtype) == ((8, 16), np.float32)
    np.testing.assert_allclose(features, expected_features(model, train), atol=1e-6)
    assert "features of 8 images: computed in" in caplog.text
    monkeypatch.setattr("livt_hf.evaluation.features.pooled_features", None)  # nothing is computed
    again = split_features(model, train, PROCESSOR, batch_size=8)
    assert np.array_equal(again, features)
    (file,) = folder.iterdir()
    assert f"features of 8 images: read from {file}" in caplog.text


def test_without_the_cache_nothing_is_written(train, folder):
    split_features(tiny("vit"), train, PROCESSOR, cache=False)
    assert not folder.exists()


def test_the_key_is_that_of_weights_transform_precision_and_images(train):
    model = tiny("vit")
    key = cache_file(model, train, PROCESSOR, "cpu")

    def changed(model=model, split=train, processor=PROCESSOR) -> bool:
        return cache_file(model, split, processor, "cpu") != key

    assert not changed()
    weights = tiny("vit")
    weights.vit.embeddings.cls_token.data[0, 0, 0] += 1e-6
    assert changed(weights)
    assert changed(tiny("vit", hidden_act="relu"))
    assert changed(tiny("vit").bfloat16())
    assert changed(processor=image_processor(8, 1.0, MEAN, STD))
    assert changed(processor=image_processor(8, 0.875, MEAN, MEAN))
    assert changed(split=train.select(range(7)))
    assert changed(split=train.select([1, 0, *range(2, 8)]))
    with torch.autocast("cpu", torch.bfloat16):
        assert changed()


def test_classes_loss_and_classifier_do_not_change_the_key(train):
    model = tiny("vit", 2)
    key = cache_file(model, train, PROCESSOR, "cpu")
    other = tiny("vit", 3)
    other.vit.load_state_dict(model.vit.state_dict())
    store_class_counts(other.config, {"a": 3, "b": 2, "c": 1}, loss="ce", tau=0.5)
    assert cache_file(other, train, PROCESSOR, "cpu") == key
    other.classifier.weight.data.zero_()
    assert cache_file(other, train, PROCESSOR, "cpu") == key


def test_a_changed_image_file_changes_the_key(data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    train, model = load_long_tailed(copy)["train"], tiny("vit")
    key = cache_file(model, train, PROCESSOR, "cpu")
    file = copy / "train" / "ant" / "0.jpg"
    os.utime(file, ns=(1, 1))
    assert cache_file(model, train, PROCESSOR, "cpu") != key


@pytest.mark.parametrize("place", [40, -300, -5])
def test_a_damaged_file_is_computed_again_with_a_line(train, folder, caplog, place):
    model = tiny("vit")
    features = split_features(model, train, PROCESSOR, batch_size=4)
    (file,) = folder.iterdir()
    content = bytearray(file.read_bytes())
    content[place] ^= 0xFF
    file.write_bytes(content)
    if read_features(file, 8) is None:
        assert f"features: {file} is damaged" in caplog.text
    assert np.array_equal(split_features(model, train, PROCESSOR, batch_size=4), features)
    assert np.array_equal(read_features(file, 8), features)  # repaired


def test_every_byte_of_the_values_is_checked_and_a_shorter_file_is_damaged(tmp_path, caplog):
    values = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    file = tmp_path / "features.arrow"
    with writing(file) as write:
        write(values[:4])
        write(values[4:])
    assert np.array_equal(read_features(file, 6), values)
    assert read_features(file, 7) is None
    assert "has 6 rows instead of 7" in caplog.text
    content = file.read_bytes()
    for batch in (values[:4], values[4:]):
        start = content.index(batch.tobytes())
        for place in range(start, start + batch.nbytes):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert read_features(file, 6) is None
    file.write_bytes(content[: len(content) // 2])
    assert read_features(file, 6) is None


def test_two_writers_of_the_same_file_do_not_disturb_each_other(tmp_path):
    values, file = np.ones((4, 3), dtype=np.float32), tmp_path / "features.arrow"
    with writing(file) as first, writing(file) as second:
        first(values[:2])
        second(values)
        first(values[2:])
        assert len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(read_features(file, 4), values)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with writing(tmp_path / "features.arrow") as write:
            write(np.ones((4, 3), dtype=np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_abandoned_temporary_files_are_removed_and_others_kept(tmp_path):
    old, new = tmp_path / ".old.tmp", tmp_path / ".new.tmp"
    for file in (old, new):
        file.write_bytes(b"")
    os.utime(old, (0, 0))
    with writing(tmp_path / "features.arrow") as write:
        write(np.ones((4, 3), dtype=np.float32))
    assert new.exists()
    assert not old.exists()


def test_a_folder_that_cannot_be_written_is_a_warning(train, folder, caplog):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file")
    features = split_features(tiny("vit"), train, PROCESSOR)
    assert np.isfinite(features).all()
    assert f"features: they cannot be kept in {folder} (" in caplog.text


def test_a_full_disk_is_one_warning_and_leaves_nothing(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    file = tmp_path / "features.arrow"
    with writing(file) as write:
        write(np.ones((2, 3), dtype=np.float32))
        monkeypatch.setattr(feature_cache, "publish_file", full)
        write(np.ones((2, 3), dtype=np.float32))
    assert caplog.text.count("No space left on device") == 1
    assert not list(tmp_path.iterdir())


def test_unreadable_images_are_errors_or_rows_of_nan(data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "train" / "ant" / "1.jpg").write_bytes(b"no image")
    train, model = load_long_tailed(copy)["train"], tiny("vit")
    log = tmp_path / "bad.log"
    features = split_features(model, train, PROCESSOR, batch_size=3, max_bad_images=1, bad_images_log=log)
    assert np.isnan(features).all(axis=1).tolist() == [False, True, *[False] * 6]
    readable = train.select([0, *range(2, 8)])
    np.testing.assert_allclose(features[[0, *range(2, 8)]], expected_features(model, readable), atol=1e-6)
    assert "1.jpg" in log.read_text()
    for limit in (None, 0):
        with pytest.raises(BadImageError):
            split_features(model, train, PROCESSOR, max_bad_images=limit)


def test_features_that_are_not_finite_are_an_error(train, folder):
    model = tiny("vit")
    model.vit.embeddings.cls_token.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="its features are not finite"):
        split_features(model, train, PROCESSOR)
    assert not list(folder.iterdir())


def test_a_split_without_images_is_an_error(train):
    with pytest.raises(ValueError, match="split: it has no images"):
        split_features(tiny("vit"), train.select([]), PROCESSOR)


def test_a_saved_classifier_gives_its_features(train, tmp_path):
    save_tiny("dinov2", tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    model, processor = load_feature_model(tmp_path)
    np.testing.assert_allclose(
        split_features(model, train, processor), expected_features(tiny("dinov2"), train), atol=1e-6
    )


def test_a_tower_without_a_classifier_is_loaded_with_a_random_one(train, tmp_path):
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    tower = Dinov2Model(config).eval()
    tower.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    features = split_features(*load_features(tmp_path, train), cache=False)
    pixels = torch.stack([ImageDataset(train, EvalTransform(8, 0.875))[0]["pixel_values"]])
    tokens = tower(normalize(pixels, MEAN, STD)).last_hidden_state  # CLS and the mean of the patches, side by side
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
    np.testing.assert_allclose(features[:1], expected.detach().numpy(), atol=1e-5)


def load_features(folder, split):
    model, processor = load_feature_model(folder)
    return model, split, processor


def test_clip_is_loaded_without_its_text_tower(train, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**sizes, "vocab_size": 50}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=8)
    clip = CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    size = {"height": 8, "width": 8}
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=size).save_pretrained(tmp_path)
    model, processor = load_feature_model(tmp_path)
    features = split_features(model, train, processor, cache=False)
    with torch.no_grad():
        images = ImageDataset(train, EvalTransform(8, 1.0))
        pixels = torch.stack([images[index]["pixel_values"] for index in range(len(train))])
        tokens = clip.vision_model(normalize(pixels, processor.image_mean, processor.image_std)).last_hidden_state
    assert features.shape == (8, 16)
    np.testing.assert_allclose(features, tokens[:, 1:].mean(dim=1).numpy(), atol=0.05)  # another resampling


def test_an_autoencoder_is_loaded_as_ours(train, tmp_path):
    sizes = {**_VIT, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    autoencoder = LivtMAEForPreTraining(LivtMAEConfig(**sizes))
    autoencoder.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    model, processor = load_feature_model(tmp_path)
    np.testing.assert_allclose(
        split_features(model, train, processor), expected_features(autoencoder, train), atol=1e-6
    )


def test_a_timm_checkpoint_gets_a_processor_that_can_leave_out_the_normalization(train, tmp_path):
    save_tiny("timm", tmp_path, pretrained_cfg={"input_size": [3, 8, 8], "mean": MEAN, "std": STD, "crop_pct": 0.5})
    model, processor = load_feature_model(tmp_path)
    assert (processor.crop_size.height, processor.size.shortest_edge) == (8, 16)
    assert tuple(processor.image_mean) == MEAN
    assert split_features(model, train, processor).shape == (8, 16)


def test_a_missing_encoder_or_model_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="model: .*cannot be loaded as a model: there is no such folder"):
        load_feature_model(tmp_path / "none")
