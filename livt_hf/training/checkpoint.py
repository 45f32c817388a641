"""Checkpoints: which are complete, which to resume from, and restoring their state.

A checkpoint is written under a temporary name, flushed to disk, given a list of its files, and renamed (see `files`).
Only a folder whose list matches its files counts as complete.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR

from ..files import METRICS_FILE, incompleteness
from ..optimization import trained_state

logger = logging.getLogger(__name__)

TRAINED_FILE = "trained.safetensors"  # in a checkpoint of light fine-tuning, instead of the whole model
STATE_FILE = "state.json"  # in a checkpoint of pretraining: run record, step and sum of losses
FULL_STATE_DICT = StateDictOptions(full_state_dict=True, cpu_offload=True)  # unsharded tensors
_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """The ``checkpoint-STEP`` folders of a run, complete or not, oldest step first."""
    folders = output_dir.iterdir() if output_dir.is_dir() else []
    matches = [(_CHECKPOINT_NAME.fullmatch(folder.name), folder) for folder in folders if folder.is_dir()]
    return sorted((int(match.group(1)), folder) for match, folder in matches if match)


def find_resume_checkpoint(output_dir: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, and one line per newer, incomplete one.

    Args:
        resume: "auto" (the newest complete checkpoint of the run, if any), "never", or a path.

    Raises:
        ValueError: the path is not a complete checkpoint, or "never" although the run has checkpoints.
    """
    if resume == "never":
        if list_checkpoints(output_dir):
            raise ValueError(
                f"output_dir: {str(output_dir)!r} contains checkpoints of an earlier run; choose another folder, "
                "delete them, or continue that run with --resume auto"
            )
        return None, []
    if resume != "auto":
        reason = incompleteness(Path(resume)) if Path(resume).is_dir() else "there is no such folder"
        if reason:
            raise ValueError(f"resume: {resume!r} is not a complete checkpoint: {reason}; name another, or use auto")
        return Path(resume), []
    skipped: list[str] = []
    for _, folder in reversed(list_checkpoints(output_dir)):
        reason = incompleteness(folder)
        if reason is None:
            return folder, skipped
        skipped.append(f"skipped {folder}: {reason}")
    return None, skipped


def archive_later_checkpoints(output_dir: Path, step: int) -> None:
    """Move complete checkpoints later than the starting step, with a copy of the log, to ``abandoned-N``.

    They belong to an abandoned branch of the run. Left in place, they would count as its newest: its own checkpoints
    would be deleted as older, and ``auto`` would resume from theirs.
    """
    later = [folder for at, folder in list_checkpoints(output_dir) if at > step and incompleteness(folder) is None]
    if not later:
        return
    places = (output_dir / f"abandoned-{number}" for number in itertools.count(1))
    archive = next(place for place in places if not place.exists())
    archive.mkdir()
    with suppress(FileNotFoundError):
        shutil.copyfile(output_dir / METRICS_FILE, archive / METRICS_FILE)
    for folder in later:
        folder.rename(archive / folder.name)
    names = ", ".join(folder.name for folder in later)
    logger.info(f"the run starts at step {step}: moved {names} and a copy of the log in {output_dir} to {archive.name}")


def remove_old_checkpoints(output_dir: Path, keep: int) -> None:
    """Delete all checkpoints but the ``keep`` newest complete ones."""
    complete = [folder for _, folder in list_checkpoints(output_dir) if incompleteness(folder) is None]
    kept = set(complete[-keep:])
    for _, folder in list_checkpoints(output_dir):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def save_trained(model: nn.Module, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write what training changes (`trained_state`) to `TRAINED_FILE`.

    Args:
        weights: those of a model sharded by FSDP.
    """
    names, weights = trained_state(model), weights or model.state_dict()
    save_file({name: weights[name].cpu().contiguous() for name in names}, folder / TRAINED_FILE)


def load_weights(model: transformers.PreTrainedModel, checkpoint: Path, sharded: bool = False) -> None:
    """Load all weights, through `from_pretrained`, since tensor names in the file differ from those in the model.

    A checkpoint of light fine-tuning has only those that are trained; the others are the model's.

    Args:
        sharded: the model is sharded by FSDP; all processes must call this, and the main one's file is used.

    Raises:
        ValueError: the weights do not fit the model.
    """
    partial = (checkpoint / TRAINED_FILE).is_file()
    if partial:
        saved: dict[str, Any] = load_file(checkpoint / TRAINED_FILE)
    else:
        saved = type(model).from_pretrained(checkpoint).state_dict()
        # Not part of the native model; `load_scales` restores them.
        saved |= {name: tensor for name, tensor in model.state_dict().items() if name.endswith(".scales")}
    try:
        if partial and saved.keys() != trained_state(model).keys():
            raise RuntimeError("other weights are trained")
        if sharded:
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=not partial)
            set_model_state_dict(model, saved, options=options)
        else:
            model.load_state_dict(saved, strict=not partial)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"resume: {str(checkpoint)!r} does not fit the model ({reason}); name another folder"
        ) from None


def load_tensors(path: Path) -> dict[str, Any]:
    """A file of `torch.save`, on the CPU, without unpickling code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of torch's global generators, from which a model may draw; samples have generators of their own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore moments and step counts by tensor name, but not the options of the parameter groups.

    torch would also restore those, and so ignore a changed weight decay, betas or learning rate.
    """
    own: dict[str, Any] = get_optimizer_state_dict(model, optimizer)  # with FSDP only this process's shards
    state = {**saved, "param_groups": own["param_groups"]}
    set_optimizer_state_dict(model, optimizer, state, options=FULL_STATE_DICT)


def set_schedule(schedule: LambdaLR, step: int) -> None:
    """Move a schedule to a step; each group gets the learning rate of that step, from its peak."""
    schedule.last_epoch = step
    for group, peak, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = peak * factor(step)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]
