# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from argparse import Namespace
from contextlib import contextmanager
from functools import partial
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from vim_mm.utils.arguments import check_is_list
from ..autocast import autocast_dtype
from ..fusion import BaseFusion
from ..layouts import Kept, Streams, as_levels
from ..moe.selection import selection_of
from ..tasks import holders
from .blank_image import in_eval, run_blank
from .checkpoint import drop_baked
from .plan import Plan, untraced
from .plugged_trunk import PluggedTrunk
from .weighing import MixedWeighing, TaskWeighing


class PlannedTrunk(PluggedTrunk):
    """A trunk with plug-in modules that resolves what runs once.

    What a pass does is written down in a :class:`Plan`, which is kept until
    modules, fusion, task or precision change. Arguments are those of
    :class:`SlottedTrunk`.
    """

    fusion: Optional[BaseFusion]
    task: Optional[str]
    #: Height and width of the image of :meth:`blank_outputs`.
    blank_size: Tuple[int, int]

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fusion = None
        self._register_load_state_dict_pre_hook(drop_baked, with_module=True)
        self._plans: Dict[tuple, Plan] = {}
        self._plans_of: tuple = ()
        self._traced = Namespace()

    def blank_outputs(self) -> tuple:
        """Outputs of a blank image, of the shapes of the real ones."""
        with in_eval(self.trunk), torch.no_grad():
            outputs, self.blank_size = run_blank(self.trunk, self._probe_size)
        levels = as_levels(outputs)
        if not self._gives_streams:
            return levels
        names = self.bank.names
        return Streams.of(names, [levels] * len(names), Kept(levels))

    @property
    def selection(self) -> dict:
        """What of a trunk with experts runs, see :func:`selection_of`."""
        tasks = [] if self.fusion is None else self.fusion.tasks
        return selection_of(self.trunk, tasks)

    @property
    def _gives_streams(self) -> bool:
        return (self._running.only is None and self.fusion is None
                and len(self.bank.names) > 1)

    def _streams(self, x: Tensor,
                 levels: Optional[Tuple[Tensor, ...]]) -> tuple:
        """One tuple of outputs per module; those beside share one pass."""
        names, device = self.bank.names, x.device.type
        if levels is None and any(map(self.bank.is_beside, names)):
            levels = self.read_levels(x)
        streams = [
            self._run(x, self._plan(device, (name, )), levels)
            for name in names
        ]
        return Streams.of(
            names, self.with_idle(streams),
            partial(self.read_levels, x) if levels is None else Kept(
                tuple(levels)))

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

    # ------------------------------------------------------------ contexts

    @contextmanager
    def only(self, *modules: str) -> Iterator[None]:
        """Within this context just these modules run, each with weight one.

        ``only()`` is the bare trunk.

        Raises:
            ValueError: If the bank holds no module of that name.
        """
        self._check_known(modules)
        self._check_place(modules)
        running = self._running
        before, running.only = running.only, modules
        try:
            yield
        finally:
            running.only = before

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
        for part in holders(self.trunk):
            others = {task for task in tasks if task in part.tasks}
            if others - {part.task}:
                raise ValueError(
                    f'Images of the tasks {sorted(others)} cannot share a '
                    'pass: the trunk has a router for each, and runs that of '
                    f"'{part.task}'; run them one after the other.")
        running = self._running
        before, running.mixed = running.mixed, tuple(tasks)
        try:
            yield
        finally:
            running.mixed = before

    def gates(self) -> Dict[str, Dict[str, float]]:
        """The current task's gates: slot name to module name to weight."""
        if self.fusion is None:
            return {s: {n: 1. for n in self.bank.names} for s in self.slots}
        return self.fusion.named_gates(self.task)

    def _check_no_context(self) -> None:
        if (self._running.only, self._running.mixed) != (None, None):
            raise ValueError('Modules cannot go while `only` or `for_tasks` '
                             'says what runs; leave that context first.')

    # --------------------------------------------------------------- plans

    @property
    def running(self) -> List[str]:
        """The modules that take part in the next pass, in order."""
        if self._running.only is not None:
            return list(self._running.only)
        if self.fusion is None:
            return self.bank.names
        tasks = self._running.mixed or [self.task]
        known = {n for t in tasks for n in self.fusion.task_modules[t]}
        return [name for name in self.bank.names if name in known]

    def _plan(self, device: str, names: Optional[tuple] = None) -> Plan:
        """What is to run on a type of device, resolved again if need be.

        Args:
            device (str): The type of device.
            names (tuple[str], optional): Modules that run without gates; what
                is set on this backbone when None.
        """
        tasks = None
        if names is None:
            if self._running.repeated is not None:  # whatever is set by now
                return self._running.repeated.plan
            names = self._running.only
        if names is None and self.fusion is None:
            names = tuple(self.bank.names)
        if names is None:
            tasks = self._running.mixed or self.task
        dtype, now = autocast_dtype(device), (
            self.changes, self.bank.changes,
            0 if self.fusion is None else self.fusion.changes)
        if torch.compiler.is_compiling():
            return getattr(
                self._traced,
                self._trace_plan(names, tasks, device, dtype,
                                 self.training, self.bank.training, *now))
        made_of = (self.bank, self.fusion, self.bank.modes, *now)
        plans = self._plans
        if self._plans_of != made_of:
            plans = self._plans = {}
            self._plans_of = made_of
        # a trace is checked in another mode than it is made in
        learns = torch.is_grad_enabled() or torch.jit.is_tracing()
        key = names, tasks, learns, device, dtype
        plan = plans.get(key)
        if plan is None or not plan.is_current:
            with torch.set_grad_enabled(learns), untraced():
                plan = self._make_plan(names, tasks, device, dtype)
            plans[key] = plan
        return plan

    def _make_plan(self, names: Optional[tuple], tasks: Union[None, str,
                                                              tuple],
                   device: str, dtype: Optional[torch.dtype]) -> Plan:
        weighing = None
        if isinstance(tasks, str) and self.fusion.is_off(tasks):
            names = ()
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
