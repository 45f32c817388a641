"""README.md of a masked autoencoder: what it was trained on and how, what came of it, how to go on from it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..files import read_metrics, read_run, write_text
from .blocks import CITATION, code_block, escape_markdown
from .charts import plot_loss_curve
from .provenance import public_name
from .training_record import hyperparameters, training_command

TAGS = [
    "livt",
    "long-tailed-recognition",
    "imbalanced-data",
    "vision",
    "vit_mae",
    "masked-image-modeling",
    "pretraining",
]
LOSS_CURVE, RECONSTRUCTIONS = "loss_curve.png", "reconstructions.png"


def write_pretraining_card(
    output_dir: str | Path,
    *,
    repo_id: str | None = None,
    dataset_id: str | None = None,
    images: int | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> Path:
    """Write README.md, and loss_curve.png if there is a metrics.jsonl, into the folder of a masked autoencoder.

    Args:
        output_dir: folder with config.json; run.json and metrics.jsonl of the run and reconstructions.png are used if
            they are there.
        repo_id: "org/name" on the Hub, if it is known; the examples then load from there.
        dataset_id: Hub id of the dataset, if it has one.
        images: number of training images.
        hardware: ``device``, ``cpu`` and ``cores`` as results.json has them.

    Returns:
        The path of README.md.
    """
    folder = Path(output_dir)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = repo_id or folder.resolve().name
    lines = read_metrics(folder)
    losses = [(line["epoch"], line["loss"]) for line in lines if "loss" in line]
    if losses:
        plot_loss_curve(lines, folder / LOSS_CURVE)
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=TAGS,
        datasets=[dataset_id] if dataset_id else None,
    )
    pictures = [picture for picture in (LOSS_CURVE, RECONSTRUCTIONS) if (folder / picture).is_file()]
    body = pretraining_card_body(config, read_run(folder), name, losses, pictures, images, hardware)
    write_text(folder / "README.md", str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")))
    return folder / "README.md"


def pretraining_card_body(
    config: Mapping[str, Any],
    run: Mapping[str, Any] | None,
    name: str,
    losses: list[tuple[float, float]],
    pictures: list[str],
    images: int | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> str:
    """The text below the metadata."""
    parts = [
        f"# {escape_markdown(name.split('/')[-1])}",
        _introduction(config, run, images),
        "## How to use it",
        _usage(name),
        "## Training",
        _training(config),
    ]
    if losses:
        epoch, loss = losses[-1]
        parts.append(
            f"The training loss was {losses[0][1]:.4f} at epoch {losses[0][0]:g} and {loss:.4f} at epoch {epoch:g}"
            + (" (mean squared error of pixels normalized per patch)." if config["norm_pix_loss"] else ".")
        )
    if LOSS_CURVE in pictures:
        parts.append(f"![Training loss over epochs]({LOSS_CURVE})")
    if RECONSTRUCTIONS in pictures:
        parts += ["## What it reconstructs", f"![Original, masked and reconstructed images]({RECONSTRUCTIONS})"]
        if config["norm_pix_loss"]:
            parts.append("Brightness and contrast of the hidden patches are borrowed from the original.")
    if run:
        parts += ["## Hyperparameters", hyperparameters(run)]
        parts += ["## How it was made", code_block(training_command("pretrain", run)), _environment(run, hardware)]
    parts += [
        "## Limits",
        "- It knows what its training images show, and nothing else: frequent classes shape it more than rare ones.\n"
        "- It does not classify; its features have to be fine-tuned or probed.\n"
        "- It has not been examined for bias against groups of people.",
        "## Citation",
        f"The method is LiVT, its first stage that of masked autoencoders (He et al., CVPR 2022):\n\n{CITATION}",
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(config: Mapping[str, Any], run: Mapping[str, Any] | None, images: int | None) -> str:
    data = escape_markdown(public_name(run["arguments"]["dataset"])) if run else "images whose origin is not recorded"
    number = f"{images:,} images of " if images else ""
    return (
        "A vision transformer pretrained as a masked autoencoder, the first stage of the LiVT method (Xu et al., CVPR "
        f"2023), on {number}{data}, without their labels. Plain `transformers` "
        "loads it; nothing else needs to be installed."
    )


def _usage(name: str) -> str:
    quoted = json.dumps(name)
    return f"""\
Fine-tune it on a long-tailed dataset with `livt_hf`:

{code_block(f"livt finetune --dataset photos --pretrained {shlex.quote(name)} --output_dir classifier")}

Features of its encoder, and the whole autoencoder, with plain transformers:

```python
from transformers import AutoImageProcessor, AutoModelForPreTraining, ViTMAEModel

processor = AutoImageProcessor.from_pretrained({quoted})
encoder = ViTMAEModel.from_pretrained({quoted}, mask_ratio=0.0)  # sees every patch, in random order
autoencoder = AutoModelForPreTraining.from_pretrained({quoted})
```"""


def _training(config: Mapping[str, Any]) -> str:
    shown = " after normalizing each patch" if config["norm_pix_loss"] else ""
    return (
        f"- Encoder: {config['num_hidden_layers']} blocks of width {config['hidden_size']}, images of "
        f"{config['image_size']} x {config['image_size']} pixels in patches of {config['patch_size']} x "
        f"{config['patch_size']}, fixed 2-d sine-cosine positions.\n"
        f"- Decoder: {config['decoder_num_hidden_layers']} blocks of width {config['decoder_hidden_size']}.\n"
        f"- Task: {config['mask_ratio']:.0%} of the patches are hidden; the decoder predicts their pixels{shown}."
    )


def _environment(run: Mapping[str, Any], hardware: Mapping[str, Any] | None) -> str:
    versions = "Versions: " + ", ".join(f"{library} {version}" for library, version in run["versions"].items()) + "."
    if not hardware:
        return versions
    device = "CPU" if hardware["device"] == "cpu" else escape_markdown(hardware["device"])
    return f"Run on: {device} ({escape_markdown(hardware['cpu'])}, {hardware['cores']} cores).\n{versions}"
