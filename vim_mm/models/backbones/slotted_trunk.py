# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import re
from typing import (Callable, Dict, List, Optional, Sequence, Set, Tuple, Type,
                    Union)

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from vim_mm.utils.arguments import check_width
from vim_mm.utils.messages import short
from ..adapters import BaseAdapter
from ..autocast import cast_once
from ..layouts import as_levels, channels_of
from ..recompute import set_recompute, stop_checkpoints
from .blank_image import ProbeSize, blank_outputs
from .checkpoint import (fingerprint_tensor, initialise, keep_trunk,
                         leave_trunk_out)
from .configs import weights_of
from .image_size import check_size, takes_any_size
from .probe import find_prefix, probe_slots
from .slots import (OUTPUT_SLOTS, OutputSlot, Running, Slot, SlotSpec,
                    match_slots)
from .trunk import build_trunk
from .used_weights import hook_weight


class SlottedTrunk(BaseModule):
    """A frozen trunk with named places where something may be plugged in.

    Slots inside the trunk are forward hooks; pseudo-slots ``outputs.0``,
    ``outputs.1`` and so on are its output levels. What is added there is
    said by the pass that a subclass starts.

    Args:
        trunk (dict | nn.Module): Config of the backbone to freeze, or the
            backbone itself, see :func:`build_trunk`.
        slots (str, optional): Pattern over submodule names whose matches are
            slots in any case, see :func:`match_slots`.
        probe_size (int | Sequence[int]): Side, or height and width, of the
            blank image that finds the slots' shapes, in pixels.
        save_trunk (bool): Keep the trunk in checkpoints.
        init_cfg (dict, optional): mmengine init config.

    Raises:
        FileNotFoundError: If the trunk's weights are missing.
        ValueError: If they do not fit, or the pattern matches nothing.
    """

    def __init__(self, trunk: Union[dict, nn.Module], slots: Optional[str],
                 probe_size: ProbeSize, save_trunk: bool,
                 init_cfg: Optional[dict]) -> None:
        super().__init__(init_cfg=init_cfg)
        self.trunk = build_trunk(trunk)
        self.trunk_weights = None
        if not isinstance(trunk, nn.Module):
            self.trunk_weights = weights_of(trunk)
        self.save_trunk = save_trunk
        self.slots: Dict[str, SlotSpec] = {}
        self._pattern = slots
        sides = [probe_size] if isinstance(
            probe_size, (int, float, str)) else probe_size
        for side in sides:
            check_width(side, 'model.backbone.probe_size')
        self._probe_size = probe_size
        self._ladder: List[OutputSlot] = []
        # submodules that the trunk never calls
        self._unused: Set[str] = set()
        self._out_channels: Optional[List[int]] = None
        self._num_extra_tokens: Optional[int] = None
        # whether images need no whole number of patches, once slots tell
        # what that is
        self._takes_any_size: Optional[bool] = None
        self._running = Running()
        self._recomputes = False
        #: counts what may change how this backbone runs
        self.changes = 0
        cast_once(self.trunk)
        self._recomputes = stop_checkpoints(self.trunk)
        if self._recomputes:
            print_log(
                '`model.backbone.trunk.with_cp` cannot pass gradients to '
                'modules beside a frozen trunk: it is switched off, and '
                '`model.backbone.grad_checkpointing` on instead.',
                logger='current')

    # --------------------------------------------------------------- slots

    def _find_slots(self, names: Sequence[str], outputs: bool = False) -> None:
        """Find slots that are not known yet by one probe, and plug in."""
        outputs = outputs or any(re.fullmatch(OUTPUT_SLOTS, n) for n in names)
        outputs = outputs and not self._ladder
        known = self._unused.union(self.slots)
        names = [name for name in names if name not in known]
        if not names and not outputs:
            return
        self.changes += 1
        submodules = dict(self.trunk.named_modules())
        found = probe_slots(self.trunk, names, self._probe_size, outputs)
        self._unused.update(set(names) - set(found))
        for name, spec in found.items():
            place = len(self.slots)
            self.slots[name] = spec
            if re.fullmatch(OUTPUT_SLOTS, name):
                self._ladder.append(OutputSlot(spec, place, self._running))
                continue
            hook = Slot(spec, place, self._running).add_delta
            if spec.is_called:
                submodules[name].register_forward_hook(hook, with_kwargs=True)
            else:
                hook_weight(submodules[name], hook)
        if self._takes_any_size is None and self.size_divisor > 1:
            self._takes_any_size = takes_any_size(self.trunk,
                                                  self._probe_size)
        if self._recomputes:
            set_recompute(self.trunk, self.slots, True)

    def _slots_for(self, kind: Type[BaseAdapter],
                   pattern: Optional[str]) -> List[str]:
        """Names of the slots that a new module of a kind occupies.

        Raises:
            ValueError: If the pattern matches nothing.
        """
        if not kind.beside:
            return match_slots(self.trunk, pattern or self._pattern,
                               kind.linear)
        self._find_slots([], outputs=True)
        names = [slot.spec.name for slot in self._ladder]
        chosen = [n for n in names if re.fullmatch(pattern or '.*', n)]
        if not chosen:
            raise ValueError(f'The slot pattern {pattern!r} matches none of '
                             f'the outputs {names}.')
        return chosen

    def _check_kind(self, kind: Type[BaseAdapter], name: str) -> None:
        """Refuse a slot that a kind of adapter cannot sit in.

        Raises:
            ValueError: If the adapter needs a linear layer or a grid.
        """
        spec = self.slots[name]
        if kind.linear and not spec.is_linear:
            raise ValueError(
                f"{kind.__name__} sits in linear layers, and '{name}' is "
                'none; give it a `slots` pattern that names some.')
        if (kind.needs_grid and spec.is_linear and not spec.stride):
            raise ValueError(
                f"{kind.__name__} needs to know the rows and columns of the "
                f"tokens, which slot '{name}' does not keep; choose another "
                'slot.')

    @property
    def device(self) -> torch.device:
        """Where the trunk is."""
        return next(self.trunk.parameters()).device

    @property
    def probe_size(self) -> int:
        """Side of the image that its slots were found with, in pixels."""
        return self._probe_size

    @property
    def out_channels(self) -> List[int]:
        """Channels of every output level, as the trunk returns them.

        Raises:
            ValueError: If an output is no map, tokens or vector.
        """
        if self._out_channels is None:
            self._out_channels = channels_of(
                blank_outputs(self.trunk, self._probe_size))
        return list(self._out_channels)

    @property
    def num_extra_tokens(self) -> int:
        """Class and register tokens before the patches in its outputs."""
        if self._num_extra_tokens is None:
            self._num_extra_tokens = find_prefix(self.trunk, self._probe_size)
        return self._num_extra_tokens

    @property
    def levels(self) -> List[int]:
        """Which stages of the trunk its outputs come from."""
        num = len(self._ladder)
        indices = getattr(self.trunk, 'out_indices', None)
        if isinstance(indices, (list, tuple)) and len(indices) == num:
            return [int(index) for index in indices]
        return list(range(num))

    def _check_levels(self, module: str, levels: Optional[Sequence]) -> None:
        """Refuse a module beside the trunk that was made for other levels.

        Raises:
            ValueError: If it was.
        """
        if levels is not None and (not isinstance(levels, (list, tuple))
                                   or list(levels) != self.levels):
            raise ValueError(
                f"Module '{module}' reads the trunk's stages {short(levels)}, "
                f'and this trunk gives out {self.levels}; set '
                '`model.backbone.trunk.out_indices` to what it reads.')

    def own_slots(self) -> List[str]:
        """The slots of the pattern alone, whatever modules are plugged in."""
        try:
            return match_slots(self.trunk, self._pattern)
        except ValueError:  # a trunk without default slots
            return list(self.slots)

    @property
    def size_divisor(self) -> int:
        """What heights and widths of images are multiples of: a patch."""
        strides = [s.stride for s in self.slots.values() if s.stride]
        return min(strides, default=1)

    def _check_size(self, x: Tensor) -> None:
        check_size(x, self.size_divisor, bool(self._takes_any_size))

    # ------------------------------------------------------------- running

    def _run_trunk(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Run the trunk, with what :attr:`_running` adds in its slots."""
        levels = as_levels(self.trunk(x))
        if self._running.now is not None and torch.is_grad_enabled(
        ) and not torch.compiler.is_compiling():
            self._running.repeat_in_backward(levels)
        return levels

    def read_levels(self, x: Tensor) -> Tuple[Tensor, ...]:
        """One pass for all modules beside the trunk, without autograd.

        Args:
            x (Tensor): Normalised images, (B, 3, H, W).

        Returns:
            tuple[Tensor]: The bare trunk's outputs; with autograd only where
            somebody asks for the images' gradients or has thawed the trunk.

        Raises:
            ValueError: If H or W is not divisible by the patch size.
        """
        self._check_size(x)
        learns = x.requires_grad or any(p.requires_grad
                                        for p in self.trunk.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self._run_trunk(x)

    def _climb(self, levels: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Add the deltas of the output slots, level by level."""
        states: dict = {}
        return tuple(
            slot.raise_level(level, states)
            for slot, level in zip(self._ladder, levels))

    # --------------------------------------------------- freezing, saving

    def _guard_checkpoints(self) -> None:
        self._register_state_dict_hook(leave_trunk_out)
        self._register_load_state_dict_pre_hook(keep_trunk, with_module=True)
        self.register_buffer('trunk_fingerprint', fingerprint_tensor(self))

    def train(self, mode: bool = True) -> 'SlottedTrunk':
        """Train the parts beside the trunk; the trunk stays in eval mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> 'SlottedTrunk':
        """See :meth:`torch.nn.Module.requires_grad_`."""
        self.changes += 1
        return super().requires_grad_(requires_grad)

    def _apply(self, *args, **kwargs) -> 'SlottedTrunk':
        self.changes += 1
        return super()._apply(*args, **kwargs)

    def grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the trunk's blocks for the backward pass.

        The blocks, and what the modules do in them, then run once more there:
        the same gradients for less memory and more time.

        Args:
            enable (bool): Whether to. Defaults to True.

        Raises:
            ValueError: If the trunk has no repeated blocks around its slots.
        """
        found = set_recompute(self.trunk, self.slots, enable)
        if enable and not found:
            raise ValueError(
                f'{type(self.trunk).__name__} has no repeated blocks around '
                'its slots to run again; leave out '
                '`model.backbone.grad_checkpointing`.')
        self._recomputes = enable

    def init_weights(self) -> None:
        """Apply ``init_cfg``, if any: the trunk is loaded, adapters zero."""
        if self.init_cfg:
            initialise(self)

    def apply(self, fn: Callable[[nn.Module], None]) -> 'SlottedTrunk':
        """Keep ``fn`` from the parts inside.

        A model's own ``init_cfg`` (Swin classifiers have one) reaches every
        layer through ``apply``, when trunk and modules are loaded already.
        """
        fn(self)
        return self
