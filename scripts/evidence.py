"""Write model_cards/EVIDENCE.md with its figure, and the tables of README.md, model_cards/README.md and
livt_hf/data/README.md, from the records in model_cards/: python scripts/evidence.py

`--add FOLDER OUTPUT_DIR ...` first copies the results in output folders of `livt compare`, `livt pretrain` or
`livt quickstart` to model_cards/comparisons/FOLDER; in `held-out` and `light`, of `livt finetune`. A new set of runs
needs an entry in model_cards/comparisons/sets.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from documents import light
from documents.figure import drawn, evidence_figure
from documents.page import FIGURE, evidence_page
from documents.records import COMPARISONS, HELD_OUT, MODEL_CARDS, QUICKSTART, SETS, add, read_sets
from documents.tables import quickstart_runs, quickstart_table, write_sections
from livt_hf.files import read_json, read_run
from livt_hf.reporting.chart_style import NARROW, save_png
from livt_hf.reporting.comparison_charts import quickstart_figure


def write_documents() -> None:
    (MODEL_CARDS / "EVIDENCE.md").write_text(evidence_page(), encoding="utf-8")
    panels = [one for one in read_sets() if one.panel]
    save_png(evidence_figure(panels), MODEL_CARDS / FIGURE, source=drawn(panels))
    picture = MODEL_CARDS / "images" / "quickstart.png"
    save_png(quickstart_figure(quickstart_runs(), NARROW), picture, source=quickstart_table())
    write_sections()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--add",
        choices=[*read_json(COMPARISONS, SETS), QUICKSTART, HELD_OUT, light.FOLDER],
        metavar="FOLDER",
        help="subfolder of model_cards/comparisons/",
    )
    parser.add_argument("output_dir", nargs="*", type=Path, help="with --add: output folders to copy from")
    args = parser.parse_args()
    try:
        for output_dir in args.output_dir:
            pretrained = "mask_ratio" in (read_run(output_dir) or {"arguments": {}})["arguments"]
            add_to = light.add_run if args.add == light.FOLDER and not pretrained else add
            add_to(COMPARISONS / args.add, output_dir)
        write_documents()
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
