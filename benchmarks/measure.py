"""Seconds and bytes of a function, on CPU or GPU."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from threading import BrokenBarrierError
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from vlapost.config import UserError

LONGEST_WAIT = 600  # seconds for another process
Result = TypeVar("Result")
_barrier: Barrier  # of this process, if `at_once` began it

# Dense bfloat16 products per second and bytes of memory per second, as published.
PEAKS = {
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.04e12),
}


def seconds(work: Callable[[], Any], device: str, runs: int) -> float:
    """Median of `runs`, after one that is not counted."""

    def once() -> float:
        start = perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - start

    once()
    return median(once() for _ in range(runs))


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """Most bytes allocated at once: on a GPU all there are, on CPU those beyond what was there before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    present = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        present += event.nbytes()
        peak = max(peak, present)
    return peak


def roofline(device: str) -> tuple[float, float]:
    """Operations per second and bytes per second: published for a known GPU, else of a large product and copy."""
    if device == "cuda":
        known = PEAKS.get(torch.cuda.get_device_name())
        if known:
            return known
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.empty_like(a)
    return 2 * size**3 / seconds(lambda: a @ a, device, 5), 2 * a.nbytes / seconds(lambda: b.copy_(a), device, 5)


def at_once(work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]]) -> list[Result]:
    """`work(*job)` of every job in a process of its own, side by side: each waits for the others in `all_here`.

    Raises:
        UserError: what stopped a process, or that one died.
    """
    context = mp.get_context("spawn")
    barrier = context.Barrier(len(jobs), timeout=LONGEST_WAIT)
    with ProcessPoolExecutor(len(jobs), context, _start, (barrier,)) as pool:
        futures = [pool.submit(_work, work, job) for job in jobs]
        failures = [error for error in map(Future.exception, futures) if error is not None]
    for error in sorted(failures, key=lambda error: isinstance(error, BrokenBarrierError)):  # the cause comes first
        if isinstance(error, BrokenProcessPool):
            raise UserError("A measuring process died, most likely for lack of memory; end other programs.")
        raise error
    return [future.result() for future in futures]


def all_here() -> None:
    """Wait, inside `at_once`, until every process has come this far."""
    _barrier.wait()


def _start(barrier: Barrier) -> None:
    """First call in every process."""
    global _barrier
    _barrier = barrier
    torch.set_num_threads(1)


def _work(work: Callable[..., Result], job: tuple[Any, ...]) -> Result:
    try:
        return work(*job)
    except BaseException:
        _barrier.abort()  # the others need not wait
        raise


def machine() -> dict[str, Any]:
    """What stands beside measured numbers."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cores": len(os.sched_getaffinity(0)), "cpu": cpu}
