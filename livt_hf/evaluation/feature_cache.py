"""Features on disk: computed once for the same weights, images and transform.

A file HF_HOME/livt_hf/features/KEY.arrow (HF_HOME as of huggingface_hub, ~/.cache/huggingface by default) holds the
features of one split, in order, as the column ``vector``: an Arrow IPC file, one record batch for each batch of images,
each with the checksum of its values. Any of these files can be deleted at any time.

Legend: B batch, N images, D width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from huggingface_hub import constants
from transformers import PreTrainedModel

from ..data.table import Rows
from ..files import publish_file
from ..models.features import encoder_weights

logger = logging.getLogger(__name__)
FORMAT = 1  # part of the key: raised when the same key would mean other numbers
CHECKSUM = "crc32"
ABANDONED = 86_400  # seconds since the last change after which a temporary file belongs to no running process
# Fields of a config that say nothing about features: labels, the loss, and how the model was or will be trained.
_NOT_FEATURES = {
    "_name_or_path",
    "adjustment",
    "architectures",
    "class_balanced_batches",
    "class_counts",
    "class_weights",
    "drop_path_rate",
    "id2label",
    "label2id",
    "label_smoothing",
    "loss",
    "num_labels",
    "pretrained",
    "problem_type",
    "shot_groups",
    "tau",
    "transformers_version",
    "use_cache",
}


def cache_file(model: PreTrainedModel, split: Dataset, image_processor: Any, device: str | torch.device) -> Path:
    """The file of the features of a split. Its name is a digest of all that determines them.

    These are the encoder's weights, its config but for `_NOT_FEATURES`, the settings of the image processor, the dtype
    of the model with the precision of autocast and of float32 matrix products, and the images, in order: their encoded
    bytes, or path, size and time of change of those in files of their own. CPU and GPU share a file, whose numbers may
    then differ in the last digits. A model that computes anything else in its `features` needs a class of another name.

    Args:
        device: on which the features would be computed; its autocast counts.
    """
    digest = hashlib.blake2b(digest_size=20)
    kind = torch.device(device).type
    autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_FEATURES}
    settings = {
        "format": FORMAT,
        "model": type(model).__name__,
        "config": config,
        "processor": image_processor.to_dict(),
        "precision": [str(model.dtype), autocast, torch.get_float32_matmul_precision()],
    }
    _add(digest, json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder_weights(model).items()):
        _add(digest, f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        _add(digest, tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    _add_images(digest, split)
    return cache_folder() / f"{digest.hexdigest()}.arrow"


def cache_folder() -> Path:
    """HF_HOME/livt_hf/features."""
    return Path(constants.HF_HOME) / "livt_hf" / "features"


def _add(digest: Any, part: bytes | np.ndarray) -> None:
    """Add a part with its length, so that two parts are not the same as one."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _add_images(digest: Any, split: Dataset) -> None:
    rows = Rows(split)
    for index in range(len(rows)):
        image = rows.image(index)
        if image["bytes"] is not None:
            _add(digest, image["bytes"])
            continue
        path = os.path.abspath(image["path"])
        try:
            found = os.stat(path)
        except OSError:
            _add(digest, f"{path} missing".encode())  # reading it explains the error
            continue
        _add(digest, f"{path} {found.st_size} {found.st_mtime_ns}".encode())


def read_features(file: Path, number: int) -> np.ndarray | None:
    """Features, float32 (N, D), of ``number`` images; None, with a line if it is damaged, if there is no such file."""
    try:
        with pa.memory_map(str(file)) as source:
            return _checked(pa.ipc.open_file(source), number)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning(f"features: {file} is damaged ({str(error).splitlines()[0]}); they are computed again")
        return None


def _checked(reader: pa.ipc.RecordBatchFileReader, number: int) -> np.ndarray:
    features = np.empty((number, reader.schema.field("vector").type.list_size), dtype=np.float32)
    done = 0
    for place in range(reader.num_record_batches):
        batch, about = reader.get_batch_with_custom_metadata(place)
        values = batch.column("vector").flatten().to_numpy()  # (B * D,), in the mapped file
        if zlib.crc32(values) != int(about[CHECKSUM]):
            raise ValueError(f"the checksum of rows {done} to {done + len(batch) - 1} is wrong")
        features[done : done + len(batch)] = values.reshape(len(batch), -1)
        done += len(batch)
    if done != number:
        raise ValueError(f"it has {done} rows instead of {number}")
    return features


@contextmanager
def writing(file: Path | None) -> Iterator[Callable[[np.ndarray], None]]:
    """Context in which the features of a split are written, batch by batch; the file is there once all are.

    Several processes can write the same file: each has a temporary one, and all have the same content. What cannot be
    written, for instance because the disk is full, is logged and left out: the features are computed anyway.

    Args:
        file: of `cache_file`; None: nothing is kept.

    Yields:
        Appends features, float32 (B, D).
    """
    writer = None if file is None else _Writer(file)
    if writer is None:
        yield lambda features: None
        return
    try:
        yield writer.write
        writer.publish()
    finally:
        writer.close()


class _Writer:
    def __init__(self, file: Path):
        self.file = file
        self.temporary = file.with_name(f".{file.stem}.{uuid.uuid4().hex}.tmp")
        self.stream: Any = None
        self.arrow: Any = None
        with self._failures_logged():
            file.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(file.parent)
            self.stream = self.temporary.open("xb")

    def write(self, features: np.ndarray) -> None:
        if self.stream is None:
            return
        values = np.ascontiguousarray(features, dtype=np.float32).reshape(-1)  # (B * D,)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), features.shape[1])
        batch = pa.record_batch({"vector": vectors})
        with self._failures_logged():
            if self.arrow is None:
                self.arrow = pa.ipc.new_file(self.stream, batch.schema)
            self.arrow.write_batch(batch, {CHECKSUM: str(zlib.crc32(values.data))})

    def publish(self) -> None:
        if self.arrow is not None and self.stream is not None:
            with self._failures_logged():
                self.arrow.close()
                self.stream.close()
                publish_file(self.temporary, self.file)

    def close(self) -> None:
        """Leave nothing but a published file."""
        if self.stream is not None:
            with suppress(OSError):  # of what could not be flushed
                self.stream.close()
            self.stream = None
            self.temporary.unlink(missing_ok=True)

    @contextmanager
    def _failures_logged(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            logger.warning(f"features: they cannot be kept in {self.file.parent} ({reason}); the next run repeats them")
            self.close()


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files of processes that were killed."""
    for file in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink()
