"""Provenance of a result: command, versions, hardware, and names without local paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .blocks import Block, Code, counted


def command_line() -> str:
    """The current command; the program and local paths without their folders."""
    program = Path(sys.argv[0]).name
    program = (
        "livt" if program in ("livt", "__main__.py") else f"python {program}" if program.endswith(".py") else program
    )
    return " ".join([program, shlex.join(map(_public_word, sys.argv[1:]))]).strip()


def public_command(command: str) -> str:
    """A command with local paths reduced to their last component."""
    try:
        words = shlex.split(command)
    except ValueError:  # not a command of a shell
        words = command.split()
    return shlex.join(map(_public_word, words))


def _public_word(word: str) -> str:
    """A word of a command: an option, a value, ``--option=value``, or values separated by commas."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + ",".join(map(public_name, value.split(",")))


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    libraries = ("torch", "torchvision", "transformers", "datasets", "pillow", "numpy")
    return {
        "livt_hf": importlib.metadata.version("livt-hf"),
        "python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in libraries},
    }


def hardware(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Device (GPU name, or "cpu"), CPU name and usable cores."""
    device = torch.device(device)
    cpu_info = Path("/proc/cpuinfo")
    model_names = re.findall(r"model name\s*: (.+)", cpu_info.read_text()) if cpu_info.is_file() else []
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": model_names[0].strip() if model_names else platform.processor() or platform.machine(),
        "cores": available_cores(),
    }


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measurement_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Command, hardware and versions of a result, as blocks of a report."""
    machine, libraries = hardware_words(results["hardware"]), version_words(results["versions"])
    return [Code(results["command"]), f"Run on: {machine}. Versions: {libraries}."]


def hardware_words(machine: Mapping[str, Any]) -> str:
    """The output of `hardware` in words."""
    device = "CPU" if machine["device"] == "cpu" else machine["device"]
    return f"{device} ({machine['cpu']}, {counted(machine['cores'], 'core')})"


def version_words(libraries: Mapping[str, str]) -> str:
    """The output of `versions` in words."""
    return ", ".join(f"{name} {version}" for name, version in libraries.items())


def public_name(name: Any) -> str:
    """The name on one line. A local folder, and a path that cannot be the id of a repository, is reduced to its last
    component."""
    name = " ".join(str(name).split())
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 and "://" not in name or os.path.isdir(name)
    return Path(name).name or Path(name).resolve().name if is_path else name
