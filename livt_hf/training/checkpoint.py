"""Checkpoints that survive a crash at any instant, and the log of a run that goes with them.

A folder is filled under a temporary name, flushed to the disk, given a list of its files, and renamed. Only a folder
whose list agrees with its files counts as complete.
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
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR

from ..files import METRICS_FILE, incompleteness

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"  # in a checkpoint of pretraining: the run record and what else a resume needs
FULL_STATE_DICT = StateDictOptions(full_state_dict=True, cpu_offload=True)  # tensors that are not cut into shards
_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """The ``checkpoint-STEP`` folders of a run, complete or not, oldest step first."""
    folders = output_dir.iterdir() if output_dir.is_dir() else []
    matches = [(_CHECKPOINT_NAME.fullmatch(folder.name), folder) for folder in folders if folder.is_dir()]
    return sorted((int(match.group(1)), folder) for match, folder in matches if match)


def find_resume_checkpoint(output_dir: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, and a line for each newer one that was skipped.

    Args:
        resume: "auto" (the newest complete one of the run, if any), "never", or the path of one.

    Raises:
        ValueError: a path that is not a complete checkpoint; "never" although the run has checkpoints.
    """
    if resume == "never":
        if list_checkpoints(output_dir):
            raise ValueError(
                f"output_dir: {str(output_dir)!r} holds checkpoints of an earlier run; choose another folder, delete "
                "them, or continue that run with --resume auto"
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
    """Move the complete checkpoints after the step that a run begins at into ``abandoned-N``, with the log, and say so.

    They are of a branch that it leaves. By their steps they would count as its newest ones: what it saves would be
    removed as old, and ``auto`` would go on from them.
    """
    later = [folder for at, folder in list_checkpoints(output_dir) if at > step and incompleteness(folder) is None]
    if not later:
        return
    places = (output_dir / f"abandoned-{number}" for number in itertools.count(1))
    aside = next(place for place in places if not place.exists())
    aside.mkdir()
    with suppress(FileNotFoundError):
        shutil.copyfile(output_dir / METRICS_FILE, aside / METRICS_FILE)
    for folder in later:
        folder.rename(aside / folder.name)
    names = ", ".join(folder.name for folder in later)
    logger.info(
        f"this run begins at step {step}: {names} of {output_dir} and a copy of the log are now in {aside.name}"
    )


def remove_old_checkpoints(output_dir: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest complete checkpoints, and incomplete ones."""
    complete = [folder for _, folder in list_checkpoints(output_dir) if incompleteness(folder) is None]
    stay = set(complete[-keep:])
    for _, folder in list_checkpoints(output_dir):
        if folder not in stay:
            shutil.rmtree(folder, ignore_errors=True)


def load_weights(model: transformers.PreTrainedModel, checkpoint: Path, sharded: bool = False) -> None:
    """All weights of a checkpoint, through `from_pretrained`: the names in the file are not those of the modules.

    ``sharded``: FSDP has cut the model's tensors; then all processes call this, and only the first one's file counts.
    """
    saved = type(model).from_pretrained(checkpoint).state_dict()
    # What a native model has no place for is kept elsewhere.
    saved |= {name: tensor for name, tensor in model.state_dict().items() if name.endswith(".scales")}
    try:
        if sharded:
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(model, saved, options=options)
        else:
            model.load_state_dict(saved)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"resume: {str(checkpoint)!r} does not fit the model ({reason}); name another folder"
        ) from None


def load_tensors(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of torch's generators. The package draws from others, seeded anew for every sample; a model may not."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """The moments and step counts of a saved state, by tensor name; the groups and their options stay the optimizer's.

    torch would bring back the saved options, so that a run resumed with another weight decay, betas or learning rate
    would go on with the old ones.
    """
    own: dict[str, Any] = get_optimizer_state_dict(model, optimizer)  # of FSDP, the shards: nothing is gathered
    state = {**saved, "param_groups": own["param_groups"]}
    set_optimizer_state_dict(model, optimizer, state, options=FULL_STATE_DICT)


def set_schedule(schedule: LambdaLR, step: int) -> None:
    """Put a schedule at a step: each group has the learning rate of that step, from its own peak."""
    schedule.last_epoch = step
    for group, peak, share in zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = peak * share(step)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]
