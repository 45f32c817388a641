"""A process that loads images has died: how it is recognized, and what to tell the user. Needs no heavy library."""

from concurrent.futures.process import BrokenProcessPool

WORKER_FAILED = (
    "num_workers: a process that loads images was killed, most likely because the machine ran out of memory; lower "
    "--num_workers or --batch_size"
)


def is_worker_failure(error: RuntimeError) -> bool:
    """Whether a worker has died; torch raises the error wherever the main process happens to be."""
    return isinstance(error, BrokenProcessPool) or str(error).startswith("DataLoader worker (pid")
