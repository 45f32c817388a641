"""Model cards (README.md) of classifiers, masked autoencoders, and models without any record.

The text is in templates/*.md (Jinja); the values are computed here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from ..config.arguments import FinetuneArguments, PretrainArguments
from ..config.options import options_that
from ..files import read_json, read_metrics, read_run, write_text
from ..losses import BALANCED_LOSSES, LOSS_TITLES
from ..prior import ClassPrior
from .blocks import (
    Code,
    Literal,
    Markdown,
    Picture,
    Section,
    Table,
    code_span,
    counted,
    percent,
    percent_range,
    rounded,
    to_markdown,
)
from .card_metadata import TAGS, autoencoder_metadata, classifier_metadata, example_images
from .certainty import interval_of
from .charts import plot_loss_curve
from .coverage import coverage_sentences
from .evaluation_report import (
    CHARTS,
    GROUP_SENTENCE,
    accuracy_table,
    adjustments,
    certainty_sentences,
    data_name,
    knn_sentence,
)
from .provenance import hardware_words, measurement_blocks, public_name, version_words

LOSS_CURVE, RECONSTRUCTIONS = "loss_curve.png", "reconstructions.png"
PROBE_OPTIONS = ("imbalance_factor", "loss", "tau", "label_smoothing", "class_weights", "mixed_precision", "seed")
ENDS_SHOWN = 5  # largest and smallest classes in the card
NOT_EVALUATED = "This model has not been evaluated: its accuracy is unknown."
LONG_TAIL = 10  # imbalance factor from which a card speaks of very unequal sizes
# Values are blocks, rendered as in a report: text is escaped unless it is `Markdown`.
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    finalize=to_markdown,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)

# --adapter -> what was trained beside the classifier
ADAPTERS = {"lora": "LoRA, merged", "bias": "biases", "layernorm": "normalization layers"}


def render_card(metadata: ModelCardData, template: str, values: Mapping[str, Any]) -> str:
    """The text of a README.md: metadata, then a file of templates/ filled with values."""
    return _with_metadata(metadata, _TEMPLATES.get_template(template).render(values))


def _with_metadata(metadata: ModelCardData, body: str) -> str:
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}"))


# Classifiers


def write_model_card(
    model_dir: str | Path,
    results: Mapping[str, Any],
    *,
    repo_id: str | None = None,
    dataset_id: str | None = None,
    license: str = "apache-2.0",
    sections: Mapping[str, str] | None = None,
) -> Path:
    """Write README.md into the folder of a saved classifier.

    Args:
        model_dir: folder written by `save_pretrained`. The card includes the charts of `write_report` and the training
            record in run.json, if present; images in a subfolder ``examples`` become examples of the Hub's widget.
        results: from `evaluate_model`; of a model that was not evaluated, from `describe_unevaluated`.
        repo_id: "org/name" on the Hub, which the code examples then load from.
        dataset_id: Hub id of the dataset.
        license: license of the weights, as the Hub spells it.
        sections: ``{heading: Markdown}`` to insert after the results, such as a comparison.

    Returns:
        The path of README.md.
    """
    folder = Path(model_dir)
    path = folder / "README.md"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = repo_id or folder.resolve().name
    metadata = classifier_metadata(results, name.split("/")[-1], dataset_id, license, example_images(folder, repo_id))
    values = {
        "title": name.split("/")[-1],
        "quoted_name": Markdown(json.dumps(name)),
        "pictures": [Picture(caption, file) for file, caption in CHARTS.items() if (folder / file).is_file()],
        "sections": [Section(heading, [Markdown(text)]) for heading, text in (sections or {}).items()],
        "run": _training_run(read_run(folder)),
        "evaluate_command": Code(f"livt evaluate --model {shlex.quote(name)} --dataset DATASET"),
        "adjust_command": Code(_adjust_command(name, results, config)),
        "measurement": Section("", measurement_blocks(results)),
        "measured": "accuracy" in results,
        "not_evaluated": NOT_EVALUATED,
        "coverage": coverage_sentences(results.get("coverage")),
        **(_result_values(results) if "accuracy" in results else {}),
        **_data_values(results),
        **_training_values(results, config),
    }
    write_text(path, render_card(metadata, "classifier.md", values))
    return path


def _result_values(results: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics, and the number of test images behind the few-shot accuracy."""
    groups = ClassPrior(results["class_counts"]).groups(**results["groups"]["definition"])
    names = list(results["class_counts"])
    tested = [results["test_counts"][names[label]] for label in groups["few"] if results["test_counts"][names[label]]]
    fewest = min(tested, default=1)
    return {
        "images": counted(results["images"], "image"),
        "data": data_name(results),
        "accuracy_table": Markdown(accuracy_table(results)),
        "knn": knn_sentence(results),
        "group_sentence": GROUP_SENTENCE,
        "certainty": certainty_sentences(results),
        "ece_with_interval": percent_range(results["ece"], interval_of(results, "ece")),
        "macro_with_interval": percent_range(results["macro_accuracy"], interval_of(results, "macro_accuracy")),
        "bins": len(results["reliability"]),
        "top5": None if results["top5"] is None else percent(results["top5"]),
        **{name: percent(results[name]) for name in ("macro_accuracy", "harmonic_mean", "worst_class", "ece", "mce")},
        "tail_classes": counted(len(tested), "class") if tested else None,
        "tail_images": counted(sum(tested), "test image"),
        "tail_fewest": counted(fewest, "test image"),
        "tail_step": f"{100 / fewest:.3g}",
    }


def _data_values(results: Mapping[str, Any]) -> dict[str, Any]:
    """Size and imbalance of the training data, with the largest and smallest classes."""
    prior = ClassPrior(results["class_counts"])
    counts = prior.counts
    shown, which = sorted(range(len(prior)), key=lambda label: -counts[label]), "All classes"
    if len(shown) > 2 * ENDS_SHOWN:
        shown = shown[:ENDS_SHOWN] + shown[-ENDS_SHOWN:]
        which = f"The {ENDS_SHOWN} largest and smallest classes"
    names, accuracies = [prior.names[label] for label in shown], results.get("per_class")
    columns = [names, [f"{counts[label]:,}" for label in shown]]
    columns += [[percent(accuracies[name]) for name in names]] if accuracies else []
    header = ("Class", "Training images", "Accuracy (%)")[: len(columns)]
    return {
        "dataset": public_name(results["dataset"]) if results["dataset"] else None,
        "classes": f"{len(prior):,}",
        "training_images": f"{counts.sum():,}",
        "largest": counted(int(counts.max()), "image"),
        "smallest": f"{counts.min():,}",
        "smallest_images": counted(int(counts.min()), "image"),
        "imbalance_factor": f"{prior.imbalance_factor:,.4g}",
        "is_long_tailed": prior.imbalance_factor >= LONG_TAIL,
        "which_classes": which,
        "class_table": Table(header, list(zip(*columns, strict=True)), "lrr"[: len(columns)]),
    }


def _training_values(results: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Initialization, loss, adjustment and architecture."""
    is_vit, is_balanced = _is_livt(config), _is_balanced(results)
    assumed, ends = _assumed_prior(results, config)
    timm_name = to_markdown(f"(timm's {config['architecture']})") if "architecture" in config else ""
    tower = config.get("vision_config") or config  # of CLIP and SigLIP
    return {
        "is_vit": is_vit,
        "is_balanced": is_balanced,
        "is_livt_method": is_balanced and results["pretrained"] and is_vit,
        "kind": Markdown(
            "a vision transformer" if is_vit else f"a {code_span(config['architectures'][0])} {timm_name}".strip()
        ),
        "parameters": f"{results['parameters']:,}",
        "trained": _trained(results),
        "image_size": config["image_size"],
        "patch_size": tower.get("patch_size"),
        "layers": tower.get("num_hidden_layers"),
        "width": tower.get("hidden_size"),
        "mean_pooling": config.get("use_mean_pooling", True),
        "pretrained": public_name(results["pretrained"]) if results["pretrained"] else None,
        "head_only": bool(config.get("class_balanced_batches")),
        "loss": LOSS_TITLES.get(results["loss"], results["loss"]),
        "tau": f"{results['tau']:g}",
        "kept": _kept(results),
        "probe_l2": f"{results['probe']['l2']:g}" if results.get("probe") else None,
        "probe_chosen_on": (results.get("probe") or {}).get("chosen_on"),
        "probe_parameters": f"{results['trained_parameters']:,}" if results.get("probe") else None,
        "weighted": bool(config.get("class_weights")),
        "adjusted": bool(config.get("adjustment")),
        "adjustments": ", ".join(adjustments(config.get("adjustment"))) or "none in effect",
        "assumed_prior": assumed,
        "given_prior": ends,
    }


def _kept(results: Mapping[str, Any]) -> dict[str, str] | None:
    """Epoch and validation accuracy of a model that is not from the last epoch (``--keep_best``), in words."""
    kept = results.get("kept")
    if kept is None:
        return None
    names = {"accuracy": "accuracy", "macro": "mean per-class accuracy"}
    return {
        "epoch": rounded(kept["epoch"]),
        "accuracy": f"{names.get(kept['metric'], kept['metric'] + '-shot accuracy')} {percent(kept['value'])}",
        "stopped_at": kept.get("stopped_at"),
    }


def _is_livt(config: Mapping[str, Any]) -> bool:
    """Whether it is a plain ViT, not another architecture fine-tuned with LiVT's losses."""
    return config.get("model_type", "beit") == "beit" and config.get("use_absolute_position_embeddings", True)


def _is_balanced(results: Mapping[str, Any]) -> bool:
    return results["loss"] in BALANCED_LOSSES


def _assumed_prior(results: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The class prior that the logits assume: an adjustment's target prior, else proportional to pi ** (1 - tau).

    Returns:
        "unknown", "weighted", "given", "train", "uniform", "partly train" or "inverse"; for "given", also its most
        and least probable class, in words.
    """
    adjustment = config.get("adjustment") or {}
    target = adjustment.get("target_prior")
    if adjustment.get("tau_norm") is not None:
        return "unknown", []
    if isinstance(target, Mapping):  # its values may be counts
        ends = (max(target, key=target.__getitem__), min(target, key=target.__getitem__))
        return "given", [f"{name} ({100 * target[name] / sum(target.values()):.3g} %)" for name in ends]
    if target == "train":
        return "train", []
    if target == "uniform" or _assumes_uniform(results, config):
        return "uniform", []
    if config.get("class_weights") and results["loss"] in ("ce", "bal_ce"):
        return "weighted", []
    return ("partly train" if not _is_balanced(results) or results["tau"] < 1.0 else "inverse"), []


def _assumes_uniform(results: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether training made the logits assume a uniform prior."""
    if config.get("class_weights") and results["loss"] in ("ce", "bal_ce"):
        weighted = [results["class_counts"][name] * weight for name, weight in config["class_weights"].items()]
        return results["loss"] == "ce" and max(weighted) <= 1.001 * min(weighted)
    return _is_balanced(results) and results["tau"] == 1.0 or bool(config.get("class_balanced_batches"))


def _adjust_command(name: str, results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The command that makes the model assume another class prior, or that undoes an adjustment."""
    if config.get("adjustment"):
        return "livt adjust --model FOLDER --undo --output_dir original"
    target = "train" if _assumes_uniform(results, config) else "uniform"  # the other one would change nothing
    return f"livt adjust --model {shlex.quote(name)} --target_prior {target} --output_dir adjusted"


# Masked autoencoders


def write_autoencoder_card(
    output_dir: str | Path,
    *,
    repo_id: str | None = None,
    dataset_id: str | None = None,
    images: int | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> Path:
    """Write README.md, and with a metrics.jsonl also loss_curve.png, into the folder of a masked autoencoder.

    Args:
        output_dir: folder with config.json; run.json, metrics.jsonl and reconstructions.png are used if present.
        repo_id: "org/name" on the Hub, which the code examples then load from.
        dataset_id: Hub id of the dataset.
        images: number of training images.
        hardware: from `provenance.hardware`.

    Returns:
        The path of README.md.
    """
    folder = Path(output_dir)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    run = read_run(folder)
    name = repo_id or folder.resolve().name
    lines = read_metrics(folder)
    sentence = loss_sentence(lines)
    if sentence:
        plot_loss_curve(lines, folder / LOSS_CURVE)
    pictures = {LOSS_CURVE: "Training loss by epoch", RECONSTRUCTIONS: "Original, masked and reconstructed images"}
    found = {file: Picture(caption, file) for file, caption in pictures.items() if (folder / file).is_file()}
    finetune = f"livt finetune --dataset photos --pretrained {shlex.quote(name)} --output_dir classifier"
    values = {
        "title": name.split("/")[-1],
        "quoted_name": Markdown(json.dumps(name)),
        "config": config,
        "mask_ratio": f"{config['mask_ratio']:.0%}",
        "images": counted(images, "image") if images else None,
        "dataset": public_name(run["arguments"]["dataset"]) if run else None,
        "finetune_command": Code(finetune),
        "loss_sentence": sentence,
        "loss_curve": found.get(LOSS_CURVE),
        "reconstructions": found.get(RECONSTRUCTIONS),
        "run": _training_run(run),
        "hardware": hardware_words(hardware) if hardware else None,
    }
    write_text(folder / "README.md", render_card(autoencoder_metadata(dataset_id), "autoencoder.md", values))
    return folder / "README.md"


# Any model


def loss_sentence(lines: Sequence[Mapping[str, float]]) -> str | None:
    """The first and the last training loss of metrics.jsonl; None if it has none."""
    losses = [line for line in lines if "loss" in line]
    if not losses:
        return None
    ends = losses[:1] + losses[1:][-1:]
    shown = (f"{line['loss']:.4f} at epoch {rounded(line['epoch'])}" for line in ends)
    return f"Training loss: {', '.join(shown)}."


def _training_run(run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Hyperparameters, command and versions from the training record (run.json)."""
    if run is None:
        return None
    command = run.get("command")  # older records have none
    return {
        "hyperparameters": hyperparameters(run),
        "command": Code(command) if command else None,
        "versions": version_words(run["versions"]),
    }


def hyperparameters(run: Mapping[str, Any]) -> Table:
    """A table of the options that determine training, without those of the other stage."""
    arguments = run["arguments"]
    stage = PretrainArguments if "mask_ratio" in arguments else FinetuneArguments
    rows = [
        (Literal(name), _word(arguments[name]))
        for name in options_that(stage, in_card=True)
        if arguments.get(name) is not None and _applies(name, arguments)
    ]
    if arguments.get("stage") == "probe":
        return Table(("Option", "Value"), rows, "lr")
    steps = (run.get("kept") or {}).get("stopped_at") or run["steps"]
    return Table(("Option", "Value"), [*rows, ("steps", f"{steps:,}")], "lr")


def _trained(results: Mapping[str, Any]) -> str | None:
    """How many parameters light fine-tuning has trained, and which, in words."""
    kind = ADAPTERS.get(results.get("adapter") or "none")
    return f"fine-tuned through {results['trained_parameters']:,} ({kind}, and the classifier)" if kind else None


def _applies(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an option has an effect beside the others."""
    if arguments.get("stage") == "probe" and name not in PROBE_OPTIONS:
        return False
    if name == "epochs":
        return not arguments.get("max_steps")
    if name in ("betas", "momentum"):
        return (name == "momentum") == (arguments.get("optimizer") == "sgd")
    if name == "tau":
        return arguments.get("loss") in BALANCED_LOSSES
    if name == "adapter_targets":
        return bool(arguments[name])
    if name in ("adapter", "classifier_init"):
        return arguments[name] not in ("none", "random")
    return not name.startswith("adapter_") or arguments.get("adapter") == "lora"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def ensure_card(folder: str | Path, repo_id: str) -> None:
    """Write README.md unless there is one, from the evaluation results or the pretraining record in the folder."""
    folder = Path(folder)
    if not folder.is_dir() or (folder / "README.md").exists():
        return
    if read_json(folder, "config.json").get("architectures") == ["ViTMAEForPreTraining"]:
        write_autoencoder_card(folder, repo_id=repo_id)
        return
    for results in (folder / "results.json", folder / "evaluation" / "results.json"):
        if results.is_file():
            write_model_card(folder, read_json(results.parent, results.name), repo_id=repo_id)
            return
    write_text(folder / "README.md", plain_card(folder, repo_id, "An image classifier. It was not evaluated."))


def add_results(folder: str | Path, results: Mapping[str, Any]) -> None:
    """Rewrite a card that says that the model was not evaluated; any other one, perhaps edited, stays as it is."""
    card = Path(folder) / "README.md"
    if card.is_file() and NOT_EVALUATED in card.read_text(encoding="utf-8"):
        write_model_card(folder, results)


def plain_card(folder: Path, repo_id: str, text: str) -> str:
    """README.md of a model without evaluation results; ``text`` is Markdown."""
    is_autoencoder = read_json(folder, "config.json").get("architectures") == ["ViTMAEForPreTraining"]
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction" if is_autoencoder else "image-classification",
        tags=TAGS,
    )
    return _with_metadata(metadata, f"# {to_markdown(repo_id.split('/')[-1])}\n\n{text}\n")
