"""README.md of a trained model: what it is, how good it is on head and tail, how to load it, what to be careful with.

The metadata goes through `huggingface_hub`, so that the Hub shows the results (`model-index`) and offers the right
pipeline. Names that come from data (classes, datasets, paths) are escaped.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import read_json, read_run, write_text
from ..losses import BALANCED_LOSSES
from ..losses import LOSS_TITLES as LOSS_NAMES
from ..prior import ClassPrior
from .autoencoder_card import write_pretraining_card
from .blocks import CITATION, code_block, escape_markdown, markdown_table, percent
from .evaluation_report import accuracy_table
from .provenance import measurement, public_name
from .training_record import hyperparameters, training_command

TAGS = ["livt", "long-tailed-recognition", "imbalanced-data", "vision", "vit"]
METRIC_NAMES = {
    "accuracy": "Accuracy (%)",
    "many": "Many-shot accuracy (%)",
    "medium": "Medium-shot accuracy (%)",
    "few": "Few-shot accuracy (%)",
    "ece": "Expected calibration error (%)",
    "mce": "Maximum calibration error (%)",
}
METRIC_TYPES = {"many": "many_shot_accuracy", "medium": "medium_shot_accuracy", "few": "few_shot_accuracy"}
PICTURES = {  # those that `write_report` draws
    "class_frequency.png": "Training images and accuracy of each class, largest class first",
    "predictions.png": "Share of each class in the predictions, the test set and the training set",
    "reliability.png": "Accuracy against confidence",
}
EXAMPLES = "examples"  # folder of images beside the model that the Hub's widget offers
ENDS_SHOWN = 5  # largest and smallest classes in the card


def write_model_card(
    model_dir: str | Path,
    results: Mapping[str, Any],
    *,
    repo_id: str | None = None,
    dataset_id: str | None = None,
    license: str = "apache-2.0",
    sections: Mapping[str, str] | None = None,
) -> Path:
    """Write README.md into the folder of a saved model.

    Args:
        model_dir: folder that `save_pretrained` wrote; the pictures of `write_report` and what run.json says of the
            training are shown if they are there. Images in its folder ``examples`` are offered on the Hub.
        results: what `evaluate_model` returned for it.
        repo_id: "org/name" on the Hub, if it is known; the examples then load from there.
        dataset_id: Hub id of the dataset, if it has one.
        license: the Hub's id of the license of the weights.
        sections: further parts, ``{heading: Markdown}``, shown after the results; e.g. a comparison.

    Returns:
        The path of README.md.
    """
    folder = Path(model_dir)
    path = folder / "README.md"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = repo_id or folder.resolve().name
    metadata = card_metadata(results, name.split("/")[-1], dataset_id, license, _widget(folder, repo_id))
    pictures = [f"![{words}]({file})" for file, words in PICTURES.items() if (folder / file).is_file()]
    body = card_body(results, config, name, pictures, sections or {}, read_run(folder))
    write_text(path, str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")))
    return path


def card_metadata(
    results: Mapping[str, Any],
    model_name: str,
    dataset_id: str | None = None,
    license: str = "apache-2.0",
    widget: list[dict[str, str]] | None = None,
) -> ModelCardData:
    """Metadata for the Hub. Measures that are None are left out; a base model is named if it is one of the Hub."""
    pretrained = results["pretrained"] or ""
    on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", pretrained) and not Path(pretrained).exists()
    measured = {key: results[key] for key in METRIC_NAMES if results[key] is not None}
    return ModelCardData(
        model_name=model_name,
        license=license,
        base_model=pretrained if on_hub else None,
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=TAGS + ["masked-image-modeling"] * bool(results["pretrained"]),
        datasets=[dataset_id] if dataset_id else None,
        metrics=[METRIC_TYPES.get(key, key) for key in measured],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset_id or _slug(public_name(results["dataset"])),
                dataset_name=public_name(results["dataset"]),
                dataset_split=results.get("split"),
                metric_type=METRIC_TYPES.get(key, key),
                metric_name=METRIC_NAMES[key],
                metric_value=round(value, 2),
            )
            for key, value in measured.items()
        ],
        widget=widget,
    )


def card_body(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    name: str,
    pictures: Sequence[str],
    sections: Mapping[str, str],
    run: Mapping[str, Any] | None = None,
) -> str:
    """The text below the metadata. ``run``: what run.json holds."""
    parts = [
        f"# {escape_markdown(name.split('/')[-1])}",
        _introduction(results, config),
        "## Results",
        f"On {results['images']:,} images of {_data_name(results)}:",
        accuracy_table(results),
        _class_figures(results),
        "Groups go by the number of training images of a class. A group's accuracy is the mean of the accuracies of "
        "its classes, each class counting the same; a dash means that no class of the group was tested.",
        f"Calibration, over {len(results['reliability'])} bins of confidence: expected error (ECE) "
        f"**{percent(results['ece'])} %**, maximum error (MCE) **{percent(results['mce'])} %**.",
        *pictures,
        *(f"## {escape_markdown(heading)}\n\n{text}" for heading, text in sections.items()),
        "## Training data",
        _training_data(results),
        "## How to use it",
        _usage(name, config),
        _shift(name, results, config),
        "## Training",
        _training(results, config),
        *_recorded(run),
        "## Limits",
        _limits(results, config),
        "## How it was measured",
        measurement(results),
        "## Citation",
        f"The method is LiVT:\n\n{CITATION}",
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    size = config["image_size"]
    if _is_balanced(results) and results["pretrained"] and _is_livt(config):
        method = "trained with the LiVT method (Xu et al., CVPR 2023): masked pretraining, then balanced fine-tuning"
    else:
        method = "trained as a point of comparison for the LiVT method (Xu et al., CVPR 2023)"
    return (
        f"An image classifier for {len(results['class_counts']):,} classes that are very unequal in size: "
        f"{_kind(config)} with {results['parameters']:,} parameters for images of {size} x {size} pixels, {method}. "
        "Plain `transformers` loads it; nothing else needs to be installed."
    )


def _training_data(results: Mapping[str, Any]) -> str:
    """How long the tail is: totals, and the classes at both ends."""
    prior = ClassPrior(results["class_counts"])
    counts, data_set = prior.counts, escape_markdown(public_name(results["dataset"]))
    order = sorted(range(len(prior)), key=lambda label: -counts[label])
    if len(order) <= 2 * ENDS_SHOWN:
        shown, which = order, "All classes"
    else:
        shown, which = order[:ENDS_SHOWN] + order[-ENDS_SHOWN:], f"The {ENDS_SHOWN} largest and smallest classes"
    rows = [
        (escape_markdown(prior.names[k]), f"{counts[k]:,}", percent(results["per_class"][prior.names[k]]))
        for k in shown
    ]
    return (
        f"{counts.sum():,} training images of {data_set} in {len(prior):,} classes. The largest class has "
        f"{counts.max():,} images, the smallest {counts.min():,}: an imbalance factor of "
        f"{prior.imbalance_factor:,.4g}. {which}:\n\n"
        + markdown_table(("Class", "Training images", "Accuracy (%)"), rows, "lrr")
    )


def _is_livt(config: Mapping[str, Any]) -> bool:
    """A plain ViT of LiVT's, as opposed to a classifier of another kind that was fine-tuned with its losses."""
    return config.get("model_type", "beit") == "beit" and config.get("use_absolute_position_embeddings", True)


def _kind(config: Mapping[str, Any]) -> str:
    if _is_livt(config):
        return "a vision transformer"
    timm_name = f" (timm's {config['architecture']})" if "architecture" in config else ""
    return f"a `{config['architectures'][0]}`{timm_name}"


def _usage(name: str, config: Mapping[str, Any]) -> str:
    if not _is_livt(config):
        return f"""\
With plain transformers:

```python
from transformers import pipeline

classify = pipeline("image-classification", {json.dumps(name)})
print(classify("photo.jpg"))
```"""
    return f"""\
With plain transformers:

```python
from transformers import pipeline

classify = pipeline("image-classification", {json.dumps(name)})
print(classify("photo.jpg"))
```

With `livt_hf`, which also gives the class counts and the training loss back:

```python
from livt_hf import ViTForBalancedClassification

model = ViTForBalancedClassification.from_pretrained({json.dumps(name)})
print(model.config.loss, model.config.tau, model.config.ordered_class_counts())
```"""


def _training(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if results["pretrained"] and config.get("class_balanced_batches"):
        source = escape_markdown(public_name(results["pretrained"]))
        start = f"the trained classifier {source}, of which the last layer alone was trained, on class-balanced batches"
    elif results["pretrained"] and not _is_livt(config):
        start = f"the weights of {escape_markdown(public_name(results['pretrained']))}"
    elif results["pretrained"]:
        source = escape_markdown(public_name(results["pretrained"]))
        start = f"the encoder of the masked autoencoder {source}, which learns from images without their labels"
    else:
        start = "random weights, without masked pretraining"
    loss = escape_markdown(LOSS_NAMES.get(results["loss"], results["loss"]))
    if _is_balanced(results):
        loss += (
            f", with tau = {results['tau']:g}: while training, each class's logit gets a bias that grows with the "
            "class's share of the training images, so that the classifier need not learn that share itself. The bias "
            "is not part of the saved model"
        )
    adjusted = _adjustment(config)
    if not _is_livt(config):
        return f"- Start: {start}.\n- Loss: {loss}.\n{adjusted}- Architecture: {_kind(config)}."
    pooling = "the mean of the patch tokens" if config.get("use_mean_pooling", True) else "the CLS token"
    return (
        f"- Start: {start}.\n"
        f"- Loss: {loss}.\n"
        f"{adjusted}"
        f"- Architecture: {config['num_hidden_layers']} blocks of width {config['hidden_size']}, patches of "
        f"{config['patch_size']} x {config['patch_size']} pixels, {pooling} before a linear classifier; saved as "
        "`BeitForImageClassification`."
    )


def _adjustment(config: Mapping[str, Any]) -> str:
    """The line that names what `livt adjust` folded into the classifier, if it did."""
    adjustment = config.get("adjustment")
    if not adjustment:
        return ""
    target = adjustment["target_prior"]
    words = [f"target prior {escape_markdown(target) if isinstance(target, str) else 'from a file'}"] if target else []
    words += [f"tau-norm {adjustment['tau_norm']:g}"] if adjustment["tau_norm"] is not None else []
    words += [f"temperature {adjustment['temperature']:.4g}"] if adjustment["temperature"] != 1.0 else []
    return f"- Adjusted after the training, with `livt adjust`: {', '.join(words) or 'nothing changed'}.\n"


def _recorded(run: Mapping[str, Any] | None) -> list[str]:
    """Hyperparameters, command and versions of the training, if the run left a record."""
    if run is None:
        return []
    libraries = ", ".join(f"{library} {version}" for library, version in run["versions"].items())
    command = code_block(training_command("finetune", run))
    return [
        hyperparameters(run),
        f"The command, every option that is not a default:\n\n{command}",
        f"With {libraries}.",
    ]


def _class_figures(results: Mapping[str, Any]) -> str:
    """Figures over classes, and how well the tail's accuracy is known."""
    text = (
        f"Over classes: mean **{percent(results['macro_accuracy'])} %**, harmonic mean "
        f"{percent(results['harmonic_mean'])} %, worst class {percent(results['worst_class'])} %."
    )
    return text if results["top5"] is None else f"{text} Top-5 accuracy: {percent(results['top5'])} %."


def _shift(name: str, results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """How to make the model expect other class frequencies. `livt adjust` refuses what it has adjusted already."""
    if config.get("adjustment"):
        return (
            "`livt adjust` has changed this classifier already (see Training) and takes no model twice. Where your "
            "images follow other class frequencies than it takes for granted (see Limits), restore it first, in the "
            "folder that `livt adjust` wrote: a published copy lacks the original weights.\n\n"
            + code_block("livt adjust --model FOLDER --undo --output_dir original")
        )
    target = "train" if _assumes_uniform(results, config) else "uniform"  # the other one would change nothing
    command = f"livt adjust --model {shlex.quote(name)} --target_prior {target} --output_dir adjusted"
    return (
        "Where your images follow other class frequencies than the model takes for granted (see Limits), fold the "
        f"difference into its logits; `uniform`, `train` or a JSON file `{{class: share}}`:\n\n{code_block(command)}"
    )


def _widget(folder: Path, repo_id: str | None) -> list[dict[str, str]] | None:
    """Example images for the Hub's widget; it needs their addresses, hence a repository."""
    images = sorted(file for file in (folder / EXAMPLES).glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if repo_id is None or not images:
        return None
    base = f"https://huggingface.co/{repo_id}/resolve/main/{EXAMPLES}"
    return [{"src": f"{base}/{quote(file.name)}", "example_title": " ".join(file.stem.split())} for file in images]


def _tested_tail(results: Mapping[str, Any]) -> str:
    """How many test images stand behind the few-shot accuracy."""
    groups = ClassPrior(results["class_counts"]).groups(**results["groups"]["definition"])
    names = list(results["class_counts"])
    tested = [results["test_counts"][names[label]] for label in groups["few"] if results["test_counts"][names[label]]]
    if not tested:
        return "No few-shot class was tested: nothing is known of its accuracy on the tail."
    fewest = min(tested)
    return (
        f"The few-shot accuracy is the mean over {len(tested):,} classes tested on {sum(tested):,} images: one more "
        f"right answer in a class with {fewest:,} test image{'s' if fewest > 1 else ''} moves its accuracy by "
        f"{100 / fewest:.3g} points."
    )


def _limits(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    smallest = min(results["class_counts"].values())
    few_images = f"{smallest:,} image{'s' if smallest > 1 else ''}"
    return "\n".join(
        [
            "- The accuracy of rare classes is less certain than that of frequent ones: the smallest class was learned "
            f"from {few_images}, and what these do not show, the model does not know. Look at the few-shot figure "
            "before you rely on a rare class, not at the overall one.",
            f"- {_tested_tail(results)}",
            f"- {_assumed_frequencies(results, config)}",
            f"- A probability is no guarantee: on average it was {percent(results['ece'])} points away from the share "
            "of right answers, and images unlike the training images also get confident predictions.",
            "- It has not been examined for bias against groups of people, and is not meant for decisions about them.",
        ]
    )


def _assumed_frequencies(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The class frequencies that the logits assume: those of an adjustment's target prior, otherwise proportional to
    (training share) ** (1 - tau).
    """
    adjustment = config.get("adjustment") or {}
    advice = "undo the adjustment first, as shown above" if adjustment else "shift the prior as shown above"
    if adjustment.get("tau_norm") is not None:
        return "Its classifier was tau-normalized: which class frequencies its probabilities assume is not known."
    target = adjustment.get("target_prior")
    if isinstance(target, Mapping):
        return (
            f"Its probabilities assume {_given_shares(target)}. Where your images follow other frequencies, {advice}."
        )
    if target == "train":
        return (
            "Its probabilities take the classes to be as frequent as in the training images: where they are not, "
            f"expect it to predict the classes that were rare there too seldom, and {advice}."
        )
    if target == "uniform" or _assumes_uniform(results, config):
        return (
            "Its probabilities take every class to be equally likely. Where your images follow other frequencies, "
            f"{advice}."
        )
    if not _is_balanced(results) or results["tau"] < 1.0:
        return (
            "Its loss does not undo the class frequencies of the training images, at most part of them: expect it to "
            "predict rare classes too seldom."
        )
    return "It leans towards the classes that were rare in training: frequent ones are predicted too seldom."


def _given_shares(shares: Mapping[str, float]) -> str:
    """The ends of a target prior that somebody wrote down; its shares may be counts."""
    total = sum(shares.values())
    most, least = (
        f"{escape_markdown(name)} ({100 * shares[name] / total:.3g} %)"
        for name in (max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__))
    )
    return f"the class frequencies that it was adjusted to, from {most} to {least}"


def _assumes_uniform(results: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the training made the logits those of equally likely classes."""
    return _is_balanced(results) and results["tau"] == 1.0 or bool(config.get("class_balanced_batches"))


def _is_balanced(results: Mapping[str, Any]) -> bool:
    return results["loss"] in BALANCED_LOSSES


def _data_name(results: Mapping[str, Any]) -> str:
    split = f" ({escape_markdown(results['split'])} split)" if results.get("split") else ""
    return escape_markdown(public_name(results["dataset"])) + split


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"


def ensure_card(folder: str | Path, repo_id: str) -> None:
    """Write README.md unless there is one: from the evaluation or the pretraining that the folder tells of."""
    folder = Path(folder)
    if not folder.is_dir() or (folder / "README.md").exists():
        return
    if read_json(folder, "config.json").get("architectures") == ["ViTMAEForPreTraining"]:
        write_pretraining_card(folder, repo_id=repo_id)
        return
    for results in (folder / "results.json", folder / "evaluation" / "results.json"):
        if results.is_file():
            write_model_card(folder, read_json(results.parent, results.name), repo_id=repo_id)
            return
    write_text(folder / "README.md", plain_card(folder, repo_id, "An image classifier. It was not evaluated."))


def plain_card(folder: Path, repo_id: str, text: str) -> str:
    """README.md of a model of which no more is known; ``text`` is Markdown."""
    is_autoencoder = read_json(folder, "config.json").get("architectures") == ["ViTMAEForPreTraining"]
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction" if is_autoencoder else "image-classification",
        tags=TAGS,
    )
    title = escape_markdown(repo_id.split("/")[-1])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}\n"))
