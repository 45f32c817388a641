"""Convert an official LiVT or MAE checkpoint, or a timm model, into a folder for transformers; or back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config.hub_ids import check_reachable
from ..config.options import AT_LEAST_1, Options, option
from .console import read_options

EXAMPLES = (
    "livt convert checkpoint.pth classifier --source livt-finetune --labels names.txt",
    "livt convert classifier checkpoint.pth --to official",
)


@dataclass
class ConvertArguments(Options):
    """Options of `livt convert`."""

    TITLE: ClassVar[str] = "Conversion"

    input: str = option("", "Official .pth file; timm: folder, hf-hub:ID or name.", positional="IN")
    output: str = option("", "New folder; with --to official: new .pth file.", positional="OUT")
    source: Literal["livt-finetune", "livt-pretrain", "mae", "timm"] | None = option(None, "Format of IN.")
    to: Literal["official"] | None = option(None, "Convert back: IN is a model folder.")
    labels: str | None = option(None, "Class names in label order: one per line, or JSON.")
    class_counts: str | None = option(None, "JSON: number of training images by class name, or a list in label order.")
    dataset: (
        Literal["imagenet-lt", "inat18", "imagenet-bal", "places-lt", "cifar10-lt", "cifar100-lt", "imagenet"] | None
    ) = option(None, "Training dataset, for mean and std of its images (default: as recorded in the checkpoint).")
    num_attention_heads: int | None = option(None, "Needed for widths outside the ViT family.", AT_LEAST_1)
    decoder_num_attention_heads: int | None = option(None, "Needed for decoder widths other than 512.", AT_LEAST_1)
    norm_pix_loss: bool | None = option(None, "Whether targets are normalized per patch (default: as recorded in IN).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source is None) == (self.to is None):
            raise ValueError("source: give either --source (the format of IN) or --to official")


def run(argv: list[str]) -> int:
    args = read_options(ConvertArguments, argv, "livt convert", __doc__, EXAMPLES)
    check_reachable("input", args.input.removeprefix("hf-hub:"))
    from ..conversion.official import convert_checkpoint, convert_to_official
    from ..conversion.timm_format import convert_timm
    from ..training.lock import lock_folder

    if args.source is None:
        print(f"wrote {convert_to_official(args.input, args.output)} tensors to {args.output}")
        return 0
    with lock_folder(args.output):
        if args.source == "timm":
            conversion = convert_timm(args.input, args.output, labels=args.labels, class_counts=args.class_counts)
        else:
            conversion = convert_checkpoint(
                args.input,
                args.output,
                args.source,
                labels=args.labels,
                class_counts=args.class_counts,
                dataset=args.dataset,
                num_attention_heads=args.num_attention_heads,
                decoder_num_attention_heads=args.decoder_num_attention_heads,
                norm_pix_loss=args.norm_pix_loss,
            )
    print(conversion)
    print(f"{args.output} contains the {conversion.kind}, its image processor and a card")
    return 0
