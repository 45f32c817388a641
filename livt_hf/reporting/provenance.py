"""Provenance of a result: command, versions, hardware, and names fit to be published."""

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

from .blocks import Block, Code, to_markdown


def command_line() -> str:
    """The command that runs, without the folders of this machine that lead to it."""
    program = Path(sys.argv[0]).name
    program = (
        "livt" if program in ("livt", "__main__.py") else f"python {program}" if program.endswith(".py") else program
    )
    return " ".join([program, shlex.join(sys.argv[1:])]).strip()


def versions() -> dict[str, str]:
    """Versions of Python and the libraries that numbers depend on."""
    libraries = ("torch", "torchvision", "transformers", "datasets", "pillow", "numpy")
    return {
        "livt_hf": importlib.metadata.version("livt-hf"),
        "python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in libraries},
    }


def hardware(device: str | torch.device = "cpu") -> dict[str, Any]:
    """The machine: CPU name and usable cores, and the GPU's name if it is used."""
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
    """Command, machine and versions."""
    machine, libraries = hardware_words(results["hardware"]), version_words(results["versions"])
    return [Code(results["command"]), f"Run on: {machine}. Versions: {libraries}."]


def hardware_words(machine: Mapping[str, Any]) -> str:
    """What `hardware` found, in words."""
    device = "CPU" if machine["device"] == "cpu" else machine["device"]
    return f"{device} ({machine['cpu']}, {machine['cores']} cores)"


def version_words(libraries: Mapping[str, str]) -> str:
    """What `versions` found, in words."""
    return ", ".join(f"{name} {version}" for name, version in libraries.items())


def measurement(results: Mapping[str, Any]) -> str:
    """The same in Markdown."""
    return to_markdown(*measurement_blocks(results))


def public_name(name: Any) -> str:
    """On one line, and of a local path the last part: where files lie on the author's machine is nobody's business."""
    name = " ".join(str(name).split())
    return Path(name).name if name.startswith((".", "/", "~")) else name
