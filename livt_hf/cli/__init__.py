"""In: the words of a command line.

Out: an exit status; each command is a file with its options, two examples and ``run(argv)``, which imports what it
needs after parsing.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from .console import show_messages
from .memory import explain_memory

PACKAGE = Path(__file__).parents[1]
COMMANDS = (
    "quickstart",
    "pretrain",
    "finetune",
    "compare",
    "evaluate",
    "predict",
    "embed",
    "adjust",
    "push",
    "demo",
    "convert",
    "export",
    "dataset",
)
# what is typed for lack of a better guess -> the command
NEAR_MISSES = {action: f"dataset {action}" for action in ("inspect", "check", "prepare")} | {
    "train": "finetune",
    "test": "evaluate",
    "infer": "predict",
    "classify": "predict",
    "upload": "push",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `livt`; also `python -m livt_hf` and the scripts. Errors of the user are one line and exit status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: livt COMMAND [--option value ...]\n\ncommands:")
        for name in COMMANDS:
            print(f"  {name:<11}{summary(command(name))}")
        print("\nlivt COMMAND --help lists the options of a command.")
        return 0
    if argv[0] == "--version":
        print(f"livt_hf {importlib.metadata.version('livt-hf')}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: livt: unknown command {argv[0]!r}; {_hint(argv[0])}", file=sys.stderr)
        return 2
    return guarded(command(argv[0]).run, argv[1:])


def command(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f".{name}", __package__)


def summary(module: ModuleType) -> str:
    """The first line of a module's docstring."""
    return (module.__doc__ or "").splitlines()[0]


def _hint(name: str) -> str:
    if name in NEAR_MISSES:
        return f"it is `livt {NEAR_MISSES[name]}`"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"


def guarded(run: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a command and turn errors of the user, interrupts and closed pipes into an exit status."""
    show_messages()
    try:
        status = run(argv)
        leave_process_group()
        return status
    except ValueError as error:
        if not _is_user_error(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        reason = explain_memory(error, run.__module__.rpartition(".")[2])
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `livt ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interrupt:
        if int(os.environ.get("RANK", 0)) == 0:  # a terminal interrupts all processes
            print("; ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130


def leave_process_group() -> None:
    """Close the connection to other processes. Its threads, left running, can abort Python at exit."""
    torch = sys.modules.get("torch")  # most commands do not need it
    if torch is not None and torch.distributed.is_initialized():
        gc.collect()  # a wrapped model that is part of a cycle would keep the threads alive
        torch.distributed.destroy_process_group()


def _is_user_error(error: BaseException) -> bool:
    """Whether the package itself raised the error; one from inside a library keeps its traceback."""
    if type(error).__module__.startswith("livt_hf."):
        return True  # also where a DataLoader worker raised it, and torch raised it again here
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
