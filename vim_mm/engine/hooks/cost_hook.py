# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from vim_mm.models.distillers import BaseDistiller
from vim_mm.registry import HOOKS
from vim_mm.utils.files import write_atomic
from vim_mm.utils.wrappers import unwrap

FILE = 'cost.json'
COUNTS = ('forwards', 'backwards')


@HOOKS.register_module()
class CostHook(Hook):
    """Count what a distillation costs, and write it when it ends.

    ``WORK_DIR/cost.json`` has the ``seconds`` of training, preparation
    included; the images that went forward and backward through frozen
    networks, all together and by network; the parameters that learn; the
    largest memory in MB, of the process or its GPU. Counts are of all
    processes, seconds and memory of the first; a resumed run goes on
    counting.
    """

    # before what prepares the training
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.seconds = 0.
        self.counts: Dict[str, Dict[str, int]] = {}
        self._handles: list = []

    def before_train(self, runner: Runner) -> None:
        """Start the clock, and count at the networks."""
        self._start = time.perf_counter()
        model = unwrap(runner.model)
        self._learns = sum(p.numel() for p in model.parameters()
                           if p.requires_grad)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if not isinstance(model, BaseDistiller):
            return
        for name, outside in model.outside.items():
            counts = self.counts.setdefault(name, dict.fromkeys(COUNTS, 0))
            self._handles += watch(outside.network.backbone, counts)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the counts of this process, to go on from."""
        if hasattr(self, '_start'):
            checkpoint['cost'] = dict(
                seconds=self._elapsed(), counts=self.counts)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on counting."""
        cost = checkpoint.get('cost')
        if runner._resume and cost:
            self.seconds = cost['seconds']
            self.counts = {
                name: dict(counts)
                for name, counts in cost['counts'].items()
            }

    def after_train(self, runner: Runner) -> None:
        """Write the file, and a line to the log."""
        for handle in self._handles:
            handle.remove()
        networks = {
            name: {key: _summed(value)
                   for key, value in counts.items()}
            for name, counts in self.counts.items()
        }
        report: Dict[str, Any] = dict(seconds=round(self._elapsed(), 3))
        for key in COUNTS:
            report[key] = sum(counts[key] for counts in networks.values())
        report.update(
            trainable_params=self._learns,
            peak_mb=peak_mb(),
            networks=networks)
        proxy = runner.message_hub.runtime_info.get('proxy')
        if proxy:
            report['proxy'] = dict(proxy)
        if is_main_process():
            write_atomic(
                Path(runner.work_dir, FILE),
                json.dumps(report, indent=1) + '\n')
        runner.logger.info(f'CostHook: {json.dumps(report)}')

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._start


def watch(network: nn.Module, counts: Dict[str, int]) -> list:
    """Count the images that go forward and backward through a network.

    Args:
        network (nn.Module): It reads images first.
        counts (dict[str, int]): Changed from now on, see :data:`COUNTS`.

    Returns:
        list: Handles that end it.
    """

    def backward(grad: torch.Tensor) -> None:
        counts['backwards'] += len(grad)

    def forward(_: nn.Module, args: tuple, outputs: Any) -> None:
        counts['forwards'] += len(args[0])
        levels = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        last = levels[-1]
        if last.requires_grad:
            last.register_hook(backward)

    return [network.register_forward_hook(forward)]


def peak_mb() -> Optional[float]:
    """Largest memory so far, of the GPU or the process; None on Windows."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    if os.name != 'posix':
        return None
    import resource

    # in kilobytes, on macOS in bytes
    unit = 1e6 if sys.platform == 'darwin' else 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / unit, 1)


def _summed(count: int) -> int:
    total = torch.tensor(count)
    all_reduce(total)
    return int(total)
