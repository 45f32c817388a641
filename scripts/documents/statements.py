"""The paper's statements, our differences with intervals, and a verdict by rule; its model sizes beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livt_hf.losses import SHORT_NAMES
from livt_hf.reporting.blocks import counted, markdown_table, percent

from .intervals import Estimate
from .published import published_difference, published_sizes
from .records import ALL, BALANCED, LOSSES, NONE, TAIL, Run, RunSet, autoencoder, difference_of, mean_of, select

RULE = (
    "**Rule.** A difference counts (bold) where its 95 % interval excludes 0; one from fewer than three runs per "
    "side has no interval (italics) and cannot count. *Holds*: with the paper's sign it counts in every setting "
    "that has an interval, and none without one has the other sign. *In part*: it counts so in some. *Not seen*: in "
    "none. In parentheses, the settings in which it counts with the paper's sign, out of those with an interval, and "
    "those without an interval that have the other sign."
)


@dataclass(frozen=True)
class Statement:
    """A difference between two kinds of runs, each a loss and a kind of pretraining.

    Attributes:
        sign: of the paper's difference; 0 if it states none.
    """

    text: str
    first: tuple[str, str]
    second: tuple[str, str]
    measure: str
    sign: int

    def difference(self, runs: Sequence[Run]) -> Estimate | None:
        return difference_of(select(runs, *self.first), select(runs, *self.second), self.measure)

    @property
    def published(self) -> float | None:
        """The paper's difference, if it gives both sides."""
        return published_difference(self.first, self.second, self.measure)


def losses(text: str, first: str, second: str, measure: str, sign: int) -> Statement:
    return Statement(text, (first, TAIL), (second, TAIL), measure, sign)


STATEMENTS = (
    losses("BCE loses the tail: few-shot, BCE − CE", "bce", "ce", "few", -1),
    losses("Bal-BCE mends BCE: all, Bal-BCE − BCE", "bal_bce", "bce", ALL, 1),
    losses("the same, few-shot", "bal_bce", "bce", "few", 1),
    losses("Bal-CE mends CE: all, Bal-CE − CE", "bal_ce", "ce", ALL, 1),
    losses("the same, few-shot", "bal_ce", "ce", "few", 1),
    losses("Bal-BCE beats Bal-CE: all, Bal-BCE − Bal-CE", "bal_bce", "bal_ce", ALL, 1),
    Statement("Pretraining helps: all, CE, MAE − none", ("ce", TAIL), ("ce", NONE), ALL, 1),
    Statement("the same, Bal-BCE", ("bal_bce", TAIL), ("bal_bce", NONE), ALL, 1),
    Statement("Pretraining images: all, CE, balanced − long-tailed", ("ce", BALANCED), ("ce", TAIL), ALL, 0),
    losses("Bal-BCE is better calibrated: ECE, Bal-BCE − BCE", "bal_bce", "bce", "ece", -1),
    losses("the same, MCE", "bal_bce", "bce", "mce", -1),
)


def verdict(sign: int, differences: Sequence[Estimate | None]) -> str:
    """`RULE`; a dash if the paper states no sign, or nothing was measured."""
    measured = [one for one in differences if one is not None]
    if not sign or not measured:
        return "–"
    tested = [one for one in measured if one.half is not None]
    if not tested:
        return "too few runs"
    agreeing = [one for one in tested if one.sign == sign]
    contrary = [one for one in measured if one.half is None and one.value * sign <= 0]
    word = "in part" if agreeing else "not seen"
    if len(agreeing) == len(tested) and not contrary:
        word = "holds"
    against = f", {len(contrary)} contrary" if contrary else ""
    return f"**{word}** ({len(agreeing)} of {len(tested)}{against})"


def difference_words(difference: Estimate | None) -> str:
    """ "**+15.6** (+13.9 to +17.3)", without bold if 0 is in the interval; "*+3.9*" without an interval."""
    if difference is None:
        return "–"
    value = _signed(difference.value)
    if difference.ends is None:
        return f"*{value}*"
    low, high = map(_signed, difference.ends)
    return f"{f'**{value}**' if difference.sign else value} ({low} to {high})"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")  # no -0.0


def statements_table(sets: Sequence[RunSet]) -> str:
    """The statements with the paper's difference, verdict, and ours in every setting, in points."""
    runs = {f"{one.short} ({_runs_words(one.runs)})": one.runs for one in sets}
    rows = []
    for statement in STATEMENTS:
        found = [statement.difference(members) for members in runs.values()]
        published = "–" if statement.published is None else _signed(statement.published)
        rows.append([statement.text, published, verdict(statement.sign, found), *map(difference_words, found)])
    header = ["Statement (difference in points)", "Paper", "Verdict", *runs]
    return markdown_table(header, rows, "lrl" + "r" * len(runs))


def _runs_words(runs: Sequence[Run]) -> str:
    """Runs of the loss that has most, and autoencoders that they start from; other rows may have fewer."""
    most = max((select(runs, loss) for loss in LOSSES), key=len)
    starts = len({autoencoder(run) for run in most})
    most_runs = f"up to {counted(len(most), 'run')}" if len(most) > 1 else "1 run"
    return most_runs + (f", {starts} autoencoders" if starts > 1 else "")


def size_table(sets: Sequence[RunSet]) -> str:
    """Macro accuracy by model size: the paper's and ours, smallest model first."""
    names = ("ce", "bce", "bal_bce")
    published = published_sizes()
    cells = (" / ".join(percent(size[loss]["accuracy"]) for size in published) for loss in names)
    rows = [["ImageNet-LT (paper)", " / ".join(f"{size['parameters']:g}" for size in published), *cells]]
    for one in sets:
        members = one.runs
        sizes = sorted({run["parameters"] for run in members})
        cells = (
            " / ".join(
                percent(mean.value) if (mean := mean_of(_of_size(members, loss, size))) else "–" for size in sizes
            )
            for loss in names
        )
        rows.append([one.title, " / ".join(f"{size / 1e6:.3g}" for size in sizes), *cells])
    header = ["Macro accuracy by model size", "Parameters (M)", *(SHORT_NAMES[loss] for loss in names)]
    return markdown_table(header, rows, "llrrr")


def _of_size(runs: Sequence[Run], loss: str, parameters: int) -> list[Run]:
    return [run for run in select(runs, loss) if run["parameters"] == parameters]
