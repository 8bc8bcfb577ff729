# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from contextlib import ExitStack
from typing import Dict, List, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.models.moe.collapse import LayerState, complaints, layer_state
from vim_mm.models.moe.statistics import Routing, RoutingStatistics
from vim_mm.models.moe.surgery import experts_of
from vim_mm.registry import HOOKS
from vim_mm.utils.wrappers import unwrap

#: where a checkpoint keeps statistics of a model that has none itself
KEY = 'routing'
LOGGED = ('information', 'chosen', 'busiest', 'dead', 'spread', 'similarity')


@HOOKS.register_module()
class RoutingLogHook(Hook):
    """Log how tasks use experts, and warn once if routing has collapsed.

    Scalars are named ``routing/<layer>/<what>``, and ``routing/<what>`` is
    the mean over layers: ``information`` (I(T;E) in nats, of several tasks),
    ``chosen`` (the same of the k best experts instead of probabilities),
    ``busiest`` (share of all choices that the busiest expert gets), ``dead``
    (number of experts that hardly any token chooses), ``spread`` (effective
    number of experts) and ``similarity`` (mean cosine of the weights of two
    experts).

    The statistics are those of the model's :class:`MutualInformation`. Of a
    model without it the hook keeps its own, in checkpoints too.

    Args:
        interval (int): Iterations between two records. Defaults to 50.
        per_layer (bool): Whether to log each layer, or the means alone.
            Defaults to True.
        start (int): Iterations before the first warning. Defaults to 500.
        spread (float): Routing has collapsed if the effective number of
            experts is not above this many times k. Defaults to 1.25.
        dead (float): Experts in the k best of a smaller share of each task's
            tokens count as dead. Defaults to 1e-3.
        copy (float): Experts whose weights have a larger cosine count as
            copies. Defaults to .999.
    """

    priority = 'LOW'

    def __init__(self,
                 interval: int = 50,
                 per_layer: bool = True,
                 start: int = 500,
                 spread: float = 1.25,
                 dead: float = 1e-3,
                 copy: float = .999) -> None:
        self.interval = interval
        self.per_layer = per_layer
        self.start = start
        self.spread = spread
        self.limits = dict(dead=dead, copy=copy)
        self.statistics: Optional[RoutingStatistics] = None
        self.is_own = False
        self._warned: List[str] = []
        self._stack = ExitStack()
        self._seen: Optional[Routing] = None

    # ------------------------------------------------------- its own means

    def before_run(self, runner: Runner) -> None:
        """Find the model's statistics, or make some.

        Raises:
            ValueError: If the model has no layer of experts.
        """
        model = unwrap(runner.model)
        self._backbone = getattr(model, 'backbone', model)
        found = [
            part for part in model.modules()
            if isinstance(part, RoutingStatistics)
        ]
        experts_of(self._backbone)  # there are some
        self.is_own = not found
        if self.is_own:
            found = [RoutingStatistics()]
            found[0].bind(self._backbone)
        self.statistics = found[0]

    def before_train_iter(self, runner: Runner, *args, **_) -> None:
        """Read the routers in this step."""
        if self.is_own:
            self._stack.close()  # of a step that failed
            self._seen = self._stack.enter_context(
                self.statistics.record(self._backbone))

    def after_train_iter(self, runner: Runner, batch_idx: int, **_) -> None:
        """Take the step in; record every ``interval`` iterations."""
        if self.is_own:
            self._stack.close()
            self.statistics.update(self._seen)
        if self.every_n_train_iters(runner, self.interval):
            self._record(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Record the routing the run ends with, if that is still to do."""
        if runner.iter % self.interval:
            self._record(runner, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep its own statistics beside the model."""
        if self.is_own:
            checkpoint[KEY] = self.statistics.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on with its own statistics, of layers that are the same."""
        if self.is_own:
            mine = self.statistics.state_dict()
            self.statistics.load_state_dict({
                key: value
                for key, value in checkpoint.get(KEY, {}).items()
                if key in mine and mine[key].shape == value.shape
            }, strict=False)

    # -------------------------------------------------------------- record

    def states(self) -> Dict[str, LayerState]:
        """The layers in which some task has run."""
        layers = experts_of(self._backbone)
        states = {
            name: layer_state(self.statistics, name, layers[name],
                              **self.limits)
            for name in self.statistics.layers
        }
        return {name: state for name, state in states.items() if state}

    def _record(self, runner: Runner, step: int) -> None:
        states = self.states()
        if not states:
            self._warn(runner, 'RoutingLogHook sees no router run; torch '
                       'hides those of a compiled model.')
            return
        runner.visualizer.add_scalars(self._scalars(states), step=step)
        if step >= self.start:
            # with a loss of concentration, tasks are to end with few experts
            wanted = getattr(self.statistics, 'concentration', 0) > 0
            for sentence in complaints(states, 0. if wanted else self.spread):
                self._warn(runner, sentence)

    def _scalars(self, states: Dict[str, LayerState]) -> Dict[str, float]:
        scalars = {}
        for name in LOGGED:
            values = {
                layer: getattr(state, name)
                for layer, state in states.items()
                if getattr(state, name) is not None
            }
            if values:
                scalars[f'routing/{name}'] = sum(values.values()) / len(values)
            if self.per_layer:
                scalars.update({
                    f'routing/{layer}/{name}': value
                    for layer, value in values.items()
                })
        return scalars

    def _warn(self, runner: Runner, sentence: str) -> None:
        kind = sentence[:20]
        if kind not in self._warned:
            self._warned.append(kind)
            runner.logger.warning(sentence)
