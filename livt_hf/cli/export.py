"""Export a trained classifier to timm or ONNX and compare it with the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..config.groups import DataSource
from ..config.options import AT_LEAST_1, option, redefine
from .console import read_options

EXAMPLES = (
    "livt export --model classifier --format timm --output_dir classifier-timm",
    "livt export --model classifier --format onnx --dataset photos --output_dir classifier-onnx",
)


@dataclass
class ExportArguments(DataSource):
    """Options of `livt export`."""

    TITLE: ClassVar[str] = "Export"
    REQUIRED: ClassVar[tuple[str, ...]] = ("model", "format", "output_dir")

    model: str = option("", "Folder or Hub id of the classifier.")
    format: Literal["timm", "onnx"] | None = option(None, "Format to write.")
    output_dir: str = option("", "New folder.", aliases=["output"])
    dataset: str = redefine(
        DataSource, "dataset", "", help="onnx: dataset to compare on (default: the one of the training, else noise)."
    )
    split: str | None = option(None, "onnx: split to compare on (default: test, else validation, else train).")
    num_images: int = option(64, "onnx: number of images.", AT_LEAST_1)


def run(argv: list[str]) -> int:
    args = read_options(ExportArguments, argv, "livt export", __doc__, EXAMPLES)
    from ..training.lock import lock_folder

    with lock_folder(args.output_dir):
        return _export(args)


def _export(args: ExportArguments) -> int:
    from ..conversion.onnx_format import export_onnx
    from ..conversion.timm_format import export_timm
    from ..reporting.blocks import counted

    if args.format == "timm":
        difference = export_timm(args.model, args.output_dir)
        print(f"logits differ by at most {difference:.1e} after loading with timm")
        print(f'timm.create_model("local-dir:{args.output_dir}", pretrained=True)')
        return 0
    options = args.source_options()
    result = export_onnx(args.model, args.output_dir, args.dataset or None, args.split, args.num_images, **options)
    print(
        f"{counted(result['images'], 'image')} of {result['dataset']}: logits differ by at most "
        f"{result['largest_difference']:.1e}, {result['top1_agreement']:.1f} % the same prediction; onnxruntime "
        f"{result['speed_ratio']:.2f} times as fast as torch on {counted(result['threads'], 'thread')}; "
        f"{args.output_dir}/check.json"
    )
    return 0
