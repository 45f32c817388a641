"""Add trained models to model_cards/ and update the table in its README: python scripts/model_cards.py [MODEL_DIR ...]

A model's card, results.json and pictures are copied, its weights are not. The results.json files make the table.
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
from livt_hf.reporting.evaluation_report import CHARTS, percent
from livt_hf.reporting.provenance import public_name

MODEL_CARDS = Path(__file__).parents[1] / "model_cards"
FIGURES = {"many": "Many ↑", "medium": "Med. ↑", "few": "Few ↑", "accuracy": "Acc ↑", "ece": "ECE ↓", "mce": "MCE ↓"}
START, END = "<!-- measured -->\n", "<!-- /measured -->"


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
    for name in ("README.md", "results.json", *CHARTS):
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, folder / name)


def measured_section(model_cards: Path = MODEL_CARDS) -> str:
    """The table of the README, a row per model, and the line below it that says how each was measured."""
    measured = [
        (file.parent.name, json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(model_cards.glob("*/results.json"))
    ]
    header = ("Model", "Data", "Size", "Loss", *FIGURES.values())
    table = markdown_table(header, [_row(name, results) for name, results in measured], "llrl" + "r" * len(FIGURES))
    lines = "\n".join(f"- {_measured_on(name, results)}" for name, results in measured)
    return f"{table}\n\n{lines}\n"


def with_section(readme: str, section: str) -> str:
    """The README with another text between its marks."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}{section}{END}{after}"


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
    readme = MODEL_CARDS / "README.md"
    readme.write_text(with_section(readme.read_text(encoding="utf-8"), measured_section()), encoding="utf-8")


if __name__ == "__main__":
    main()
