"""Try a trained classifier in the browser, or write the demo as a Space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.groups import DataSource
from ..config.options import option
from .console import read_options

EXAMPLES = (
    "livt demo --model classifier --dataset photos",
    "livt demo --model org/livt-vit-b --dataset photos --export_space space",
)


@dataclass
class DemoArguments(DataSource):
    """Options of `livt demo`."""

    TITLE: ClassVar[str] = "Demo"
    REQUIRED: ClassVar[tuple[str, ...]] = ("model",)

    model: str = option("", "Folder or Hub id of the classifier.")
    mae: str | None = option(None, "Pretrained autoencoder that reconstructs masked patches.")
    split: str | None = option(
        None, "Split of the examples, the largest and smallest classes of --dataset (default: test, or validation)."
    )
    host: str = option("127.0.0.1", "Address to serve on; 0.0.0.0: other machines reach it, too.")
    port: int = option(7860, "Port.")
    share: bool = option(False, "Also serve at a public address of Gradio's, through its servers, for up to a week.")
    export_space: str | None = option(None, "New folder to write a Space for the Hub to, instead of serving.")


def run(argv: list[str]) -> int:
    args = read_options(DemoArguments, argv, "livt demo", __doc__, EXAMPLES)
    from ..demo.serve import demo

    demo(
        args.model,
        mae=args.mae,
        dataset=args.dataset or None,
        split=args.split,
        host=args.host,
        port=args.port,
        share=args.share,
        export_space=args.export_space,
        **args.source_options(),
    )
    if args.export_space:
        print(f"{args.export_space} contains the Space; it shows the examples: look at them before you publish it")
    return 0
