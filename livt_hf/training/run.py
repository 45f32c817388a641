"""A training run in its output folder: record, resume checks, log, checkpoints, stop signal and background upload.

Both stages use it in the same way, and `BalancedTrainer` also without a stage:

    run = StageRun(args)                          # checks the folder, seeds
    run.is_finished(steps)                        # the same command again: nothing to do
    checkpoint = run.find_checkpoint(steps)       # options compared with those of the checkpoint
    run.start(...)                                # one line that says what is trained; uploads may begin
    with run.stop_signal:
        run.begin(step)                           # metrics.jsonl cut back to the step
        run.log(...), run.stop_requested(...), run.checkpoint(...)
    run.stopped(...)  or  run.save(model); run.publish(...)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..config.arguments import StageArguments
from ..config.options import options_that
from ..files import METRICS_FILE, RUN_FILE, explain_failed_write, publish, publish_files, write_text
from ..hub.background import BackgroundPusher
from ..hub.upload import check_repo_id
from ..optimization import Schedule
from ..reporting.provenance import public_name
from .checkpoint import STATE_FILE, archive_later_checkpoints, find_resume_checkpoint, remove_old_checkpoints

AGREE_EVERY = 10  # steps between the moments at which several processes compare whether one received a signal

logger = logging.getLogger(__name__)


def run_record(args: StageArguments, steps: int, training_arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is kept of a run beside its model; of further `TrainingArguments`, those that may change the result."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    training_arguments = {
        name: value for name, value in (training_arguments or {}).items() if name not in _WITHOUT_EFFECT
    }
    return {
        "steps": steps,
        "command": training_command(args, training_arguments),
        "arguments": dataclasses.asdict(args),
        "training_arguments": training_arguments,
        "versions": versions,
    }


def training_command(args: StageArguments, training_arguments: dict[str, Any]) -> str:
    """The command that repeats a run: every option that differs from its default, local paths by their last part."""
    options, defaults = dataclasses.asdict(args), dataclasses.asdict(type(args)())
    words, repeated = ["livt", stage_of(options)], options_that(type(args), in_command=True)
    given = {
        name: value
        for name, value in options.items()
        if value is not None and value != defaults[name] and name in repeated
    }
    for name, value in (given | training_arguments).items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(public_name(f"{v:g}" if isinstance(v, float) else v) for v in values)]
    return shlex.join(words)


def stage_of(arguments: Mapping[str, Any]) -> str:
    """The stage whose options these are."""
    return "pretrain" if "mask_ratio" in arguments else "finetune"


# Of `TrainingArguments`, those that change no result.
_WITHOUT_EFFECT = {
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "logging_first_step",
    "logging_strategy",
    "per_device_eval_batch_size",
    "project",
    "report_to",
    "run_name",
}


def changed_arguments(
    record: dict[str, Any], args: StageArguments, training_arguments: dict[str, Any] | None = None
) -> list[str]:
    """A line for each option whose value differs from a run's record, those that cannot change the result left out.

    An option that the record does not know, since the package did not when it was written, had today's default. A
    record from before `TrainingArguments` were kept says nothing of them.
    """
    given = training_arguments or {}
    given_before = record.get("training_arguments", given)
    before = {**dataclasses.asdict(type(args)()), **record["arguments"], **given_before}
    now = {**dataclasses.asdict(args), **given}
    free = {*options_that(type(args), changes="nothing"), *_WITHOUT_EFFECT}
    pairs = {name: (before.get(name, "its default"), now.get(name, "its default")) for name in {**now, **given_before}}
    return [f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if name not in free and old != new]


def read_record(checkpoint: Path, file: str) -> dict[str, Any]:
    """A record in a checkpoint of this stage; ValueError if it is one of the other stage."""
    try:
        return json.loads((checkpoint / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"resume: {str(checkpoint)!r} is a checkpoint of another stage (it has no {file}); choose another "
            "output_dir or checkpoint"
        ) from None


def check_resume(
    record: dict[str, Any],
    args: StageArguments,
    step: int,
    steps: int,
    training_arguments: dict[str, Any] | None = None,
) -> list[str]:
    """A line for each changed option of a run that continues from a checkpoint with that record at ``step``.

    Raises:
        ValueError: the options make another model, or there is nothing left to train with the changed ones.
    """
    changed = changed_arguments(record, args, training_arguments)
    model_options = options_that(type(args), changes="model")
    fixed = [line for line in changed if line.split(":")[0] in model_options]
    advice = "choose another output_dir, delete it, or keep the options"
    if fixed:
        raise ValueError(f"output_dir: {args.output_dir!r} holds a run with another {'; '.join(fixed)}; {advice}")
    if changed and step >= steps:
        raise ValueError(
            f"output_dir: {args.output_dir!r} holds a run that is at step {step} of {steps}: nothing would be trained "
            f"with another {'; '.join(changed)}; {advice}"
        )
    return changed


def check_overwrite(
    output_dir: Path,
    args: StageArguments,
    steps: int,
    checkpoint: Path | None,
    training_arguments: dict[str, Any] | None = None,
) -> None:
    """ValueError if a run would replace the finished model of another run in its folder.

    A longer run that continues from a checkpoint may, and so may ``--resume never``.
    """
    if args.resume == "never" or not (output_dir / RUN_FILE).is_file():
        return
    record = read_record(output_dir, RUN_FILE)
    here = f"output_dir: {str(output_dir)!r} holds the finished model of"
    if stage_of(record["arguments"]) != stage_of(vars(args)):
        raise ValueError(f"{here} the other stage; name another folder")
    changed = changed_arguments(record, args, training_arguments)
    if changed and (checkpoint is None or steps <= record["steps"]):
        raise ValueError(
            f"{here} a run with another {'; '.join(changed)}; name another output_dir, keep the options, or replace it "
            "with --resume never"
        )


def completed_steps(
    output_dir: Path, args: StageArguments, training_arguments: dict[str, Any] | None = None
) -> int | None:
    """Steps of the finished run in a folder, if it is there and had the same arguments."""
    try:
        record = json.loads((output_dir / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return None if changed_arguments(record, args, training_arguments) else record["steps"]


def check_precision(mixed_precision: str | None) -> None:
    """ValueError for fp16 without a GPU: Accelerate would silently compute in float32."""
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision: fp16 needs a GPU; use bf16 or no")


def describe_world(accelerator: Accelerator) -> str:
    sharded = f", {accelerator.distributed_type.value}" if accelerator.distributed_type == DistributedType.FSDP else ""
    return (
        f"world size {accelerator.num_processes} on {accelerator.device.type}{sharded}, "
        f"mixed precision {accelerator.mixed_precision}"
    )


class Run:
    """What a run keeps in its output folder while it trains: log, checkpoints, uploads; and its stop signal.

    Every process has one and calls its methods at the same steps; the main one writes.

    Args:
        pusher: uploads checkpoints and the final model; of the main process, None without uploads.
        save_total_limit: checkpoints to keep; None keeps all.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        is_main: bool = True,
        pusher: BackgroundPusher | None = None,
        save_total_limit: int | None = None,
    ):
        self.folder, self.is_main = Path(folder), is_main
        self.pusher, self.save_total_limit = pusher, save_total_limit
        self.record: dict[str, Any] = {}
        self.stop_signal = StopSignal()
        self._log: MetricsLog | None = None

    def begin(self, step: int) -> None:
        """Training starts after ``step`` steps: the log is cut back to it, checkpoints beyond it are put aside."""
        if self.is_main:
            archive_later_checkpoints(self.folder, step)
            self._log = MetricsLog(self.folder, step)

    def log(self, values: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(values)

    def stop_requested(self, accelerator: Accelerator, step: int) -> str | None:
        """The signal that reached any process, known to all of them at the same step."""
        received = self.stop_signal.received
        if accelerator.num_processes == 1:
            return received
        if step % AGREE_EVERY:
            return None
        flag = torch.tensor([float(received is not None)], device=accelerator.device)
        return (received or "a signal") if accelerator.reduce(flag, "sum").item() else None

    @contextmanager
    def checkpoint(self, step: int, accelerator: Accelerator, saves: bool | None = None) -> Iterator[Path]:
        """A hidden folder to fill, which becomes ``checkpoint-STEP`` once everything is on the disk.

        All processes enter it and get the same path; ``saves``: this one publishes the folder (the main one does).
        """
        saves = self.is_main if saves is None else saves
        path = self.folder / f"checkpoint-{step}"
        staging = self.folder / ".staging" / path.name
        if saves:
            shutil.rmtree(staging.parent, ignore_errors=True)
            staging.mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            with explain_failed_write(path):
                yield staging
                accelerator.wait_for_everyone()
                if saves:
                    publish(staging, path)
            if saves and self.pusher:
                self.pusher.push(path, f"step {step}")
            if saves and self.save_total_limit:
                remove_old_checkpoints(self.folder, self.save_total_limit)
        finally:
            if saves:
                shutil.rmtree(staging.parent, ignore_errors=True)
        accelerator.wait_for_everyone()


class StageRun(Run):
    """A run of one of the two stages, opened with its options.

    Args:
        world: number of processes, and which one this is; None: as the launcher's environment variables say.
        training_arguments: further `TrainingArguments` that were given.

    Raises:
        ValueError: the dataset or the output folder is missing, or cannot be used.
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
        self.world = world or (int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)))
        super().__init__(args.output_dir, is_main=self.world[1] == 0, save_total_limit=args.save_total_limit)
        set_seed(args.seed)

    def is_finished(self, steps: int, remaining: str = "nothing to do") -> bool:
        """Whether the folder holds the model of this very run; ``remaining``: what is left to do then."""
        finished = completed_steps(self.folder, self.args, self.training_arguments) == steps
        if finished:
            logger.info(f"{self.folder} holds this run, finished after {steps} steps; {remaining}")
        return finished

    def find_checkpoint(self, steps: int) -> Path | None:
        """The checkpoint to continue from, or None.

        Raises:
            ValueError: it, or a finished model in the folder, is of a run with other options (see `check_resume` and
                `check_overwrite`).
        """
        checkpoint, skipped = find_resume_checkpoint(self.folder, self.args.resume)
        for line in skipped:
            logger.info(line)
        check_overwrite(self.folder, self.args, steps, checkpoint, self.training_arguments)
        if checkpoint is not None:
            record, step = self.saved_state(checkpoint)
            for line in check_resume(record, self.args, step, steps, self.training_arguments):
                logger.info(f"resuming with another {line}")
        return checkpoint

    def saved_state(self, checkpoint: Path) -> tuple[dict[str, Any], int]:
        """The record in a checkpoint of this stage, and its step."""
        if stage_of(vars(self.args)) == "pretrain":
            state = read_record(checkpoint, STATE_FILE)
            return state, state["steps"]
        return read_record(checkpoint, RUN_FILE), read_record(checkpoint, TRAINER_STATE_NAME)["global_step"]

    def start(
        self, what: str, schedule: Schedule, processor: Any, accelerator: Accelerator, checkpoint: Path | None
    ) -> None:
        """Say in one line what is trained and how long; from here on, checkpoints are uploaded if that was asked for.

        Args:
            processor: image processor of the model, saved with it.
        """
        logger.info(
            f"{what}: {schedule.steps} steps of {schedule.global_batch_size} images "
            f"({schedule.steps / schedule.steps_per_epoch:.4g} epochs), peak learning rate {schedule.peak_lr:.3g}; "
            f"{describe_world(accelerator)}" + (f"; resumed from {checkpoint}" if checkpoint else "")
        )
        self.record = run_record(self.args, schedule.steps, self.training_arguments)
        self.processor = processor
        args = self.args
        if args.push_to_hub and self.is_main:
            self.pusher = BackgroundPusher(
                str(args.hub_model_id),
                self.folder,
                processor,
                strategy=args.hub_strategy,
                private=args.hub_private_repo or None,
                revision=args.hub_revision,
            )

    def stopped(self, signal_name: str, step: int) -> None:
        """After a stop: what is on its way to the Hub is no longer awaited."""
        if self.pusher:
            self.pusher.stop()
        steps = self.record["steps"]
        logger.info(f"stopped by {signal_name} after step {step} of {steps}; the same command continues the run")

    def save(self, model: PreTrainedModel, weights: dict[str, Any] | None = None) -> None:
        """Final model, image processor and record in the output folder; ``weights``: those of a sharded model."""
        with explain_failed_write(self.folder), publish_files(self.folder) as folder:
            model.save_pretrained(folder, state_dict=weights)
            self.processor.save_pretrained(folder)
            (self.folder / "results.json").unlink(missing_ok=True)  # of the model before this one
            write_text(folder / RUN_FILE, json.dumps(self.record, indent=2))

    def publish(self, accelerator: Accelerator) -> None:
        """The end of a run, whose folder is complete now: upload it if that was asked for."""
        accelerator.wait_for_everyone()
        kind = "pretrained" if stage_of(vars(self.args)) == "pretrain" else "fine-tuned"
        logger.info(f"saved the {kind} model in {self.folder}")
        if self.pusher and (error := self.pusher.finish(self.folder)):
            logger.warning(error)


def not_finite(step: int, folder: str | Path) -> ValueError:
    """The error for a loss that is not finite."""
    return ValueError(
        f"the loss was not finite at step {step}; its update was not made and the last checkpoint in {folder} is good: "
        "lower --base_lr, or use --mixed_precision bf16 or no instead of fp16"
    )


class MetricsLog:
    """OUTPUT/metrics.jsonl: one JSON object a logged step. A resume first cuts it back to the resumed step."""

    def __init__(self, output_dir: Path, resumed_step: int = 0):
        output_dir.mkdir(parents=True, exist_ok=True)
        self.path = output_dir / METRICS_FILE
        if self.path.exists():
            write_text(self.path, "".join(f"{line}\n" for line in _lines_up_to(self.path, resumed_step)))

    def write(self, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _lines_up_to(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            logged_step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue  # torn by a crash
        if logged_step <= step:
            yield line


class StopSignal:
    """Remembers SIGTERM and SIGUSR1, so that the training loop can finish its step, save and leave."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


def trainer_pusher(args: TrainingArguments, repo_id: str, processor: Any) -> BackgroundPusher:
    """The pusher for ``TrainingArguments(push_to_hub=True)``."""
    return BackgroundPusher(
        repo_id,
        str(args.output_dir),
        processor,
        strategy=str(getattr(args.hub_strategy, "value", args.hub_strategy)),
        private=args.hub_private_repo,
        revision=args.hub_revision,
        token=args.hub_token,
    )
