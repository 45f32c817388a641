"""How an option is declared: a dataclass field that carries all that is known of it.

    tau: float = option(1.0, "Logit-adjustment strength tau.", limit=FINITE, in_card=True)

The command line, ``--help``, the range checks, the resume check, the recorded command and the cards read it from there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Limit(NamedTuple):
    """Values that an option allows. NaN passes no test."""

    allows: Callable[[float], bool]
    text: str


AT_LEAST_1 = Limit(lambda value: value >= 1, "at least 1")
POSITIVE = Limit(lambda value: 0 < value < math.inf, "above 0")
NOT_NEGATIVE = Limit(lambda value: 0 <= value < math.inf, "at least 0")
SEED = Limit(lambda value: 0 <= value < 2**32, "at least 0 and below 2**32")
FRACTION = Limit(lambda value: 0 < value <= 1, "above 0 and at most 1")
PROPER_FRACTION = Limit(lambda value: 0 < value < 1, "above 0 and below 1")
BELOW_1 = Limit(lambda value: 0 <= value < 1, "at least 0 and below 1")
FINITE = Limit(math.isfinite, "a finite number")


def option(
    default: Any,
    help: str,
    limit: Limit | None = None,
    *,
    changes: Literal["model", "result", "nothing"] = "result",
    in_command: bool = True,
    in_card: bool = False,
    aliases: Sequence[str] = (),
    replaces: Mapping[str, str] | None = None,
    positional: str | None = None,
    commas: bool = False,
) -> Any:
    """A dataclass field with what is known of the option.

    Args:
        limit: range of a number.
        changes: what another value changes: the model (a run cannot resume with it), its result (a resume reports it),
            or nothing.
        in_command: whether the recorded command of a run repeats the option.
        in_card: whether a model card lists it among the hyperparameters.
        aliases: further names that the command line accepts.
        replaces: names that other libraries give the option, which are answered with this one and a note.
        positional: placeholder of a value that is given without its name.
        commas: a list is written with commas, ``A,B``.
    """
    about = {
        "help": help,
        "limit": limit,
        "changes": changes,
        "in_command": in_command,
        "in_card": in_card,
        "aliases": tuple(aliases),
        "replaces": dict(replaces or {}),
        "positional": positional,
        "commas": commas,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=about)
    return field(default=default, metadata=about)


def redefine(group: type, name: str, default: Any, **changed: Any) -> Any:
    """The option of a base class with another default, and with other facts where they are named."""
    inherited = next(entry for entry in dataclasses.fields(group) if entry.name == name)
    return option(default, **{**inherited.metadata, **changed})


@dataclass
class Options:
    """Base of all groups of options: checks numbers against their limits and words against their choices.

    Attributes:
        TITLE: heading of the group in ``--help``.
        REQUIRED: options without which the command cannot run.
    """

    TITLE: ClassVar[str] = "Options"
    REQUIRED: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        known = choices(type(self))
        for entry in dataclasses.fields(self):
            value, limit = getattr(self, entry.name), entry.metadata["limit"]
            if value is None:
                continue
            if limit is not None and not limit.allows(value):
                raise ValueError(f"{entry.name}: {value} is out of range; it must be {limit.text}")
            if entry.name in known and value not in known[entry.name]:
                near = did_you_mean(str(value).replace("-", "_").lower(), known[entry.name])
                raise ValueError(f"{entry.name}: {value!r} is unknown;{near} known: {', '.join(known[entry.name])}")

    def require(self) -> None:
        """ValueError if one of the required options was not given."""
        for name in self.REQUIRED:
            if not getattr(self, name):
                recipe = " or a --recipe" if name == "dataset" and hasattr(self, "recipe") else ""
                raise ValueError(f"{name}: none was given; name one with --{name}{recipe}")


def types_of(options: type[Options]) -> dict[str, type]:
    """Type of each option, without its ``| None``: str, int, float, bool, list[...] or Literal[...]."""
    hints = get_type_hints(options)
    return {entry.name: _without_none(hints[entry.name]) for entry in dataclasses.fields(options)}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    return hint


def choices(options: type[Options]) -> dict[str, tuple[str, ...]]:
    """The allowed words of each option that is a Literal."""
    return {name: get_args(hint) for name, hint in types_of(options).items() if get_origin(hint) is Literal}


def groups_of(options: type[Options]) -> dict[str, list[dataclasses.Field]]:
    """Heading -> its options, those that the dataclass itself adds first."""
    groups: dict[str, list[dataclasses.Field]] = {options.TITLE: []}
    for entry in dataclasses.fields(options):
        owners: list[Any] = [base for base in options.__mro__ if entry.name in base.__dict__.get("__annotations__", {})]
        groups.setdefault(owners[-1].TITLE, []).append(entry)  # the last one is the base that first declares it
    return groups


def options_that(options: type[Options], **about: Any) -> list[str]:
    """Names of the options with these facts, by group: ``options_that(FinetuneArguments, in_card=True)``."""
    return [
        entry.name
        for group in groups_of(options).values()
        for entry in group
        if all(entry.metadata[key] == value for key, value in about.items())
    ]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """ " did you mean 'NEAREST'?", or nothing."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" did you mean {near[0]!r}?" if near else ""
