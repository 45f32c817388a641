"""Write the features of images to a Parquet file: file, label, vector."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..config.groups import DataSource, InferenceArguments
from ..config.options import option
from .console import read_options

EXAMPLES = (
    "livt embed --model classifier --dataset photos --output features.parquet",
    "livt embed --model facebook/dinov2-small --images 'new/**/*.jpg' --output features.parquet",
)


@dataclass
class EmbedArguments(InferenceArguments, DataSource):
    """Options of `livt embed`."""

    TITLE: ClassVar[str] = "Features"
    REQUIRED: ClassVar[tuple[str, ...]] = ("model", "output")

    images: list[str] = option([], "Image files, folders, 'patterns/**/*.jpg', in place of --dataset.")
    model: str = option("", "Folder or Hub id of a classifier, vision tower or masked autoencoder.")
    output: str = option("", "FILE.parquet.")
    split: str | None = option(None, "Split of the dataset (default: all, named in the column split).")

    def require(self) -> None:
        super().require()
        if bool(self.images) == bool(self.dataset):
            found = "both were given; leave one out" if self.images else "none was given; name one with --dataset"
            raise ValueError(f"dataset: a dataset or images, {found}")
        if self.images and self.split is not None:
            raise ValueError("split: image files have no splits; leave it out, or name a --dataset")


def run(argv: list[str]) -> int:
    args = read_options(EmbedArguments, argv, "livt embed", __doc__, EXAMPLES)
    from ..evaluation.embed import check_output, embed, image_files
    from ..evaluation.predict import find_images
    from ..evaluation.splits import held_out_as_trained, open_dataset
    from ..reporting.blocks import counted

    check_output(Path(args.output))
    log = Path(f"{args.output}.unreadable.log")
    options: dict[str, Any] = {"batch_size": args.batch_size, "num_workers": args.num_workers, "device": args.device}
    if args.images:
        number, unreadable = embed(
            args.model, image_files(find_images(args.images)), args.output, bad_images_log=log, **options
        )
    else:
        held_out = held_out_as_trained(args.model, args.dataset, args.source_options())
        splits, _ = open_dataset(args.dataset, args.split, **held_out)
        chosen = {name: split for name, split in splits.items() if args.split in (None, name)}
        number, unreadable = embed(args.model, chosen, args.output, bad_images_log=log, **options)
    print(f"{counted(number - unreadable, 'image')} embedded: {args.output}")
    if unreadable:
        print(f"cannot be read (no vector): {unreadable:,}; see {shlex.quote(str(log))}")
    return int(unreadable > 0)
