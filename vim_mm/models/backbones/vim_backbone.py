# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule, initialize
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.zoo import Zoo, trunk_fingerprint
from ..adapters import AdapterBank
from ..fusion import build_fusion
from .slots import SlotSpec, find_slots, slot_input
from .trunk import build_trunk, is_meta, pretrained


class Slot:
    """Adds the bank's delta to the output of one submodule of the trunk.

    A plain object whose bound method is the forward hook: a deep copy of the
    backbone (an EMA model) then runs its own adapters, which a closure would
    not.
    """

    def __init__(self, index: int, spec: SlotSpec,
                 backbone: 'ViMBackbone') -> None:
        self.index = index
        self.spec = spec
        self.backbone = backbone

    def add_delta(self, _: nn.Module, args: tuple, kwargs: dict,
                  output: Tensor) -> Tensor:
        """Forward hook; tokens are read beside the submodule, maps after it.

        Blocks of a CNN change width and stride, so only their output has a
        shape that is always right.
        """
        x = output if self.spec.is_map else slot_input(args, kwargs)
        grid = tuple(x.shape[-2:]) if self.spec.is_map else None
        if self.spec.is_map:
            x = x.flatten(2).transpose(1, 2)
        delta = self.backbone.delta(self, x, grid)
        if delta is None:
            return output
        if self.spec.is_map:
            delta = delta.transpose(1, 2).unflatten(2, grid)
        return output + delta


@MODELS.register_module()
class ViMBackbone(BaseModule):
    """A frozen trunk from any registry, with a bank of modules beside it.

    With a fusion, or with one module, the output is that of the trunk: the
    usual tuple of maps. With several modules and no fusion it is one such
    tuple per module, for :class:`ViMFusionNeck`.

    Args:
        trunk (dict): Config of the backbone to freeze. Weights named by its
            ``init_cfg`` are loaded at once and must fit.
        adapter (dict): Config of the adapters of ``new_module``.
            Defaults to ``dict(type='ConvPass', hidden_dims=8)``.
        new_module (str, optional): Name of a fresh, trainable module.
        modules (Sequence[str]): Names of modules to load from ``zoo``.
            Defaults to none.
        tune_modules (bool): Train the loaded modules too: what they become
            is kept in the run's checkpoints, the zoo stays as it is. Defaults
            to False, frozen.
        zoo (str, optional): Directory of the zoo.
        fusion (dict, optional): Config of a fusion in the trunk over
            ``modules`` and ``new_module``. Defaults to None.
        task (str, optional): The task to run, and to train; the first of the
            fusion when None.
        slots (str, optional): Pattern over submodule names, see
            :func:`find_slots`. Defaults to that of the trunk's class.
        probe_size (int): Side of the blank picture that finds the slots'
            shapes, in pixels. Defaults to 224.
        save_trunk (bool): Keep the trunk in checkpoints. Defaults to False.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        FileNotFoundError: If the trunk's weights are missing.
        ValueError: If a name, pattern or config does not fit; the sentence
            names it.
        ZooError: If a module of the zoo is damaged or belongs to another
            trunk.
    """

    def __init__(self,
                 trunk: dict,
                 adapter: dict = dict(type='ConvPass', hidden_dims=8),
                 new_module: Optional[str] = None,
                 modules: Sequence[str] = (),
                 tune_modules: bool = False,
                 zoo: Optional[str] = None,
                 fusion: Optional[dict] = None,
                 task: Optional[str] = None,
                 slots: Optional[str] = None,
                 probe_size: int = 224,
                 save_trunk: bool = False,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.trunk = build_trunk(trunk)
        self.trunk_weights = pretrained(trunk).get('checkpoint')
        self.save_trunk = save_trunk
        self.slots = find_slots(self.trunk, slots, probe_size)
        self.bank = AdapterBank()
        self.load_modules(zoo, modules, tune_modules)
        self.new_module = new_module
        if new_module is not None:
            self.bank.add(
                new_module, adapter,
                {n: s.dims
                 for n, s in self.slots.items() if s.is_read})
        self.fusion = None
        if fusion is not None:
            self.fusion = build_fusion(fusion, self.bank.names,
                                       len(self.slots),
                                       [s.dims for s in self.slots.values()])
        self._task: Optional[str] = None
        self.select_task(task)
        self._only: Optional[List[str]] = None
        self._active: Tuple[List[str], Optional[Tensor]] = ([], None)
        self._picture: Tuple[int, int] = (0, 0)
        self._plug_in()
        self._register_state_dict_hook(self._leave_trunk_out)
        self._register_load_state_dict_pre_hook(self._keep_trunk)
        self.register_buffer('trunk_fingerprint', self._fingerprint())
        self.train()

    # ------------------------------------------------------------ building

    def _plug_in(self) -> None:
        submodules = dict(self.trunk.named_modules())
        for index, (name, spec) in enumerate(self.slots.items()):
            submodules[name].register_forward_hook(
                Slot(index, spec, self).add_delta, with_kwargs=True)

    def load_modules(self,
                     zoo: Optional[str],
                     modules: Sequence[str],
                     trainable: bool = False) -> None:
        """Load modules from a zoo into the bank.

        Args:
            zoo (str, optional): Directory of the zoo.
            modules (Sequence[str]): Their names.
            trainable (bool): Whether they learn in the slots that an output
                of the trunk depends on. Defaults to False.

        Raises:
            ValueError: If modules are named without a zoo.
            ZooError: If a module is unknown, damaged or of another trunk.
        """
        if modules and zoo is None:
            raise ValueError(f'The modules {list(modules)} are to be loaded, '
                             'but no `zoo` is given; set '
                             '`model.backbone.zoo` to its directory.')
        fingerprints: Dict[Tuple[str, ...], str] = {}
        for name in modules:
            card, tensors = Zoo(zoo).load(name)
            Zoo(zoo).check_trunk(card, self.trunk, known=fingerprints)
            idle = [slot for slot in card.slots if slot not in self.slots]
            if idle:
                raise ValueError(
                    f"Module '{name}' occupies {len(idle)} places that are "
                    f'no slots of this backbone, such as {idle[:3]}, and '
                    'would run without them; widen the `slots` pattern.')
            self.bank.add(
                name,
                card.adapter, {slot: card.dims[slot]
                               for slot in card.slots},
                tensors,
                trainable=trainable)
            for slot in card.slots:
                if not self.slots[slot].is_read:
                    self.bank.adapter(name, slot).requires_grad_(False)
        self.bank.to(next(self.trunk.parameters()).device)

    def init_weights(self) -> None:
        """Apply ``init_cfg``, if any: the trunk is loaded, adapters zero."""
        if self.init_cfg:
            initialize(self, self.init_cfg)

    def apply(self, fn: Callable[[nn.Module], None]) -> 'ViMBackbone':
        """Keep ``fn`` from the parts inside.

        A model's own ``init_cfg`` (Swin classifiers have one) reaches every
        layer through ``apply``, when trunk and modules are loaded already.
        """
        fn(self)
        return self

    # --------------------------------------------------------------- tasks

    @property
    def task(self) -> Optional[str]:
        """The task whose fusion the forward pass applies."""
        return self._task

    def select_task(self, task: Optional[str]) -> None:
        """Run, and train, the gates of this task from now on.

        Raises:
            ValueError: If the fusion knows no such task.
        """
        if self.fusion is None:
            if task is not None:
                raise ValueError(f"Task '{task}' was asked for, but this "
                                 'backbone has no `fusion` to hold tasks.')
            return
        self._task = self.fusion.tasks[0] if task is None else task
        self.fusion.select(self._task)

    def add_task(self,
                 task: str,
                 modules: Optional[Sequence[str]] = None) -> None:
        """Let one more task weigh modules; earlier tasks stay as they are.

        Args:
            task (str): Its name; :meth:`select_task` makes it run.
            modules (Sequence[str], optional): The modules it knows; all that
                the bank holds now when None.

        Raises:
            ValueError: If there is no fusion, the name is taken, or the bank
                lacks a module.
        """
        if self.fusion is None:
            raise ValueError(f"Task '{task}' needs a `fusion` to hold it; "
                             'give ViMBackbone one.')
        names = self.bank.names if modules is None else list(modules)
        unknown = sorted(set(names) - set(self.bank.names))
        if unknown:
            raise ValueError(f'The bank holds no modules {unknown}; it holds '
                             f'{self.bank.names}.')
        self.fusion.add_task(task, names)
        self.fusion.select(self._task)

    @contextmanager
    def only(self, *modules: str) -> Iterator[None]:
        """Within this context just these modules run, each with weight one.

        ``only()`` is the bare trunk.

        Raises:
            ValueError: If the bank holds no module of that name.
        """
        unknown = sorted(set(modules) - set(self.bank.names))
        if unknown:
            raise ValueError(f'The bank holds no modules {unknown}; it holds '
                             f'{self.bank.names}.')
        before, self._only = self._only, list(modules)
        try:
            yield
        finally:
            self._only = before

    def gates(self) -> Dict[str, Dict[str, float]]:
        """The current task's gates: slot name to module name to weight."""
        if self.fusion is None:
            return {s: {n: 1. for n in self.bank.names} for s in self.slots}
        names = self.fusion.task_modules[self._task]
        rows = self.fusion.gates(self._task).detach().tolist()
        return {s: dict(zip(names, row)) for s, row in zip(self.slots, rows)}

    # ------------------------------------------------------------- forward

    def forward(self, x: Tensor) -> tuple:
        """Features of a batch of pictures.

        Args:
            x (Tensor): Normalised pictures, (B, 3, H, W).

        Returns:
            tuple: The trunk's outputs, or one tuple of them per module.

        Raises:
            ValueError: If H or W is not divisible by the patch size.
        """
        self._check_size(x)
        if self._only is not None:
            return self._run(x, self._only, None)
        if self.fusion is not None:
            return self._run(x, self.fusion.task_modules[self._task],
                             self.fusion.gates(self._task))
        names = self.bank.names
        if len(names) > 1:
            return tuple(self._run(x, [name], None) for name in names)
        return self._run(x, names, None)

    def _run(self, x: Tensor, names: List[str],
             gates: Optional[Tensor]) -> tuple:
        self._active = (names, gates)
        self._picture = tuple(x.shape[-2:])
        return self.trunk(x)

    def delta(self, slot: Slot, x: Tensor,
              grid: Optional[Tuple[int, int]]) -> Optional[Tensor]:
        """What the active modules add in a slot, None when there are none."""
        names, gates = self._active
        if not names:
            return None
        if grid is None:
            grid = slot.spec.grid(self._picture, x.shape[1])
        row = None
        if gates is not None:
            row = self.fusion.row(gates, slot.index, x)
        merge = row is not None and self.fusion.merges
        return self.bank(slot.spec.name, x, grid, names, row, merge)

    def _check_size(self, x: Tensor) -> None:
        strides = [s.stride for s in self.slots.values() if not s.is_map]
        patch = min(strides, default=1)
        height, width = x.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(
                f'A picture of {height}x{width} px is not divisible by the '
                f"trunk's patch size {patch}; resize in the pipeline, or set "
                f'`pad_size_divisor={patch}` in the data preprocessor.')

    # --------------------------------------------------- freezing, saving

    def train(self, mode: bool = True) -> 'ViMBackbone':
        """Train the parts beside the trunk; the trunk stays in eval mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def _fingerprint(self) -> Tensor:
        if is_meta(self.trunk):
            return torch.zeros(32, dtype=torch.uint8)
        digest = trunk_fingerprint(self.trunk, list(self.slots))
        return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)

    def __getstate__(self) -> dict:
        # gates of the last pass hang on its graph, which cannot be copied
        return dict(self.__dict__, _active=([], None))

    @staticmethod
    def _leave_trunk_out(backbone: 'ViMBackbone', state_dict: dict,
                         prefix: str, _: dict) -> None:
        if backbone.save_trunk:
            return
        for key in list(state_dict):
            if key.startswith(f'{prefix}trunk.'):
                del state_dict[key]

    def _keep_trunk(self, state_dict: dict, prefix: str, *_) -> None:
        # a checkpoint without the trunk: keep ours, if it is the right one
        if any(key.startswith(f'{prefix}trunk.') for key in state_dict):
            return
        stored = state_dict.get(f'{prefix}trunk_fingerprint')
        if stored is not None and not torch.equal(
                stored.cpu(), self.trunk_fingerprint.cpu()):
            raise ValueError(
                'This checkpoint was trained beside another trunk (its '
                f'fingerprint begins with {bytes(stored[:4].tolist()).hex()},'
                f' this {type(self.trunk).__name__} has '
                f'{bytes(self.trunk_fingerprint[:4].tolist()).hex()}); point '
                '`model.backbone.trunk.init_cfg.checkpoint` at the weights '
                'it was trained with.')
        # not through state_dict(): our own hook would leave the trunk out
        for key, value in self.trunk.state_dict().items():
            state_dict[f'{prefix}trunk.{key}'] = value
