"""Several processes, each with a copy of the model: `start_multi_process_pool`."""

import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from polyvec.embed.formats.devices import check_device
from polyvec.embed.inputs.contract import check_count
from polyvec.errors import InputError, PolyvecError

Pool = dict[str, Any]


def start(model: nn.Module, devices: Iterable[str | torch.device] | None = None) -> Pool:
    """Processes that each hold the model on one of the devices; by default all GPUs, or 4 CPUs.

    The model itself moves to the CPU, whose memory they share.
    """
    if devices is None:
        count = torch.cuda.device_count()
        devices = [f"cuda:{place}" for place in range(count)] or ["cpu"] * 4
    names = [str(check_device(device)) for device in devices]
    model.to("cpu").share_memory()
    context = torch.multiprocessing.get_context("spawn")
    inputs, outputs = context.Queue(), context.Queue()
    workers = [
        context.Process(target=_work, args=(model, name, inputs, outputs), daemon=True)
        for name in names
    ]
    for worker in workers:
        worker.start()
    return {"input": inputs, "output": outputs, "processes": workers}


def stop(pool: Mapping[str, Any]) -> None:
    """End the processes of a pool."""
    for worker in pool["processes"]:
        worker.terminate()
    for worker in pool["processes"]:
        worker.join()
        worker.close()
    pool["input"].cancel_join_thread()
    pool["input"].close()
    pool["output"].close()


def run(
    pool: Mapping[str, Any],
    method: str,
    inputs: Sequence[Any],
    chunk_size: int | None,
    options: Mapping[str, Any],
) -> list[Any]:
    """What the model's method gives for each chunk of the inputs, in order.

    Raises what a worker raised, and InputError if a worker has died.
    """
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)
    if not isinstance(pool, Mapping) or not {"input", "output", "processes"} <= set(pool):
        raise InputError("pool is not one of start_multi_process_pool")
    size = chunk_size or max(1, min(-(-len(inputs) // len(pool["processes"]) // 10), 5000))
    starts = range(0, len(inputs), size)
    for place, first in enumerate(starts):
        pool["input"].put((place, method, inputs[first : first + size], dict(options)))
    found: dict[int, Any] = {}
    while len(found) < len(starts):
        place, result = _next(pool)
        found[place] = result
    for place in range(len(starts)):
        if isinstance(found[place], Exception):
            raise found[place]
    return [found[place] for place in range(len(starts))]


def in_pool(
    model: nn.Module,
    device: Any,
    pool: Mapping[str, Any] | None,
    work: Callable[[Mapping[str, Any]], Any],
) -> Any:
    """The work done with the pool, or with one that lives as long as it and has these devices."""
    if pool is not None:
        return work(pool)
    own = start(model, device)
    try:
        return work(own)
    finally:
        stop(own)


def _next(pool: Mapping[str, Any]) -> tuple[int, Any]:
    while True:
        try:
            found: tuple[int, Any] = pool["output"].get(timeout=1)
            return found
        except queue.Empty:
            dead = [str(worker.pid) for worker in pool["processes"] if not worker.is_alive()]
            if dead:
                raise InputError(f"processes of the pool have ended: {', '.join(dead)}") from None


def _work(model: nn.Module, device: str, inputs: Any, outputs: Any) -> None:
    """Compute chunks until the process is ended."""
    model.to(device)
    while True:
        place, method, chunk, options = inputs.get()
        try:
            outputs.put((place, getattr(model, method)(chunk, **options)))
        except PolyvecError as error:
            outputs.put((place, error))
        except Exception as error:  # noqa: BLE001 - it is raised where the pool is used
            outputs.put((place, RuntimeError(f"{type(error).__name__}: {error}")))
