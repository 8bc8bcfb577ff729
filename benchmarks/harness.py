# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What all rows of ``bench.py`` share: goals, results and the stop watch."""

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

import torch


@dataclass(frozen=True)
class Settings:
    """How rows are measured.

    Attributes:
        device (str): Where those run that do not name a device themselves.
        quick (bool): Take a tiny model, tiny zoos and two runs: whether all
            rows work, and no figure.
    """
    device: str = 'cpu'
    quick: bool = False

    def runs(self, number: int) -> int:
        """How often to repeat, for a number that a real run takes."""
        return 2 if self.quick else number

    def batch(self, number: int) -> int:
        """Images a batch, alike."""
        return min(number, 4) if self.quick else number

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return 32 if self.quick else 224

    def images(self, number: int, device: Optional[str] = None) -> Any:
        """A batch of noise."""
        side = self.size
        return torch.randn(number, 3, side, side, device=device or self.device)


@dataclass(frozen=True)
class Goal:
    """A row before it is measured.

    Attributes:
        name (str): What is measured.
        against (str): What it is divided by.
        target (float): What the ratio must not exceed.
    """
    name: str
    against: str
    target: float


@dataclass(frozen=True)
class Result:
    """What a row measured.

    Attributes:
        ratio (float, optional): Ours divided by the opponent, or a count.
        median_s (float, optional): Seconds of ours.
        peak_mb (float, optional): Peak memory of ours.
        runs (int): Repeats behind a median; 1 for what is counted.
    """
    ratio: Optional[float]
    median_s: Optional[float] = None
    peak_mb: Optional[float] = None
    runs: int = 1


@dataclass(frozen=True)
class Benchmark:
    """One or several rows that are measured in one go.

    Attributes:
        name (str): For ``--only`` and for messages.
        goals (list[Goal]): Its rows.
        run (Callable): Yields a :class:`Result` for each goal, in order.
        needs_gpu (bool): Whether the rows say nothing without a GPU.
    """
    name: str
    goals: List[Goal]
    run: Callable[[Settings], Iterator[Result]]
    needs_gpu: bool = False


def synchronize(device: str) -> None:
    """Wait for what the device still has to do."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Within this context no collection falls into somebody's turn."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Times:
    """Seconds of several runs that took turns."""

    def __init__(self, seconds: Mapping[str, List[float]]) -> None:
        self.seconds = seconds

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def against(self,
                ours: str,
                other: str,
                peak_mb: Optional[float] = None) -> Result:
        """A row of two of them: the ratio is that of the medians."""
        mine = self.median(ours)
        return Result(mine / self.median(other), mine, peak_mb,
                      len(self.seconds[ours]))


def take_turns(runs: Mapping[str, Callable[[], Any]],
               repeats: int,
               device: str = 'cpu',
               warmup: int = 3) -> Times:
    """Time several runs side by side: A B C A B C, after a warm-up.

    A machine that slows down for a while slows all of them down.

    Args:
        runs (Mapping[str, Callable]): What to time, by name.
        repeats (int): Turns that count.
        device (str): Waited for before and after each. Defaults to 'cpu'.
        warmup (int): Turns before, at most as many as ``repeats``.
    """
    seconds: Dict[str, List[float]] = {name: [] for name in runs}
    for _ in range(min(warmup, repeats)):
        for run in runs.values():
            run()
    with no_garbage_collection():
        for _ in range(repeats):
            for name, run in runs.items():
                synchronize(device)
                start = time.perf_counter()
                run()
                synchronize(device)
                seconds[name].append(time.perf_counter() - start)
    return Times(seconds)


def peak_mb_on_gpu(run: Callable[[], Any], device: str) -> Optional[float]:
    """Megabytes that a run holds at most; None on a CPU."""
    if not device.startswith('cuda'):
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e6
