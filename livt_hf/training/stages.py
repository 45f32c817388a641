"""What both stages make of their options: the training images, and the sizes of the encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..config.arguments import FinetuneArguments, PretrainArguments, StageArguments
from ..data import ImageDataset
from ..data.streaming import ImageStream, StreamedSamples, load_stream
from ..models.configuration_livt import VIT_SIZES


def open_stream(args: StageArguments) -> ImageStream:
    """The training split of ``--streaming``; its class counts are read from ``--class_counts`` or counted once."""
    counts = None
    if args.class_counts is not None:
        try:
            counts = json.loads(Path(args.class_counts).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"class_counts: cannot read {args.class_counts!r} as JSON: {error}") from None
    if args.imbalance_factor is not None:
        raise ValueError("imbalance_factor: a stream is taken as it is; leave out --streaming to cut a long tail")
    return load_stream(
        args.dataset, image_column=args.image_column, label_column=args.label_column, class_counts=counts
    )


def training_dataset(
    args: StageArguments,
    images: Dataset | ImageStream,
    transform: Callable[..., Any],
    num_processes: int,
    process_index: int,
) -> ImageDataset | StreamedSamples:
    """Transformed training images, from a data set or a stream."""
    options: dict[str, Any] = {
        "seed": args.seed,
        "max_bad_images": args.max_bad_images,
        "bad_images_log": Path(args.output_dir) / "bad_images.log",
    }
    if isinstance(images, ImageStream):
        return StreamedSamples(images, transform, num_processes, process_index, **options)
    return ImageDataset(images, transform, **options)


def encoder_sizes(args: StageArguments) -> dict[str, Any]:
    """Width, depth, heads and MLP width of ``--model_size``, or what was given instead."""
    sizes = {name: getattr(args, name) or default for name, default in VIT_SIZES[args.model_size].items()}
    width = sizes["hidden_size"]
    check_width("", width, sizes["num_attention_heads"])
    return {**sizes, "intermediate_size": 4 * width}


def unused_sizes(args: PretrainArguments | FinetuneArguments, config: Any) -> str | None:
    """What to say where sizes were given, but a pretrained model brings its own; None where nothing is lost."""
    names = ["hidden_size", "num_hidden_layers", "num_attention_heads"]
    if args.patch_size != type(args).patch_size:  # its default was hardly asked for
        names.append("patch_size")
    given = {name: getattr(args, name) for name in names}
    unused = [f"{name} {value}" for name, value in given.items() if value not in (None, getattr(config, name, None))]
    return f"{', '.join(unused)}: not used, the sizes are those of {args.pretrained}" if unused else None


def check_width(prefix: str, width: int, heads: int) -> None:
    if width % heads or width % 4:
        raise ValueError(
            f"{prefix}hidden_size: {width} must be divisible by {prefix}num_attention_heads {heads} and, for the 2-d "
            "position embeddings, by 4"
        )
