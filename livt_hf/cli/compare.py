"""Compare losses, seeds, pretraining and model sizes in one table, as the paper's ablation does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from ..config.options import Options, option
from ..config.parsing import parse_known
from .console import check_hub_ids, hide_loading_bars

EXAMPLES = (
    "livt compare --losses ce,bal_ce,bce,bal_bce --pretrained mae --dataset photos --output_dir comparison",
    "livt compare --losses bce,bal_bce --seeds 0,1,2 --recipe digits --output_dir comparison",
)


@dataclass
class CompareArguments(Options):
    """Options of `livt compare`, beside those of `livt finetune`."""

    TITLE: ClassVar[str] = "Comparison"
    REQUIRED: ClassVar[tuple[str, ...]] = ("losses", "output_dir")

    losses: list[str] = option([], "Losses to compare.", commas=True)
    seeds: list[str] = option(["0"], "Seeds; each is a run.", commas=True)
    pretrained: list[str] = option(
        [], "Checkpoints to start from; none: from scratch (default: as for `livt finetune`).", commas=True
    )
    model_sizes: list[str] = option(
        [], "ViT sizes, without --pretrained (default: as for `livt finetune`).", commas=True
    )
    post_hoc: list[str] = option(
        [], "logit_adjustment, tau_norm: also applied to runs with an unbalanced loss.", commas=True
    )
    output_dir: str = option("", "Folder for the runs, tables, pictures and the report.")


def run(argv: list[str]) -> int:
    epilog = "Further options are those of `livt finetune`, the same for every run."
    args, options = parse_known(CompareArguments, argv, "livt compare", __doc__, EXAMPLES, epilog)
    for single, several in (("loss", "losses"), ("seed", "seeds"), ("model_size", "model_sizes")):
        if any(word.split("=")[0] == f"--{single}" for word in options):
            raise ValueError(f"{single}: the runs differ in it; list the values with --{several}")
    check_hub_ids(args)
    hide_loading_bars()
    from ..reporting.comparison_report import difference_sentences, verdict_sentences
    from ..reporting.comparison_table import comparison_table
    from ..training.comparison import compare

    axes = (args.losses, args.seeds, args.pretrained, args.model_sizes)
    comparison = compare(options, args.output_dir, *axes, post_hoc=args.post_hoc)
    if comparison is not None and int(os.environ.get("RANK", 0)) == 0:
        verdict = [" ".join(sentences)] if (sentences := verdict_sentences(comparison)) else []
        lines = [comparison_table(comparison["rows"]), *difference_sentences(comparison), *verdict]
        print("\n" + "\n\n".join(lines) + f"\n\nreport: {args.output_dir}/report.html")
    return 0
