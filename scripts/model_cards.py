"""Add trained models to model_cards/ and write its index: python scripts/model_cards.py [MODEL_DIR ...]

A model's card, results.json and pictures are copied, its weights are not. The index, model_cards/README.md, is made of
the results.json files and of the paper's tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from livt_hf.losses import BALANCED_LOSSES, LOSS_TITLES
from livt_hf.reporting.blocks import escape_markdown, markdown_table
from livt_hf.reporting.card import PICTURES
from livt_hf.reporting.evaluation_report import percent
from livt_hf.reporting.provenance import public_name

MODEL_CARDS = Path(__file__).parents[1] / "model_cards"
FIGURES = {"many": "Many ↑", "medium": "Med. ↑", "few": "Few ↑", "accuracy": "Acc ↑", "ece": "ECE ↓", "mce": "MCE ↓"}
# Xu et al., CVPR 2023: Tables 2 to 4 and the comparison of losses on ImageNet-LT; ViT-B/16 trained from scratch.
PAPER = [
    # dataset, pixels, method, many, medium, few, accuracy, ECE, MCE
    ("ImageNet-LT", 224, "ViT, CE, no pretraining", 50.5, 23.5, 6.9, 31.6, None, None),
    ("ImageNet-LT", 224, "MAE + CE", 74.7, 48.2, 19.4, 54.5, 5.1, 6.8),
    ("ImageNet-LT", 224, "MAE + BCE", 73.7, 46.5, 15.6, 52.4, 5.6, 7.9),
    ("ImageNet-LT", 224, "MAE + Bal-CE", 70.5, 56.8, 43.7, 60.1, 3.7, 4.9),
    ("ImageNet-LT", 224, "LiVT: MAE + Bal-BCE", 73.6, 56.4, 41.0, 60.9, 2.4, 3.2),
    ("ImageNet-LT", 384, "LiVT: MAE + Bal-BCE", 76.4, 59.7, 42.7, 63.8, None, None),
    ("iNaturalist 2018", 224, "MAE + CE", 79.6, 70.8, 65.0, 69.4, None, None),
    ("iNaturalist 2018", 224, "LiVT: MAE + Bal-BCE", 78.9, 76.5, 74.8, 76.1, None, None),
    ("iNaturalist 2018", 384, "LiVT: MAE + Bal-BCE", 83.2, 81.5, 79.7, 81.0, None, None),
    ("Places-LT", 224, "MAE + CE", 48.9, 24.6, 8.7, 30.3, None, None),
    ("Places-LT", 224, "LiVT: MAE + Bal-BCE", 48.1, 40.6, 27.5, 40.8, None, None),
    ("Places-LT", 384, "LiVT: MAE + Bal-BCE", 50.7, 42.4, 27.9, 42.6, None, None),
]


def add_model(model_dir: Path, model_cards: Path = MODEL_CARDS) -> None:
    """Copy README.md, results.json and the pictures that `livt evaluate` drew.

    Raises:
        ValueError: one of the two is missing.
    """
    for name in ("README.md", "results.json"):
        if not (model_dir / name).is_file():
            raise ValueError(f"{model_dir}: it holds no {name}; name the output folder of `livt finetune`")
    folder = model_cards / model_dir.resolve().name
    folder.mkdir(exist_ok=True)
    for name in ("README.md", "results.json", *PICTURES):
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, folder / name)


def index(model_cards: Path = MODEL_CARDS) -> str:
    """The text of model_cards/README.md."""
    measured = [
        (file.parent.name, json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(model_cards.glob("*/results.json"))
    ]
    header = ("Model", "Data", "Size", "Loss", *FIGURES.values())
    rows = [_row(name, results) for name, results in measured]
    paper = [(*row[:3], *map(percent, row[3:])) for row in PAPER]
    return "\n\n".join(
        [
            "# Models",
            "Accuracies and calibration errors in percent.",
            "## Measured in this project",
            "Models that were trained with this code, with their cards and results.json. They are small and their "
            "datasets are not the paper's: their figures show that the method works end to end, and are not "
            "comparable with the table below.",
            markdown_table(header, rows, "llrl" + "r" * len(FIGURES)),
            "\n".join(f"- {_measured_on(name, results)}" for name, results in measured),
            "## Published by the paper",
            "These were **not** measured here: they are the figures of Xu et al., *Learning Imbalanced Data with "
            "Vision Transformers*, CVPR 2023 (Tables 2 to 4, and its comparison of losses on ImageNet-LT), for "
            "ViT-B/16 trained from scratch on the long-tailed set itself. For Bal-BCE on ImageNet-LT the medium-shot "
            "accuracy is 56.4 in Table 2 and 55.8 in the comparison of losses. A dash: not published.",
            markdown_table(("Data", "Pixels", "Method", *FIGURES.values()), paper, "lrl" + "r" * len(FIGURES)),
            "*This page is written by `python scripts/model_cards.py`; `python scripts/model_cards.py MODEL_DIR` adds "
            "a model.*\n",
        ]
    )


def _row(name: str, results: Mapping[str, Any]) -> list[str]:
    tau = f", tau {results['tau']:g}" if results["loss"] in BALANCED_LOSSES else ""
    return [
        f"[{escape_markdown(name)}]({name}/README.md)",
        escape_markdown(public_name(results["dataset"])),
        f"{results['parameters'] / 1e6:.2f}M",
        f"{'MAE' if results['pretrained'] else 'no pretraining'}, {_loss(results['loss'])}{tau}",
        *(percent(results[figure]) for figure in FIGURES),
    ]


def _loss(name: str) -> str:
    long_name = LOSS_TITLES.get(name, name)
    return escape_markdown(long_name.rpartition("(")[2].rstrip(")"))


def _measured_on(name: str, results: Mapping[str, Any]) -> str:
    machine, versions, counts = results["hardware"], results["versions"], results["class_counts"].values()
    device = "CPU" if machine["device"] == "cpu" else machine["device"]
    return (
        f"{escape_markdown(name)}: {results['images']:,} images of the {escape_markdown(results['split'])} split, "
        f"{len(counts):,} classes with {max(counts):,} to {min(counts):,} training images; {escape_markdown(device)} "
        f"({escape_markdown(machine['cpu'])}, {machine['cores']} cores), torch {versions['torch']}, transformers "
        f"{versions['transformers']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", nargs="*", type=Path, help="folders of trained and evaluated models")
    for model_dir in parser.parse_args().model_dir:
        try:
            add_model(model_dir)
        except ValueError as error:
            parser.error(str(error))
    (MODEL_CARDS / "README.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main()
