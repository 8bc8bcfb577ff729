# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import math
import sys
import time
from typing import Dict, List, Optional, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import nn

from vim_mm.models.backbones import ViMBackbone
from vim_mm.registry import HOOKS
from vim_mm.utils.wrappers import unwrap
from ..rates import backbones

#: Parts of a backbone, and what they are called.
_PARTS = dict(trunk='trunk', bank='modules', fusion='gates')
#: The iteration that is timed: the first ones warm up.
_TIMED = 3


@HOOKS.register_module()
class SummaryHook(Hook):
    """Log what a run with a frozen trunk trains, and what it will cost.

    Before training a table of all parameters that are trained, frozen and
    stored in checkpoints; after a few iterations how long one takes. Every
    runner has this hook; without a :class:`ViMBackbone` it does nothing.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Log the table."""
        self._done, self._time = 0, 0.
        model = unwrap(runner.model)
        self._speaks = any(backbones(model))
        if self._speaks:
            own = ', of which this process counts its part' if getattr(
                getattr(runner, 'strategy', None), 'divides', False) else ''
            runner.logger.info(f'What is trained{own}:\n' + table_of(model))
            preprocessor = getattr(model, 'data_preprocessor', None)
            # a library's own default stacks images, and no more
            if not getattr(preprocessor, '_enable_normalize', True):
                runner.logger.warning(
                    'Images reach the trunk as they are, from 0 to 255: the '
                    '`data_preprocessor` has no `mean` and `std`; give those '
                    "of the trunk (`trunk_normalization` of its config).")

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Log what an iteration costs, once that is known."""
        self._done += 1
        if not self._speaks or self._done > _TIMED:
            return
        before, self._time = self._time, time.perf_counter()
        if self._done == _TIMED:
            seconds = self._time - before
            left = runner.max_iters - runner.iter - 1
            runner.logger.info(
                f'An iteration takes about {seconds:.2g} s, so the {left} '
                f'left some {_duration(left * seconds)}, without validation'
                f'{_memory(next(unwrap(runner.model).parameters()).device)}.')


def table_of(model: nn.Module) -> str:
    """The parameters of a model part by part, and what a pass looks at.

    Args:
        model (nn.Module): The model, not wrapped.
    """
    found = dict(backbones(model))
    left_out = tuple(f'{prefix}.trunk.' for prefix, backbone in found.items()
                     if not backbone.save_trunk)
    rows: Dict[str, List[int]] = {}
    for name, param in model.named_parameters():
        row = rows.setdefault(_part(name, list(found)), [0, 0, 0])
        row[0 if param.requires_grad else 1] += param.numel()
        row[2] += 0 if name.startswith(left_out) else param.numel()
    rows['all'] = [sum(column) for column in zip(*rows.values())]
    table = Table()
    for heading in ('parameters', 'trained', 'frozen', 'stored'):
        table.add_column(
            heading, justify='left' if heading == 'parameters' else 'right')
    for name, row in rows.items():
        table.add_row(name, *(f'{number:,}' for number in row))
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = [capture.get().rstrip()]
    for backbone in found.values():
        size = (backbone.probe_size, ) * 2
        tokens = tokens_of(backbone, size)
        if tokens:
            lines.append(f'{type(backbone.trunk).__name__}: {tokens} tokens '
                         f'an image of {size[0]}x{size[1]} px')
    return '\n'.join(lines)


def tokens_of(backbone: ViMBackbone, size: Tuple[int, int]) -> int:
    """Tokens of an image in the trunk's first slot; 0 if it has maps there.

    Args:
        backbone (ViMBackbone): The backbone.
        size (tuple[int, int]): Height and width of the image, in pixels.
    """
    for spec in backbone.slots.values():
        if spec.stride and not spec.is_map:
            rows, cols = (math.ceil(side / spec.stride) for side in size)
            return rows * cols + spec.num_extra_tokens
    return 0


def _part(name: str, prefixes: List[str]) -> str:
    """What a parameter is counted under."""
    for prefix in prefixes:
        if name.startswith(f'{prefix}.'):
            own = name[len(prefix) + 1:].split('.')[0]
            around = prefix.rpartition('.')[0]
            return f'{around} {_PARTS.get(own, own)}'.strip()
    around = [p.rpartition('.')[0] for p in prefixes]
    outer = next((p for p in around if p and name.startswith(f'{p}.')), '')
    return f'{outer} {name[len(outer):].strip(".").split(".")[0]}'.strip()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else \
        f'{seconds / 3600:.1f} h'


def _memory(device: torch.device) -> str:
    """What the run has needed so far, where the system says so."""
    if device.type == 'cuda':
        used, what = torch.cuda.max_memory_allocated(device), 'GPU memory'
    elif sys.platform == 'linux':
        import resource  # not everywhere
        used, what = resource.getrusage(
            resource.RUSAGE_SELF).ru_maxrss * 2**10, 'memory'
    else:
        return ''
    return f'; so far it has needed {used / 2**30:.1f} GB of {what}'
