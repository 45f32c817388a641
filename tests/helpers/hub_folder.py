"""A folder that can be uploaded, and the repository it is uploaded to."""

import torch

from livt_hf import LivtConfig, ViTForBalancedClassification
from livt_hf.data.transforms import image_processor

TOKEN, REPO = "hf_secret", "org/livt-digits"
CARD = "---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n\n# A model\n"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def make_model(folder, seed=0):
    """Save a classifier of two classes with image processor and card."""
    torch.manual_seed(seed)
    names = {"id2label": {0: "cat", 1: "lynx"}, "label2id": {"cat": 0, "lynx": 1}}
    config = LivtConfig(**SIZES, **names, image_size=8, patch_size=4, class_counts={"cat": 90, "lynx": 3})
    ViTForBalancedClassification(config).save_pretrained(folder)
    image_processor(8, 0.875, [0.5] * 3, [0.5] * 3).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder
