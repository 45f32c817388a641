"""From the command line to a dataclass of options: names, help, suggestions, recipes and YAML files.

Later sources win: dataclass defaults < ``--recipe NAME`` < ``--config FILE.yaml`` < command line.
`transformers.TrainingArguments` is imported only for an option that is not one of ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import yaml

from .arguments import FinetuneArguments, PretrainArguments, StageArguments
from .hints import refuse_replaced, replaced_names
from .options import Options, did_you_mean, groups_of, types_of

RECIPES = Path(__file__).parent / "recipes"

AnyOptions = TypeVar("AnyOptions", bound=Options)
AnyStage = TypeVar("AnyStage", bound=StageArguments)

# Aliases of options of the other stage.
_SYNONYMS = {"log_with": "report_to"}


def parse(
    options: type[AnyOptions],
    argv: Sequence[str] | None = None,
    prog: str = "",
    description: str | None = None,
    examples: Sequence[str] = (),
) -> AnyOptions:
    """The options of a command.

    Args:
        examples: commands to copy, at the top of ``--help``.

    Raises:
        ValueError: an unknown option (with the nearest known name), or a value that cannot be used.
    """
    values, unknown = _Parser(options, prog, description, examples).read(argv)
    if unknown:  # before a required option that is missing: it may be misspelled
        _refuse_unknown(unknown, options)
    values.require()
    return values


def parse_known(
    options: type[AnyOptions],
    argv: Sequence[str] | None = None,
    prog: str = "",
    description: str | None = None,
    examples: Sequence[str] = (),
    epilog: str | None = None,
) -> tuple[AnyOptions, list[str]]:
    """Like `parse`, but also return the arguments that the command does not recognize."""
    values, unknown = _Parser(options, prog, description, examples, epilog).read(argv)
    values.require()
    return values, unknown


def parse_arguments(
    stage: type[AnyStage],
    argv: Sequence[str] | None = None,
    prog: str = "",
    description: str | None = None,
    examples: Sequence[str] = (),
) -> tuple[AnyStage, dict[str, Any]]:
    """Arguments of a stage, and the further `TrainingArguments` that were given (fine-tuning only).

    Raises:
        ValueError: an unknown option, recipe or key (with the nearest known name), or a value that cannot be used.
    """
    takes_more = issubclass(stage, FinetuneArguments)
    words = _words(argv)
    if takes_more and "--help_all" in words:
        words[words.index("--help_all")] = "--help"
        epilog = (
            "Also accepted, with the meaning that transformers.TrainingArguments gives them: "
            f"{', '.join(_other_training_arguments())}."
        )
    else:
        epilog = "Options of transformers.TrainingArguments are accepted, too; --help_all lists them."
    parser = _Parser(stage, prog, description, examples, epilog if takes_more else None)
    chosen, _ = parser.parse_known_args(words)
    if chosen.recipe in ("help", "list"):
        print(recipe_list(stage))
        raise SystemExit(0)
    from_files = [] if chosen.recipe is None else _from_yaml(recipe_path(stage, chosen.recipe), stage)
    from_files += [] if chosen.config is None else _from_yaml(Path(chosen.config), stage)
    arguments, unknown = parser.read([*from_files, *words])
    if takes_more:
        return arguments, _training_arguments(unknown, stage)
    if unknown:
        _refuse_unknown(unknown, stage)
    return arguments, {}


def recipe_path(stage: type[StageArguments], name: str) -> Path:
    """The YAML file of a recipe; ValueError with the nearest name if there is none."""
    files = _recipe_files(stage)
    if name not in files:
        raise ValueError(f"recipe: {name!r} is unknown;{did_you_mean(name, list(files))} known: {', '.join(files)}")
    return files[name]


def recipe_list(stage: type[StageArguments]) -> str:
    """One line per recipe of a stage, for ``--recipe help``: its length and the first sentence of its file."""
    lines = []
    for name, file in _recipe_files(stage).items():
        text = file.read_text(encoding="utf-8")
        comment = " ".join(
            line.lstrip("# ") for line in itertools.takewhile(lambda line: line[:1] == "#", text.split("\n"))
        )
        sentence = re.split(r"(?<=[\w)%])[.:] ", comment)[0].removesuffix(".")
        values = yaml.safe_load(text)
        length = f"{values['epochs']:>4} epochs" if "epochs" in values else ""
        size = f" at {values['image_size']:>3} px." if "image_size" in values else ""  # else that of --pretrained
        lines.append(f"{name:<18}{length + size:<22} {sentence}.")
    return "\n".join(lines)


def _recipe_files(stage: type[StageArguments]) -> dict[str, Path]:
    folder = RECIPES / ("pretrain" if issubclass(stage, PretrainArguments) else "finetune")
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


class _Parser(argparse.ArgumentParser):
    """A parser of one dataclass, whose errors are `ValueError`s."""

    def __init__(
        self,
        options: type[Options],
        prog: str = "",
        description: str | None = None,
        examples: Sequence[str] = (),
        epilog: str | None = None,
    ):
        super().__init__(
            prog or None,
            description=description,
            epilog=epilog,
            formatter_class=_Help,
            allow_abbrev=False,
            add_help=False,
        )
        self.options, self.examples = options, examples
        hints = types_of(options)
        for title, entries in groups_of(options).items():
            group = self.add_argument_group(title)
            for entry in entries:
                _add_option(group, entry, hints[entry.name], entry.name in options.REQUIRED)
        self.add_argument_group("Help").add_argument("-h", "--help", action="help", help="Show this text.")

    def read(self, argv: Sequence[str] | None) -> tuple[Any, list[str]]:
        """The parsed dataclass, and the arguments that it does not recognize."""
        namespace, unknown = self.parse_known_args(_words(argv))
        return self.options(**vars(namespace)), unknown

    def format_help(self) -> str:
        """The examples, then what argparse writes after its usage."""
        text = super().format_help().removeprefix(self.format_usage()).lstrip("\n")
        return "".join(f"{line}\n" for line in self.examples) + "\n" * bool(self.examples) + text

    def error(self, message: str) -> NoReturn:
        hint = f" (see `{self.prog} --help`)" if self.prog.startswith("livt ") else ""  # not where a function parses
        raise ValueError(f"{message}{hint}")


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(shutil.get_terminal_size().columns, 120) - 2)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)  # names stay in one piece

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, _Switch):
            return ", ".join(name for name in action.option_strings if action.default or not name.startswith("--no_"))
        if action.option_strings:  # the placeholder once, also where the option has an alias
            return f"{', '.join(action.option_strings)} {self._format_args(action, 'VALUE')}".rstrip()
        return super()._format_action_invocation(action)


class _Switch(argparse.Action):
    """``--x``, ``--x true``, ``--x false`` and ``--no_x``."""

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string.startswith("--no_"):
            if values is not None:
                parser.error(f"{option_string} takes no value, got {values!r}")
            setattr(namespace, self.dest, False)
            return
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if values is not None and str(values).lower() not in words:
            parser.error(f"{self.dest}: {values!r} is neither true nor false")
        setattr(namespace, self.dest, True if values is None else words[str(values).lower()])


def _add_option(group: Any, entry: dataclasses.Field, hint: Any, required: bool) -> None:
    about, default = entry.metadata, entry.default
    if entry.default_factory is not dataclasses.MISSING:
        default = entry.default_factory()
    text = _help(about["help"], default, required or bool(about["positional"]))
    settings: dict[str, Any] = {"default": default, "help": text.replace("%", "%%")}
    if hint is bool:
        settings |= {"action": _Switch, "nargs": "?"}
    elif get_origin(hint) is list:
        settings["type"] = get_args(hint)[0]
        if about["commas"]:
            settings |= {"type": _comma_list, "metavar": "A,B"}
        else:
            settings |= {"nargs": "+", "metavar": {float: "X", int: "N"}.get(settings["type"], "VALUE")}
    elif hint in (int, float, str):
        settings |= {"type": hint, "metavar": {float: "X", int: "N", str: "VALUE"}[hint]}
    else:
        settings["metavar"] = f"{{{','.join(get_args(hint))}}}"
    if about["positional"]:
        group.add_argument(entry.name, **{**settings, "metavar": about["positional"]})
        return
    names = [entry.name, *([f"no_{entry.name}"] if hint is bool else []), *about["aliases"]]
    group.add_argument(*(f"--{name}" for name in names), dest=entry.name, **settings)


def _help(text: str, default: Any, required: bool) -> str:
    """The help text and the default, unless the text states it."""
    text = text.removesuffix(".")
    if "(required" in text:
        return f"{text}."
    if required:
        return f"{text} (required)."
    if default in (None, "", []):
        return f"{text}." if "(default" in text else f"{text} (default: none)."
    value = " ".join(map(_word, default)) if isinstance(default, list) else _word(default)
    return f"{text} (default: {value})."


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _comma_list(text: str) -> list[str]:
    return [value.strip() for value in text.split(",")]


def _words(argv: Sequence[str] | None) -> list[str]:
    """The command line with underscores in the names of options: ``--data-dir`` is ``--data_dir``."""
    words = list(sys.argv[1:] if argv is None else argv)
    return ["=".join([_with_underscores(word), *word.split("=", 1)[1:]]) for word in words]


def _with_underscores(word: str) -> str:
    name = word.split("=", 1)[0]
    return f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name


def _from_yaml(path: Path, stage: type[StageArguments]) -> list[str]:
    """The options of a YAML file as command-line words, so that one parser checks names and types of all sources."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"config: cannot read {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return []
    if not isinstance(values, dict):
        raise ValueError(f"config: {str(path)!r} must contain lines of the form 'option: value'")
    known = [entry.name for entry in dataclasses.fields(stage)]
    words = []
    for name, value in values.items():
        if name not in known:
            near = did_you_mean(name, known)
            raise ValueError(f"config: {str(path)!r} has the unknown option {name!r};{near or ' see --help'}")
        if name in ("recipe", "config"):
            raise ValueError(
                f"config: {str(path)!r} sets {name!r}, which only the command line can; leave the line out"
            )
        if name == "mixed_precision" and value is False:
            value = "no"  # YAML reads a bare no as false
        if value is None:
            raise ValueError(f"config: {name!r} in {str(path)!r} has no value; give one, or leave the line out")
        # One word, so that a negative number is not taken for an option.
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return words


def _training_arguments(words: list[str], stage: type[StageArguments]) -> dict[str, Any]:
    """The `TrainingArguments` among the words that the stage does not recognize."""
    if not words:
        return {}
    known = [entry.name for entry in dataclasses.fields(stage)]
    words = [_synonym(word) for word in words]
    names = [_option_name(word) for word in words if word.startswith("--")]
    for name in names:
        refuse_replaced(name, stage)
    accepted = _all_training_arguments()
    for name in names:
        if name not in accepted:
            raise ValueError(f"--{name}: unknown option;{_advice(name, [*known, *accepted])} see --help")
    values, rest = _upstream_parser().parse_known_args(words)
    if rest:
        raise _unexpected(rest[0], stage)
    return {name: getattr(values, name) for name in names}


def _synonym(word: str) -> str:
    name, *value = word.split("=", 1)
    return "=".join([f"--{_SYNONYMS[name[2:]]}" if name[2:] in _SYNONYMS else name, *value])


def _all_training_arguments() -> list[str]:
    from transformers import TrainingArguments

    return sorted(entry.name for entry in dataclasses.fields(TrainingArguments) if entry.init)


def _other_training_arguments() -> list[str]:
    """Names of the `TrainingArguments` that are passed on to fine-tuning."""
    own = {entry.name for entry in dataclasses.fields(FinetuneArguments)}
    return [name for name in _all_training_arguments() if name not in own | set(replaced_names(FinetuneArguments))]


def _upstream_parser() -> argparse.ArgumentParser:
    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    return Parser(TrainingArguments, allow_abbrev=False)  # type: ignore[arg-type]  # declared NewType(Any)


def _refuse_unknown(words: list[str], options: type[Options]) -> NoReturn:
    if not words[0].startswith("--"):
        raise _unexpected(words[0], options)
    name = _option_name(words[0])
    refuse_replaced(name, options)
    known = [entry.name for entry in dataclasses.fields(options)]
    raise ValueError(f"--{name}: unknown option;{_advice(name, known)} see --help")


def _unexpected(word: str, options: type[Options]) -> ValueError:
    example = f", such as --{options.REQUIRED[0]} {word}" if options.REQUIRED else ""
    return ValueError(f"{word}: unexpected value; options are written --name value{example}")


def _advice(name: str, known: Sequence[str]) -> str:
    """The command that has the option, or the nearest known name."""
    for command, stage in (("pretrain", PretrainArguments), ("finetune", FinetuneArguments)):
        if name not in known and name in {entry.name for entry in dataclasses.fields(stage)}:
            return f" it belongs to `livt {command}`;"
    return did_you_mean(name, known)


def _option_name(word: str) -> str:
    return word[2:].split("=")[0]
