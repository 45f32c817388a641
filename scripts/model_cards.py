"""Write the cards, charts and table of model_cards/, and add models: python scripts/model_cards.py [MODEL_DIR ...]

Of a model, card, results.json, config.json and run.json are copied, but not the weights. All cards and charts, and the
table in model_cards/README.md, are then regenerated from these files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from documents.tables import quickstart_table, with_section
from livt_hf.files import RUN_FILE
from livt_hf.losses import BALANCED_LOSSES, SHORT_NAMES
from livt_hf.reporting.blocks import escape_markdown, markdown_table, percent
from livt_hf.reporting.card import write_model_card
from livt_hf.reporting.chart_style import NARROW, save_png
from livt_hf.reporting.evaluation_report import CHARTS, charts_of
from livt_hf.reporting.provenance import hardware_words, public_name

FILES = ("README.md", "results.json", "config.json")
MODEL_CARDS = Path(__file__).parents[1] / "model_cards"
FIGURES = {"many": "Many ↑", "medium": "Med. ↑", "few": "Few ↑", "accuracy": "Acc ↑", "ece": "ECE ↓", "mce": "MCE ↓"}
MARK = "measured"
COMPARED = "Compared with other losses"  # section of a quickstart's card


def add_model(model_dir: Path, model_cards: Path = MODEL_CARDS) -> None:
    """Copy card, results, config and, if there is one, the record of the run.

    Raises:
        ValueError: a file is missing.
    """
    for name in FILES:
        if not (model_dir / name).is_file():
            raise ValueError(f"{model_dir}: it has no {name}; name the output folder of `livt finetune`")
    folder = model_cards / model_dir.resolve().name
    folder.mkdir(exist_ok=True)
    for name in (*FILES, RUN_FILE):
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, folder / name)


def write_card(folder: Path) -> None:
    """Write card and charts from the other files; sections that the template does not have are kept."""
    record = (folder / "results.json").read_bytes()
    results = json.loads(record)
    sections = extra_sections((folder / "README.md").read_text(encoding="utf-8"))
    if COMPARED in sections:
        sections[COMPARED] = f"{quickstart_table()}\n\nOne seed ({results['seed']}); the same recipe for every loss."
    charts = charts_of(results)
    for file in CHARTS:  # those that the card shows
        save_png(charts[file](NARROW), folder / file, source=digest(record))
    write_model_card(folder, results, sections=sections)


def digest(record: bytes) -> str:
    """Of the results that a chart shows; stored in its file, so that a stale one is found."""
    return hashlib.sha256(record).hexdigest()


def extra_sections(card: str) -> dict[str, str]:
    """``{heading: Markdown}`` of the sections between results and training data, such as a comparison."""
    between = card[card.index("## Results\n") : card.index("## Training data\n")]
    _, *parts = between.split("\n## ")
    return {heading: text.strip() for heading, text in (part.split("\n", 1) for part in parts)}


def measured_section(model_cards: Path = MODEL_CARDS) -> str:
    """The README's table, one row per model, and a line on how each was measured."""
    measured = [
        (file.parent.name, json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(model_cards.glob("*/results.json"))
    ]
    header = ("Model", "Data", "Size", "Loss", *FIGURES.values())
    table = markdown_table(header, [_row(name, results) for name, results in measured], "llrl" + "r" * len(FIGURES))
    lines = "\n".join(f"- {_measured_on(name, results)}" for name, results in measured)
    return f"{table}\n\n{lines}\n"


def _row(name: str, results: Mapping[str, Any]) -> list[str]:
    tau = f", tau {results['tau']:g}" if results["loss"] in BALANCED_LOSSES else ""
    return [
        f"[{escape_markdown(name)}]({name}/README.md)",
        escape_markdown(public_name(results["dataset"])),
        f"{results['parameters'] / 1e6:.2f}M",
        f"{'MAE' if results['pretrained'] else 'no pretraining'}, {SHORT_NAMES[results['loss']]}{tau}",
        *(percent(results[figure]) for figure in FIGURES),
    ]


def _measured_on(name: str, results: Mapping[str, Any]) -> str:
    versions, counts = results["versions"], results["class_counts"].values()
    return (
        f"{escape_markdown(name)}: {results['images']:,} images of the {escape_markdown(results['split'])} split, "
        f"{len(counts):,} classes with {max(counts):,} to {min(counts):,} training images; "
        f"{escape_markdown(hardware_words(results['hardware']))}, torch {versions['torch']}, transformers "
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
    for file in MODEL_CARDS.glob("*/results.json"):
        write_card(file.parent)
    readme = MODEL_CARDS / "README.md"
    readme.write_text(with_section(readme.read_text(encoding="utf-8"), MARK, measured_section()), encoding="utf-8")


if __name__ == "__main__":
    main()
