"""Sources of converted checkpoints: licenses, image statistics, published results; the card of a converted model.

Published results are quoted as the source's, and only for the kind, size, dataset and loss that they were published
for. They are from README.md and the logs of XuZhengzhuo/LiVT (ViT-B/16; LiVT Tables 2 to 4) and from README.md and
FINETUNE.md of facebookresearch/mae; image statistics are from `util/datasets.py` and `main_pretrain.py` of the former.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..reporting.blocks import Markdown, code_span, markdown_table, percent
from ..reporting.card import render_card
from ..reporting.card_metadata import TAGS


@dataclass(frozen=True)
class Source:
    """A family of checkpoints.

    Attributes:
        kind: "classifier" or "autoencoder" if all checkpoints are of one kind, otherwise None.
        license: Hub id of the license of code and published weights.
    """

    kind: str | None
    title: str
    url: str
    license: str
    license_title: str


_LIVT = ("XuZhengzhuo/LiVT", "https://github.com/XuZhengzhuo/LiVT", "mit", "MIT")
SOURCES = {
    "livt-finetune": Source("classifier", *_LIVT),
    "livt-pretrain": Source("autoencoder", *_LIVT),
    "mae": Source(
        None, "facebookresearch/mae", "https://github.com/facebookresearch/mae", "cc-by-nc-4.0", "CC-BY-NC 4.0"
    ),
}


@dataclass(frozen=True)
class OfficialDataset:
    """A dataset of the official code: its name there, and mean and standard deviation of its pixels in 0 .. 1."""

    official: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
DATASETS = {
    "imagenet-lt": OfficialDataset("ImageNet-LT", (0.479672, 0.457713, 0.407721), (0.278976, 0.271203, 0.286062)),
    "inat18": OfficialDataset("iNat18", (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
    "imagenet-bal": OfficialDataset("ImageNet-BAL", (0.480767, 0.457071, 0.407718), (0.279940, 0.272481, 0.286038)),
    "places-lt": OfficialDataset("Place", IMAGENET_MEAN, IMAGENET_STD),
    "cifar10-lt": OfficialDataset("cifar10-LT", *_CIFAR),
    "cifar100-lt": OfficialDataset("cifar100-LT", *_CIFAR),
    "imagenet": OfficialDataset("ImageNet", IMAGENET_MEAN, IMAGENET_STD),
}

# LiVT, ViT-B/16. (dataset, image size) -> top-1 accuracy in percent: all, many-, medium-, few-shot
LIVT_ACCURACY = {
    ("imagenet-lt", 224): (60.9, 73.6, 56.4, 41.0),
    ("imagenet-lt", 384): (63.8, 76.4, 59.7, 42.7),
    ("inat18", 224): (76.1, 78.9, 76.5, 74.8),
    ("inat18", 384): (81.0, 83.2, 81.5, 79.7),
    ("places-lt", 224): (40.8, 48.1, 40.6, 27.5),
}
# (dataset, image size) -> training loss of epoch 799 of masked pretraining
LIVT_PRETRAINING_LOSS = {("imagenet-lt", 224): 0.4190, ("inat18", 128): 0.5626}
# MAE on ImageNet-1k, 224 px. (width, patch size) -> top-1 accuracy of the fine-tuned model in percent
MAE_ACCURACY = {(768, 16): 83.6, (1024, 16): 85.9, (1280, 14): 86.9}


@dataclass
class Conversion:
    """Record of a conversion.

    Attributes:
        source: one of `SOURCES`, or "timm".
        kind: "classifier", "autoencoder" or "encoder".
        file_name: name of the source file or of the timm model.
        tensors: number of tensors in the source.
        dropped: reason for each tensor, or part of one, that was not used.
        notes: assumptions, one sentence each.
        dataset: one of `DATASETS`, if known.
        sha256: of the file.
        license: Hub id of the license, for a source that is not in `SOURCES`.
    """

    source: str
    kind: str
    file_name: str
    tensors: int
    dropped: dict[str, str]
    notes: list[str] = field(default_factory=list)
    dataset: str | None = None
    sha256: str | None = None
    license: str | None = None

    def __str__(self) -> str:
        """Summary of a few lines."""
        lines = [f"{self.kind}: all {self.tensors} tensors were mapped"]
        lines += [f"dropped: {len(names)}, such as {names[0]}: {why}" for why, names in self.reasons().items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def reasons(self) -> dict[str, list[str]]:
        """Reason -> names of the dropped tensors."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(name)
        return reasons


def conversion_card(conversion: Conversion, config: Any, parameters: int, name: str) -> str:
    """Text of README.md; ``name`` is the title, the name of the folder."""
    source = SOURCES.get(conversion.source)
    is_classifier, is_livt = conversion.kind == "classifier", conversion.source.startswith("livt")
    metadata = ModelCardData(
        model_name=name,
        license=source.license if source else conversion.license or "unknown",
        library_name="transformers",
        pipeline_tag="image-classification" if is_classifier else None,
        tags=[*(TAGS[:2] if is_livt else []), *TAGS[-2:]] + ["masked-image-modeling"] * (not is_classifier),
    )
    values = {
        "title": name,
        "quoted_name": Markdown(json.dumps(name)),
        "kind": conversion.kind,
        "conversion": conversion,
        "config": config,
        "classes": f"{getattr(config, 'num_labels', 0):,}",
        "parameters": f"{parameters:,}",
        "file_name": Markdown(code_span(conversion.file_name)),
        "published_figures": Markdown(published_figures(conversion, config)),
        "dataset": DATASETS[conversion.dataset].official if conversion.dataset else None,
        "dropped": [
            (len(names), Markdown(code_span(names[0])), Markdown(reason))
            for reason, names in conversion.reasons().items()
        ],
        "source": source,
        "source_link": Markdown(f"[{source.title}]({source.url})") if source else None,
        "license": Markdown(code_span(conversion.license)) if conversion.license else None,
        "is_livt": is_livt,
    }
    return render_card(metadata, "converted.md", values)


def published_figures(conversion: Conversion, config: Any) -> str:
    """Markdown: the source's results for such a model, not measured here, or a sentence that none are known."""
    key, size = (conversion.dataset, config.image_size), (config.hidden_size, config.patch_size)
    origin = "These are the source's results: this file was converted, not evaluated."
    is_base = size == (768, 16)
    if conversion.source == "livt-finetune" and is_base and config.loss == "bal_bce" and key in LIVT_ACCURACY:
        header = ("", *(f"{group} (%)" for group in ("All", "Many-shot", "Medium-shot", "Few-shot")))
        row = ("Top-1 accuracy", *map(percent, LIVT_ACCURACY[key]))
        title = f"LiVT's authors published for ViT-B/16 at {key[1]} px on {DATASETS[str(key[0])].official}"
        return f"{title}:\n\n{markdown_table(header, [row], 'lrrrr')}\n\n{origin}"
    if conversion.source == "livt-pretrain" and is_base and key in LIVT_PRETRAINING_LOSS:
        title = f"LiVT's log for ViT-B/16 at {key[1]} px on {DATASETS[str(key[0])].official}"
        return f"{title} ends, after 800 epochs, with a training loss of {LIVT_PRETRAINING_LOSS[key]:.4f}. {origin}"
    if conversion.source == "mae" and key == ("imagenet", 224) and size in MAE_ACCURACY:
        title = "MAE's authors published for a model of this size, after supervised fine-tuning on ImageNet-1k"
        return f"{title}, a top-1 accuracy of {percent(MAE_ACCURACY[size])} %. {origin}"
    return "None are known for this kind of checkpoint, size and dataset; this file was converted, not evaluated."
