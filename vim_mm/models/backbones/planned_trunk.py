# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from argparse import Namespace
from typing import Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor

from ..autocast import autocast_dtype
from ..fusion import BaseFusion
from ..layouts import Streams, as_levels
from .checkpoint import drop_baked
from .plan import Plan, untraced
from .plugged_trunk import PluggedTrunk
from .probe import blank_outputs
from .weighing import MixedWeighing, TaskWeighing


class PlannedTrunk(PluggedTrunk):
    """A trunk with plug-in modules that resolves what runs once.

    What a pass does is written down in a :class:`Plan`, which is kept until
    modules, fusion, task or precision change. Arguments are those of
    :class:`SlottedTrunk`.
    """

    fusion: Optional[BaseFusion]
    task: Optional[str]

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.fusion = None
        self._register_load_state_dict_pre_hook(drop_baked, with_module=True)
        self._plans: Dict[tuple, Plan] = {}
        self._plans_of: tuple = ()
        self._traced = Namespace()

    def blank_outputs(self) -> tuple:
        """Outputs of a blank image, of the shapes of the real ones."""
        levels = as_levels(blank_outputs(self.trunk, self._probe_size))
        if not self._gives_streams:
            return levels
        names = self.bank.names
        return Streams.of(names, [levels] * len(names))

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
        return Streams.of(names, self.with_idle(streams))

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
