"""`livt predict`: classify image files.

The model and its image processor are loaded natively, so that the probabilities are those of
`pipeline("image-classification", DIR)`. One difference is intended: 16-bit gray images are scaled to 8 bits as in
training, whereas PIL (and with it the pipeline) clips them at 255.
"""

from __future__ import annotations

import csv
import glob
import json
import logging
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps
import torch
from tqdm.auto import tqdm

from ..class_names import class_names, printable
from ..data import decode_image
from ..data.sources.walk import describe_content, image_paths
from ..files import read_json
from ..models.loading import load_classifier
from ..reporting.blocks import counted, csv_cell
from .predictions import choose_device
from .test_time import VIEWS, ViewProcessor, ensemble_logits

LARGE_ECE = 10.0  # percent, from which scores of a model mislead

logger = logging.getLogger(__name__)


def predict_images(
    model: str | Path,
    paths: Sequence[str | Path],
    top_k: int = 5,
    batch_size: int = 16,
    device: str | None = None,
    probabilities: bool = False,
    tta: str = "none",
) -> Iterator[dict[str, Any]]:
    """Most probable classes of each image, in the order of ``paths``.

    Args:
        model: folder or Hub id of an image classifier.
        paths: image files.
        top_k: number of classes per image (all, if the model has fewer).
        probabilities: also give the probability of every class.
        tta: test-time ensembling, a key of `test_time.VIEWS`; scores and probabilities are then means over the views.

    Yields:
        ``{"image": path, "predictions": [{"label", "score"}, ...]}``, most probable class first, with ``probabilities``
        also ``"probabilities": {label: probability}`` in label order; for an unreadable file ``{"image": path,
        "error": message}``.

    Raises:
        ValueError: the model cannot be loaded, ``top_k`` or ``batch_size`` is below 1, or see `ViewProcessor`.
    """
    for option, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{option}: {value}; at least 1 is needed")
    device = choose_device(device)
    classifier, image_processor = load_classifier(model)
    views = ViewProcessor(image_processor, tta)
    if tta != "none":
        logger.info(f"tta: {tta}; scores are means over {VIEWS[tta]} views of each image")
    classifier.to(device).eval()  # type: ignore[arg-type]
    for start in range(0, len(paths), batch_size):
        yield from _predict_batch(classifier, views, paths[start : start + batch_size], top_k, probabilities)


def calibration_advice(model: str | Path) -> str | None:
    """How to calibrate a model, if the results in its folder say that its scores are far from its accuracy."""
    folder = Path(model)
    place = next((place for place in (folder, folder / "evaluation") if (place / "results.json").is_file()), None)
    try:
        results = {} if place is None else read_json(place, "results.json")
    except ValueError:  # damaged: the predictions do not need it
        return None
    ece = results.get("ece") or 0.0
    if ece < LARGE_ECE or results.get("adjustment"):
        return None
    return (
        f"scores and accuracy of this model differ by {ece:.1f} points on average (ECE); to calibrate it: livt adjust "
        f"--model {shlex.quote(str(model))} --temperature fit --dataset DATASET --output_dir calibrated"
    )


@torch.inference_mode()
def _predict_batch(
    classifier: Any, views: ViewProcessor, paths: Sequence[str | Path], top_k: int, all_classes: bool
) -> list[dict[str, Any]]:
    images: list[torch.Tensor] = []
    results: list[dict[str, Any]] = [{"image": str(path)} for path in paths]
    for result in results:
        try:
            image = _read_image(result["image"])
            images.append(views(image))  # (V, 3, H, W)
        except ValueError as error:
            result["error"] = str(error)
    if not images:
        return results
    pixel_values = torch.stack(images).to(classifier.device, classifier.dtype)  # (B, V, 3, H, W)
    logits = [classifier(view).logits.float() for view in pixel_values.unbind(dim=1)]  # V times (B, C)
    probabilities = (logits[0] if len(logits) == 1 else ensemble_logits(logits)).softmax(dim=-1)  # (B, C)
    scores, labels = probabilities.topk(min(top_k, probabilities.shape[1]))
    names = class_names(classifier.config)
    rows = zip(scores.tolist(), labels.tolist(), probabilities.tolist(), strict=True)
    for result in results:
        if "error" not in result:
            best_scores, best_labels, of_all = next(rows)
            result["predictions"] = [
                {"label": names[label], "score": score} for score, label in zip(best_scores, best_labels, strict=True)
            ]
            if all_classes:
                result["probabilities"] = dict(zip(names, of_all, strict=True))
    return results


def _read_image(path: str) -> PIL.Image.Image:
    """Read an image like a pipeline, keeping transparency in its metadata, which the processor uses."""
    try:
        with PIL.Image.open(path) as image:
            if not image.mode.startswith("I"):
                return PIL.ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        pass  # `decode_image` raises a one-line error
    return PIL.Image.fromarray(decode_image(path).permute(1, 2, 0).contiguous().numpy())


def abstain_below(results: Iterable[dict[str, Any]], min_score: float) -> Iterator[dict[str, Any]]:
    """Take the labels from results whose best score is below ``min_score``; log at the end how many these were.

    Yields:
        The results of `predict_images`. Where the model abstains, every ``label`` is None, the scores and the
        ``probabilities`` stay, and ``"abstained": True`` is added.

    Raises:
        ValueError: ``min_score`` is not in 0 to 1.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score: {min_score}; a probability from 0 to 1 is needed")
    return _abstained(results, min_score)


def _abstained(results: Iterable[dict[str, Any]], min_score: float) -> Iterator[dict[str, Any]]:
    abstained = images = 0
    for result in results:
        images += "predictions" in result
        if "predictions" in result and result["predictions"][0]["score"] < min_score:
            abstained += 1
            scores = [{"label": None, "score": prediction["score"]} for prediction in result["predictions"]]
            result = {**result, "abstained": True, "predictions": scores}
        yield result
    logger.info(f"{abstained:,} of {counted(images, 'image')} without a label: their best score is below {min_score:g}")


def find_images(sources: Sequence[str]) -> list[str]:
    """Expand files, folders (searched recursively) and glob patterns to a list of image files.

    Sorted within each source, without duplicates. A file that does not exist is kept; `predict_images` reports it.

    Raises:
        ValueError: a folder without images, or a pattern (``*``, ``?``, ``[...]``, ``**``) that matches nothing.
    """
    files: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = image_paths(source)
            if not found:
                raise ValueError(
                    f"images: the folder {source!r} contains no image files ({describe_content(path)}); give another "
                    "folder or a pattern"
                )
        elif not path.exists() and glob.has_magic(source):
            found = sorted(match for match in glob.glob(source, recursive=True) if Path(match).is_file())
            if not found:
                raise ValueError(f"images: {source!r} matches no file; quote the pattern, and check the folder")
        else:
            found = [source]
        files += found
    return list(dict.fromkeys(files))


def write_predictions(results: Iterable[dict[str, Any]], file: str | Path) -> int:
    """Write results as they arrive, errors also to stderr; return the number of images that could not be read.

    ``.jsonl``: one result of `predict_images` or `abstain_below` per line. ``.csv``: ``image, error, label_1, score_1,
    ... label_k, score_k``, most probable class first, then a column per class if the results have the probabilities of
    all. Text is written so that a spreadsheet does not run it (`csv_cell`).

    Raises:
        ValueError: another suffix, or a file that cannot be written.
    """
    file = Path(file)
    errors = 0
    with _open_output(file) as stream:
        rows = iter(results)
        first = []  # up to the first readable image, whose predictions determine the columns
        for result in rows:
            first.append(result)
            if "predictions" in result:
                break
        table = csv.writer(stream, lineterminator="\n")
        example = first[-1] if first else {}
        places, names = range(1, len(example.get("predictions", [])) + 1), list(example.get("probabilities", {}))
        if file.suffix == ".csv":
            columns = [f"{name}_{place}" for place in places for name in ("label", "score")]
            table.writerow(map(csv_cell, ["image", "error", *columns, *names]))
        for result in chain(first, rows):
            if "error" in result:
                errors += 1
                tqdm.write(f"error: {printable(result['error'])}", file=sys.stderr)
            if file.suffix == ".csv":
                predictions = result.get("predictions", [])
                values = [value for prediction in predictions for value in (prediction["label"], prediction["score"])]
                values = [*values, *result.get("probabilities", {}).values()] or [""] * (2 * len(places) + len(names))
                table.writerow(map(csv_cell, [result["image"], result.get("error", ""), *values]))
            else:
                stream.write(json.dumps(result, ensure_ascii=False) + "\n")
    return errors


def _open_output(file: Path) -> Any:
    if file.suffix not in (".jsonl", ".csv"):
        raise ValueError(f"output: {str(file)!r} must end in .jsonl or .csv, which determines the format")
    try:
        return file.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise ValueError(f"output: {str(file)!r} cannot be written: {error.strerror}") from None


def format_predictions(result: dict[str, Any]) -> str:
    """Format one result of `predict_images`, or of `abstain_below`, for the terminal."""
    if result.get("abstained"):
        score = 100 * result["predictions"][0]["score"]
        return f"{printable(result['image'])}\n  {score:6.2f} %  (no label: below --min_score)"
    lines = [
        f"  {100 * prediction['score']:6.2f} %  {printable(prediction['label'])}"
        for prediction in result["predictions"]
    ]
    return "\n".join([printable(result["image"]), *lines])


def print_predictions(results: Iterable[dict[str, Any]]) -> int:
    """Print results as they arrive, errors to stderr; return 1 if an image could not be read, otherwise 0."""
    exit_code = 0
    for result in results:
        if "error" in result:
            print(f"error: {printable(result['error'])}", file=sys.stderr)
            exit_code = 1
        else:
            print(format_predictions(result), flush=True)
    return exit_code
