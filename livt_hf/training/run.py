"""What a run remembers of itself, so that the same command can continue it and another one cannot spoil it.

Both stages share this: the record beside a model or in a checkpoint, the comparison of its arguments with those of now,
and stopping together on a signal.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.checkpoint.state_dict import StateDictOptions
from transformers import TrainingArguments

from ..config.arguments import StageArguments
from ..files import METRICS_FILE, RUN_FILE, write_text
from ..hub.background import BackgroundPusher
from ..reporting.provenance import public_name

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # tensors that are not cut into shards
AGREE_EVERY = 10  # steps between the moments at which several processes compare whether one was told to stop


def run_record(args: StageArguments, steps: int, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is kept of a run beside its model; of ``more``, further `TrainingArguments`, what may change the result."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    training_arguments = {name: value for name, value in (more or {}).items() if name not in _FREE}
    return {
        "steps": steps,
        "command": training_command(args, training_arguments),
        "arguments": dataclasses.asdict(args),
        "training_arguments": training_arguments,
        "versions": versions,
    }


# They change no result.
_NOT_IN_COMMAND = {"recipe", "config", "resume", "save_every", "save_total_limit", "logging_steps", "num_workers"}


def training_command(args: StageArguments, training_arguments: dict[str, Any]) -> str:
    """The command that repeats a run: every option that differs from its default, local paths by their last part."""
    options, defaults = dataclasses.asdict(args), dataclasses.asdict(type(args)())
    words = ["livt", stage_of(options)]
    given = {
        name: value
        for name, value in options.items()
        if value is not None and value != defaults[name] and name not in _NOT_IN_COMMAND
    }
    for name, value in (given | training_arguments).items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(public_name(f"{v:g}" if isinstance(v, float) else v) for v in values)]
    return shlex.join(words)


def stage_of(arguments: Mapping[str, Any]) -> str:
    """The stage whose options these are."""
    return "pretrain" if "mask_ratio" in arguments else "finetune"


_FREE = {
    "resume",
    "output_dir",
    "recipe",
    "config",
    "num_workers",
    "max_bad_images",
    "save_every",
    "save_total_limit",
    "logging_steps",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_strategy",
    "eval_split",
    "picture_every",
    "probe_every",
    "log_with",
    # and of TrainingArguments
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


def changed_arguments(record: dict[str, Any], args: StageArguments, more: dict[str, Any] | None = None) -> list[str]:
    """A line for each option whose value differs from a run's record, those that cannot change the result left out.

    An option that the record does not know, since the package did not when it was written, had today's default.
    ``more``: further `TrainingArguments` of now; a record from before these were kept says nothing of them.
    """
    more = more or {}
    more_before = record.get("training_arguments", more)
    before = {**dataclasses.asdict(type(args)()), **record["arguments"], **more_before}
    now = {**dataclasses.asdict(args), **more}
    pairs = {name: (before.get(name, "its default"), now.get(name, "its default")) for name in {**now, **more_before}}
    return [f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if name not in _FREE and old != new]


_SHAPE = {
    "model_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "pretrained",
    "pooling",
    "stage",
    "classifier_method",
    "layer_decay",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
}


def read_record(checkpoint: Path, file: str) -> dict[str, Any]:
    """What a checkpoint of this stage says of its run; ValueError if it is one of the other stage."""
    try:
        return json.loads((checkpoint / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"resume: {str(checkpoint)!r} is a checkpoint of another stage (it has no {file}); choose another "
            "output_dir or checkpoint"
        ) from None


def check_continues(
    record: dict[str, Any], args: StageArguments, step: int, steps: int, more: dict[str, Any] | None = None
) -> list[str]:
    """A line for each changed option of a run that goes on from a checkpoint with that record at ``step``.

    Raises:
        ValueError: the options make another model, or there is nothing left to train with the changed ones.
    """
    changed = changed_arguments(record, args, more)
    fixed = [line for line in changed if line.split(":")[0] in _SHAPE]
    advice = "choose another output_dir, delete it, or keep the options"
    if fixed:
        raise ValueError(f"output_dir: {args.output_dir!r} holds a run with another {'; '.join(fixed)}; {advice}")
    if changed and step >= steps:
        raise ValueError(
            f"output_dir: {args.output_dir!r} holds a run that is at step {step} of {steps}: nothing would be trained "
            f"with another {'; '.join(changed)}; {advice}"
        )
    return changed


def check_keeps(
    output_dir: Path, args: StageArguments, steps: int, checkpoint: Path | None, more: dict[str, Any] | None = None
) -> None:
    """ValueError if a run would replace a finished model in its folder that another run made.

    A longer run that goes on from a checkpoint may, and so may ``--resume never``.
    """
    if args.resume == "never" or not (output_dir / RUN_FILE).is_file():
        return
    record = read_record(output_dir, RUN_FILE)
    here = f"output_dir: {str(output_dir)!r} holds the finished model of"
    if stage_of(record["arguments"]) != stage_of(vars(args)):
        raise ValueError(f"{here} the other stage; name another folder")
    changed = changed_arguments(record, args, more)
    if changed and (checkpoint is None or steps <= record["steps"]):
        raise ValueError(
            f"{here} a run with another {'; '.join(changed)}; name another output_dir, keep the options, or replace it "
            "with --resume never"
        )


def finished_steps(output_dir: Path, args: StageArguments, more: dict[str, Any] | None = None) -> int | None:
    """Steps of the finished run in a folder, if it is there and had the same arguments."""
    try:
        record = json.loads((output_dir / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return None if changed_arguments(record, args, more) else record["steps"]


def check_precision(mixed_precision: str | None) -> None:
    """ValueError for fp16 without a GPU: Accelerate would compute in float32 and say nothing."""
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("mixed_precision: fp16 needs a GPU; use bf16 or no")


def describe_world(accelerator: Accelerator) -> str:
    sharded = f", {accelerator.distributed_type.value}" if accelerator.distributed_type == DistributedType.FSDP else ""
    return (
        f"world size {accelerator.num_processes} on {accelerator.device.type}{sharded}, "
        f"mixed precision {accelerator.mixed_precision}"
    )


def agreed_stop(accelerator: Accelerator, stop: StopSignal, step: int) -> str | None:
    """The signal that reached any process, known to all of them at the same step."""
    if accelerator.num_processes == 1:
        return stop.received
    if step % AGREE_EVERY:
        return None
    told = torch.tensor([float(stop.received is not None)], device=accelerator.device)
    return (stop.received or "a signal") if accelerator.reduce(told, "sum").item() else None


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


def start_pusher(args: StageArguments, processor: Any) -> BackgroundPusher | None:
    """The pusher that a stage's options ask for; for the main process only."""
    if not args.push_to_hub:
        return None
    return BackgroundPusher(
        str(args.hub_model_id),
        args.output_dir,
        processor,
        strategy=args.hub_strategy,
        private=args.hub_private_repo or None,
        revision=args.hub_revision,
    )


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
