# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from argparse import Namespace
from contextlib import contextmanager
from typing import (Dict, Iterable, Iterator, List, Optional, Sequence, Tuple,
                    Union)

import torch
from mmengine.device import get_device
from torch import Tensor

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import (check_is_config, check_is_list,
                                    refuse_init_cfg)
from vim_mm.zoo import Zoo
from ..adapters import AdapterBank, adapter_class
from ..fusion import FusionHolder, build_fusion
from ..layouts import Streams
from .autocast import autocast_dtype
from .compiling import compile_options
from .plan import Plan, untraced
from .slots import match_slots
from .slotted_trunk import SlottedTrunk
from .weighing import MixedWeighing, TaskWeighing


@MODELS.register_module()
class ViMBackbone(FusionHolder, SlottedTrunk):
    """A frozen trunk from any registry, with a bank of modules beside it.

    With a fusion, or with one module, the output is that of the trunk: the
    usual tuple of maps. With several modules and no fusion it is one such
    tuple per module, for :class:`ViMFusionNeck`. Modules beside the trunk
    (:class:`PluginNeck`) share one pass of it, without autograd.

    Args:
        trunk (dict): Config of the backbone to freeze. Weights named by its
            ``init_cfg`` are loaded at once and must fit.
        adapter (dict, optional): Config of the adapters of ``new_module``.
            ``slots`` in it is a pattern over the names of the submodules it
            occupies, or of outputs; by default those of ``slots``, or what
            its kind takes of the trunk's class. Defaults to None, which is
            ``dict(type='ConvPass', hidden_dims=8)``.
        new_module (str, optional): Name of a fresh, trainable module.
        modules (Sequence[str]): Names of modules to load from ``zoo``.
            Defaults to none.
        tune_modules (bool): Train the loaded modules too: what they become
            is kept in the run's checkpoints, the zoo stays as it is. Defaults
            to False, frozen.
        zoo (str, optional): Directory of the zoo.
        fusion (dict, optional): Config of a fusion in the trunk over
            ``modules`` and ``new_module``. Defaults to None.
        task (str, optional): The task to run; the first of the fusion when
            None.
        learn_tasks (Sequence[str], optional): The tasks that learn, and with
            them the tuned modules they weigh; the one to run when None.
        slots (str, optional): Pattern over submodule names, see
            :func:`match_slots`. Slots are what it matches and what any module
            occupies. Without pattern and modules, those of the trunk's class.
        probe_size (int): Side of the blank picture that finds the slots'
            shapes, in pixels. Defaults to 224.
        save_trunk (bool): Keep the trunk in checkpoints. Defaults to False.
        compile (bool | dict): Compile the pass into one graph, in training
            and in tests; a dict holds arguments of :func:`torch.compile`.
            Defaults to False.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        FileNotFoundError: If the trunk's weights are missing.
        ValueError: If a name, pattern or config does not fit; the sentence
            names it.
        ZooError: If a module of the zoo is damaged or belongs to another
            trunk.
    """

    no_fusion = 'this backbone has no `fusion` to hold tasks.'

    def __init__(self,
                 trunk: dict,
                 adapter: Optional[dict] = None,
                 new_module: Optional[str] = None,
                 modules: Sequence[str] = (),
                 tune_modules: bool = False,
                 zoo: Optional[str] = None,
                 fusion: Optional[dict] = None,
                 task: Optional[str] = None,
                 learn_tasks: Optional[Sequence[str]] = None,
                 slots: Optional[str] = None,
                 probe_size: int = 224,
                 save_trunk: bool = False,
                 compile: Union[bool, dict] = False,
                 init_cfg: Optional[dict] = None) -> None:
        check_is_list(modules, 'model.backbone.modules')
        super().__init__(trunk, slots, probe_size, save_trunk, init_cfg)
        self.bank = AdapterBank()
        self.fusion = self._only = self._mixed = None
        self._plans: Dict[tuple, Plan] = {}
        self._plans_of: tuple = ()
        self._traced = Namespace()
        self._tuned: List[str] = []
        adapter = adapter or dict(type='ConvPass', hidden_dims=8)
        check_is_config(adapter, 'model.backbone.adapter')
        adapter = dict(adapter)
        if isinstance(adapter.get('type'), type):  # a card holds its name
            adapter['type'] = adapter['type'].__name__
        pattern = adapter.pop('slots', None)
        self._plan_slots(zoo, modules, new_module and adapter, pattern)
        self.load_modules(zoo, modules, tune_modules)
        self.new_module = new_module
        if new_module is not None:
            self._add_new(new_module, adapter, pattern)
        if fusion is not None:
            self.set_fusion(fusion)
        self.select_task(task)
        self.learn_tasks(learn_tasks)
        self._guard_checkpoints()
        self.train()
        if compile:
            self.compile(**compile_options(compile, get_device()))

    # ------------------------------------------------------------ building

    def _plan_slots(self, zoo: Optional[str], modules: Sequence[str],
                    adapter: Optional[dict], pattern: Optional[str]) -> None:
        """Find all slots anyone asks for by one probe, in trunk order."""
        names: List[str] = []
        if self._pattern is not None:
            names += match_slots(self.trunk, self._pattern)
        if adapter:
            names += self._slots_for(adapter_class(adapter), pattern)
        for module in modules if zoo is not None else ():
            names += Zoo(zoo).card(module).slots
        self._find_slots(names or match_slots(self.trunk))

    def _add_new(self, name: str, adapter: dict,
                 pattern: Optional[str]) -> None:
        kind = adapter_class(adapter)
        slots = [s for s in self._slots_for(kind, pattern) if s in self.slots]
        for slot in slots:
            self._check_kind(kind, slot)
        if kind.beside:
            self._check_levels(name, adapter.setdefault('levels', self.levels))
        specs = [self.slots[slot] for slot in slots]
        dims = {spec.name: spec.widths for spec in specs if spec.is_read}
        if not dims:
            raise ValueError(
                f"No output of the trunk depends on any slot of '{name}', so "
                'it could not learn; widen its `slots` pattern.')
        self.bank.add(name, adapter, dims)

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
        known: Dict[Tuple[str, ...], str] = {}
        for name in modules:
            card, tensors = Zoo(zoo).load(name)
            Zoo(zoo).check_trunk(card, self.trunk, known=known)
            self._find_slots(card.slots)
            self._check_levels(name, card.adapter.get('levels'))
            widths = {n: spec.widths for n, spec in self.slots.items()}
            Zoo(zoo).check_trunk(card, self.trunk, widths, known)
            self.bank.add(name, card.adapter,
                          {slot: card.dims[slot] for slot in card.slots},
                          tensors, trainable)
            if trainable:
                self._tuned.append(name)
                self._tune(name, True)
        self.bank.to(next(self.trunk.parameters()).device)

    def _tune(self, name: str, learns: bool) -> None:
        """Let a loaded module learn, where an output depends on it."""
        for slot in self.bank.slots_of(name):
            self.bank.adapter(name, slot).requires_grad_(
                learns and self.slots[slot].is_read)
        self.bank.train(self.training)

    def _occupied(self, names: Sequence[str]) -> Dict[str, Dict[str, int]]:
        """By module, its slots and the width of what each reads."""
        return {
            name: {
                slot: self.slots[slot].in_dims
                for slot in self.bank.slots_of(name)
            }
            for name in names
        }

    def _check_place(self, names: Sequence[str]) -> None:
        if len({self.bank.is_beside(name) for name in names}) > 1:
            raise ValueError(
                f'Of the modules {list(names)} some sit in the trunk and some '
                'beside it, which run in passes of their own; leave out '
                '`fusion` and weigh their streams with ViMFusionNeck.')

    # --------------------------------------------------------------- tasks

    def set_fusion(self, fusion: dict) -> None:
        """Let a new fusion weigh the bank's modules.

        Its first task runs, and learns.

        Args:
            fusion (dict): Its config; it takes the place of any before.

        Raises:
            ValueError: If there is no such fusion, or of the modules of one
                task some sit in the trunk and some beside it.
        """
        made = build_fusion(fusion, self._occupied(self.bank.names))
        refuse_init_cfg(made, 'model.backbone.fusion')
        for names in made.task_modules.values():
            self._check_place(names)
        self.fusion = made.to(next(self.trunk.parameters()).device)
        self.changes += 1
        self.select_task(None)
        self.learn_tasks()

    def learn_tasks(self, tasks: Optional[Sequence[str]] = None) -> None:
        """See :meth:`TaskHolder.learn_tasks`; tuned modules that none of
        these tasks weighs are frozen.
        """
        super().learn_tasks(tasks)
        if self.fusion is not None:
            known = {
                name
                for task in self.learning
                for name in self.fusion.task_modules[task]
            }
            for name in self._tuned:
                self._tune(name, name in known)

    def idle(self) -> Iterable[Tensor]:
        """See :meth:`TaskHolder.idle`; modules the task does not weigh, too.
        """
        others = set(self.bank.names) - set(
            self.fusion.task_modules[self.task])
        return [
            *super().idle(),
            *(param for name in self.bank.names if name in others
              for param in self.bank.members[name].parameters())
        ]

    def add_task(self,
                 task: str,
                 modules: Optional[Sequence[str]] = None) -> None:
        """Let one more task weigh modules; earlier tasks stay as they are.

        Args:
            task (str): Its name; :meth:`select_task` makes it run, and
                :meth:`learn_tasks` makes it learn.
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
        self._check_place(names)
        self.fusion.add_task(task, self._occupied(names))

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
        self._check_place(modules)
        before, self._only = self._only, list(modules)
        try:
            yield
        finally:
            self._only = before

    @contextmanager
    def for_tasks(self, tasks: Sequence[str]) -> Iterator[None]:
        """Within this context each image of a batch has a task of its own.

        One pass serves all. Modules that only another image's task knows
        weigh nothing for an image.

        Args:
            tasks (Sequence[str]): The tasks of the images of a batch, in
                order.

        Raises:
            ValueError: If a task is unknown, or the fusion cannot do so.
        """
        if self.fusion is None:
            raise ValueError('Images can have tasks of their own only with a '
                             '`fusion` in the backbone to hold tasks.')
        check_is_list(tasks, 'tasks')
        MixedWeighing(self.fusion, tasks)
        before, self._mixed = self._mixed, tuple(tasks)
        try:
            yield
        finally:
            self._mixed = before

    def gates(self) -> Dict[str, Dict[str, float]]:
        """The current task's gates: slot name to module name to weight."""
        if self.fusion is None:
            return {s: {n: 1. for n in self.bank.names} for s in self.slots}
        return self.fusion.named_gates(self.task)

    # ------------------------------------------------------------- forward

    def forward(self,
                x: Tensor,
                levels: Optional[Tuple[Tensor, ...]] = None) -> tuple:
        """Features of a batch of pictures.

        Args:
            x (Tensor): Normalised pictures, (B, 3, H, W).
            levels (tuple[Tensor], optional): What :meth:`read_levels` gave
                for them. Modules beside the trunk then need no pass of it;
                modules in the trunk do all the same. Defaults to None.

        Returns:
            tuple: The trunk's outputs, or one tuple of them per module.

        Raises:
            ValueError: If H or W is not divisible by the patch size, or a
                task that does not learn runs in training.
        """
        self._check_size(x)
        if self._only is None and self.fusion is None and len(
                self.bank.names) > 1:
            return self._streams(x, levels)
        outputs = self._run(x, self._plan(x.device.type), levels)
        return outputs if self._only is not None else self.with_idle(outputs)

    def _streams(self, x: Tensor,
                 levels: Optional[Tuple[Tensor, ...]]) -> tuple:
        """One tuple of outputs per module; those beside share one pass."""
        names, device = self.bank.names, x.device.type
        if levels is None and any(map(self.bank.is_beside, names)):
            levels = self.read_levels(x)
        return Streams.of(
            names, (self._run(x, self._plan(device, (name, )), levels)
                    for name in names))

    def _run(self,
             x: Tensor,
             plan: Plan,
             levels: Optional[Tuple[Tensor, ...]] = None) -> tuple:
        before, self._running.now = self._running.now, plan.begin(x.shape)
        try:
            if not plan.is_beside:
                return self._run_trunk(x)
            return self._climb(
                self.read_levels(x) if levels is None else levels)
        finally:
            self._running.now = before

    # --------------------------------------------------------------- plans

    def _plan(self, device: str, names: Optional[tuple] = None) -> Plan:
        """What is to run on a type of device, resolved again if need be.

        Args:
            device (str): The type of device.
            names (tuple[str], optional): Modules that run without gates; what
                is set on this backbone when None.
        """
        tasks = None
        if names is None and self._only is not None:
            names = tuple(self._only)
        elif names is None and self.fusion is None:
            names = tuple(self.bank.names)
        elif names is None:
            tasks = self._mixed or self.task
        dtype, now = autocast_dtype(device), (
            self.changes, self.bank.changes,
            0 if self.fusion is None else self.fusion.changes,
            self.training, self.bank.training)
        if torch.compiler.is_compiling():
            return getattr(
                self._traced,
                self._trace_plan(names, tasks, device, dtype, *now))
        if self._plans_of != (self.fusion, *now):
            self._plans, self._plans_of = {}, (self.fusion, *now)
        # a trace is checked in another mode than it is made in
        learns = torch.is_grad_enabled() or torch.jit.is_tracing()
        key = names, tasks, learns, device, dtype
        plan = self._plans.get(key)
        if plan is None or not plan.is_current:
            with torch.set_grad_enabled(learns), untraced():
                plan = self._make_plan(names, tasks, device, dtype)
            self._plans[key] = plan
        return plan

    def _make_plan(self, names: Optional[tuple], tasks: Union[None, str,
                                                              tuple],
                   device: str, dtype: Optional[torch.dtype]) -> Plan:
        weighing = None
        if names is None:
            kind = TaskWeighing if isinstance(tasks, str) else MixedWeighing
            weighing = kind(self.fusion, tasks)
            names = weighing.names
            self._check_place(names)
        return Plan(self.bank, self.slots.values(), names, weighing, dtype,
                    device)

    @torch.compiler.assume_constant_result
    @torch.enable_grad()
    def _trace_plan(self, *key: object) -> str:
        """Make the plan of a compiled graph: it holds what is frozen for good.

        Args:
            *key: What :meth:`_make_plan` takes, and what it depends on: once
                that changes, the graph is made anew.

        Returns:
            str: Its name in :attr:`_traced`. The compiler takes this for a
            constant, and looks at what it names.
        """
        name = f'plan{hash(key)}'
        if not hasattr(self._traced, name):
            setattr(self._traced, name, self._make_plan(*key[:4]))
        return name

    def __getstate__(self) -> dict:
        # what a plan holds is made anew, and cannot be copied in a graph
        return dict(
            super().__getstate__(),
            _plans={},
            _plans_of=(),
            _traced=Namespace())
