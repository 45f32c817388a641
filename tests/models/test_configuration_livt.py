"""Class counts in the config of any image classifier."""

import pytest
from transformers import AutoModelForImageClassification

from helpers import tiny_models
from helpers.tiny_models import tiny
from livt_hf import store_class_counts


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_class_counts_survive_the_round_trip_in_label_order(family, tmp_path):
    model = tiny(family, 3)
    store_class_counts(model.config, {"zebra": 9, "ant": 4, "moth": 1}, loss="bal_ce", tau=0.5)
    model.save_pretrained(tmp_path)
    config = AutoModelForImageClassification.from_pretrained(tmp_path).config
    assert config.id2label == {0: "zebra", 1: "ant", 2: "moth"}
    assert config.class_counts == {"zebra": 9, "ant": 4, "moth": 1}
    assert (config.loss, config.tau, config.shot_groups) == ("bal_ce", 0.5, {"many": 100, "few": 20, "by": "count"})


def test_class_counts_must_be_those_of_the_models_classes():
    config = tiny_models.ViTConfig(id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(ValueError, match="class_counts: 3 classes, but the model has 2; load it with num_labels=3"):
        store_class_counts(config, [3, 2, 1])
    with pytest.raises(ValueError, match="only in id2label: 'b'; only in class_counts: 'c'"):
        store_class_counts(config, {"a": 1, "c": 1})
    with pytest.raises(ValueError, match="loss: 'bal_bc' is unknown"):
        store_class_counts(config, [3, 2], loss="bal_bc")
    store_class_counts(config, [3, 2])
    assert config.class_counts == {"a": 3, "b": 2}
