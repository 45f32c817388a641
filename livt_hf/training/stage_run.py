"""A training run in its output folder: log, checkpoints, stop signal, background upload.

Both stages use it in the same way; `RecipeTrainer` without a stage uses `Run` alone:

    run = StageRun(args)                          # checks options and folder, seeds
    with run.opened():                            # locks the folder
        if not run.is_trained(steps):             # else a repeated command
            checkpoint = run.find_checkpoint(steps)   # to resume from, if its options are compatible
            run.start(...)                        # logs what is trained; starts uploads
            with run.stop_signal:
                run.begin(step)                   # truncates metrics.jsonl after the step
                run.log(...), run.stop_requested(...), run.checkpoint(...)
            run.stopped(...)  or  run.save(model)
        ...                                       # what `run.owed()` names: evaluation, card
        run.publish(...)                          # uploads, if requested

A run is trained as soon as run.json is in place, and finished when nothing is owed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME

from ..config.arguments import StageArguments
from ..files import PREDICTIONS_FILE, RUN_FILE, check_folder, explain_failed_write, publish_files, read_run, write_text
from ..hub.background import BackgroundPusher
from ..hub.upload import check_repo_id
from ..optimization import Schedule
from ..reporting.blocks import counted, rounded
from .checkpoint import STATE_FILE, find_resume_checkpoint
from .cpu import log_cpu
from .record import RunOptions, read_checkpoint_record, stage_of
from .run import Run

logger = logging.getLogger(__name__)


def check_precision(mixed_precision: str | None) -> None:
    """ValueError for fp16 without a GPU, where Accelerate would silently use float32."""
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision: fp16 needs a GPU; use bf16 or no")


def describe_world(accelerator: Accelerator) -> str:
    """World size, device, FSDP and precision in words."""
    sharded = f", {accelerator.distributed_type.value}" if accelerator.distributed_type == DistributedType.FSDP else ""
    return (
        f"world size {accelerator.num_processes} on {accelerator.device.type}{sharded}, "
        f"mixed precision {accelerator.mixed_precision}"
    )


class StageRun(Run):
    """A run of one of the two stages.

    Args:
        world: number of processes and index of this one; default: from the launcher's environment variables.
        training_arguments: further fields of `TrainingArguments` given by the user.

    Raises:
        ValueError: dataset, output folder or repository id is missing or invalid.
    """

    def __init__(
        self,
        args: StageArguments,
        world: tuple[int, int] | None = None,
        training_arguments: dict[str, Any] | None = None,
    ):
        args.require()
        if args.hub_model_id:
            check_repo_id(args.hub_model_id)
        self.args, self.training_arguments = args, training_arguments or {}
        self.options, self.stage = RunOptions(args, self.training_arguments), stage_of(vars(args))
        self.results: Sequence[str] = ()  # files that follow the model, in this order
        self.processor: Any = None
        self.world = world or (int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)))
        super().__init__(args.output_dir, is_main=self.world[1] == 0, save_total_limit=args.save_total_limit)
        set_seed(args.seed)

    def is_trained(self, steps: int) -> bool:
        """Whether the folder contains the trained model of this run; if so, logs what is `owed`."""
        self.trained = self.options.completed_steps() == steps
        if self.trained:
            left = f"missing: {', '.join(self.owed())}" if self.owed() else "nothing to do"
            done = (read_run(self.folder) or {}).get("kept", {}).get("stopped_at", steps)  # by --early_stopping
            after = f" after {counted(done, 'step')}" if steps else ""
            logger.info(f"{self.folder} contains this run, finished{after}; {left}")
        return self.trained

    def owed(self) -> list[str]:
        """What a trained run still has to write or to upload. `save` removes what belongs to an earlier model."""
        missing = [name for name in self.results if not (self.folder / name).exists()]
        uploaded = (read_run(self.folder) or {}).get("uploaded")
        return missing + ["upload"] * (self.args.push_to_hub and uploaded != self._destination())

    def _destination(self) -> dict[str, str | None]:
        return {"repository": self.args.hub_model_id, "revision": self.args.hub_revision}

    def find_checkpoint(self, steps: int) -> Path | None:
        """The checkpoint to resume from, or None.

        Raises:
            ValueError: the checkpoint, or a finished model in the folder, is of a run with other options (see
                `RunOptions.check_resume` and `RunOptions.check_overwrite`).
        """
        checkpoint, skipped = find_resume_checkpoint(self.folder, self.args.resume)
        for line in skipped:
            logger.info(line)
        self.options.check_overwrite(steps, checkpoint)
        check_folder(self.folder)
        if checkpoint is not None:
            for line in self.options.check_resume(*self.saved_state(checkpoint), steps):
                logger.info(f"resuming with changed {line}")
        return checkpoint

    def saved_state(self, checkpoint: Path) -> tuple[dict[str, Any], int]:
        """Record and step of a checkpoint of this stage."""
        if self.stage == "pretrain":
            state = read_checkpoint_record(checkpoint, STATE_FILE)
            return state, state["steps"]
        step = read_checkpoint_record(checkpoint, TRAINER_STATE_NAME)["global_step"]
        return read_checkpoint_record(checkpoint, RUN_FILE), step

    def start(
        self, what: str, schedule: Schedule, processor: Any, accelerator: Accelerator, checkpoint: Path | None
    ) -> None:
        """Log what is trained and for how long; start uploads if requested.

        Args:
            what: model and data in words.
            processor: image processor to save with the model.
        """
        epochs = rounded(schedule.steps / schedule.steps_per_epoch)
        logger.info(
            f"{what}: {counted(schedule.steps, 'step')} of {counted(schedule.global_batch_size, 'image')} "
            f"({epochs} epoch{'' if epochs == '1' else 's'}), peak learning rate {schedule.peak_lr:.3g}; "
            f"{describe_world(accelerator)}" + (f"; resumed from {checkpoint}" if checkpoint else "")
        )
        if accelerator.device.type == "cpu":
            log_cpu(accelerator.mixed_precision)
        self.record = self.options.record(schedule.steps)
        self.processor = processor
        if self.args.push_to_hub and self.is_main:
            self.pusher = self._new_pusher()

    def _new_pusher(self) -> BackgroundPusher:
        args = self.args
        return BackgroundPusher(
            str(args.hub_model_id),
            self.folder,
            self.processor,
            strategy=args.hub_strategy,
            private=args.hub_private_repo or None,
            revision=args.hub_revision,
        )

    def stopped(self, signal_name: str, step: int) -> None:
        """After a stop by a signal: abandon pending uploads."""
        if self.pusher:
            self.pusher.stop()
        steps = self.record["steps"]
        logger.info(f"stopped by {signal_name} after step {step} of {steps}; repeat the command to continue")

    def save(self, model: PreTrainedModel, weights: dict[str, Any] | None = None) -> None:
        """Write model, image processor and record into the output folder.

        Args:
            weights: unsharded weights of a model sharded by FSDP.
        """
        replaced = ("results.json", PREDICTIONS_FILE, *self.results)  # of an earlier model
        with explain_failed_write(self.folder), publish_files(self.folder, RUN_FILE, replaced) as folder:
            model.save_pretrained(folder, state_dict=weights)
            self.processor.save_pretrained(folder)
            write_text(folder / RUN_FILE, json.dumps(self.record, indent=2))
        self.trained = True
        kind = "pretrained" if self.stage == "pretrain" else "fine-tuned"
        logger.info(f"saved the {kind} model in {self.folder}")

    def publish(self, accelerator: Accelerator | None = None) -> None:
        """After everything else is written: upload the folder if requested, and record that.

        Args:
            accelerator: of a run in several processes, which wait for each other here.
        """
        if accelerator is not None:
            accelerator.wait_for_everyone()
        if not self.is_main or "upload" not in self.owed():
            return
        error = (self.pusher or self._new_pusher()).finish(self.folder)
        if error is not None:
            logger.warning(error)
            return
        record = {**(read_run(self.folder) or {}), "uploaded": self._destination()}
        write_text(self.folder / RUN_FILE, json.dumps(record, indent=2))
