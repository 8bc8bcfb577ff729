# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os.path as osp
from typing import Dict, FrozenSet, Mapping, Optional

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.runner import BaseLoop, Runner
from torch import nn

from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.checkpoint_notes import read_notes
from vim_mm.models.fit import check_classes, check_fit
from vim_mm.models.head_origin import KEY, head_notes
from vim_mm.models.moe.foreign_files import check_init
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.multitask.single_task import LOAD_TASK, task_checkpoint
from vim_mm.models.pixels import check_form
from vim_mm.registry import HOOKS
from vim_mm.utils.checkpoint_form import check_whole, state_of
from vim_mm.utils.checksum import has_checksum
from vim_mm.utils.wrappers import unwrap
from ..batch_watch import BatchWatch
from ..judged import JudgedPass, judged_model, reads_truth
from ..judges import check_judges, ordinary_loops
from ..loaded import note_loaded, note_start
from ..model_parts import running_model, saved_model
from ..optimizer_state import check_optimizer
from ..rates import refuse_idle_run
from ..resume import keep_numbers
from ..run_state import check_counters
from ..schedule_checks import check_rules, check_schedule, say_nan
from ..schedules import check_schedules, say_which_rates
from ..trial import try_validation


@HOOKS.register_module()
class GuardHook(Hook):
    """Look at a run before it starts, and at a checkpoint before it is used.

    Of a checkpoint's notes, what a run does not need is dropped. One that is
    to be tested or validated must hold all that the model has learned, and
    number the classes as the data set does; training may start from less.

    Every runner has this hook: see :func:`vim_mm.engine.runner.guard_runner`.
    """

    priority = 'HIGHEST'

    #: Tasks of which a step of the training is done; None for the only one.
    _stepped: FrozenSet[Optional[str]] = frozenset()
    _watch: Optional[BatchWatch] = None
    #: What looks at labels by task; None once all were seen.
    _judged: Mapping[Optional[str], Optional[JudgedPass]] = {}

    def before_run(self, runner: Runner) -> None:
        """Let no reentrant checkpoint end the graph of a frozen trunk.

        Raises:
            ValueError: If a part is to start from weights of experts, and
                has none, or metrics have other files than their data
                sets.
        """
        if _judging_loop(runner) is None:
            check_init(runner.model)
        check_judges(runner)
        recompute_trunks(runner.model, runner.cfg)

    def before_train(self, runner: Runner) -> None:
        """Refuse a run with a frozen trunk that would learn nothing.

        Raises:
            ValueError: If it is one, its head is built for fewer classes
                than its data has, or it would fail when it validates.
        """
        self._stepped = frozenset()
        refuse_idle_run(runner)
        check_schedule(runner)
        try_validation(runner)
        check_rules(runner)
        note_start(runner)
        if self._watch is not None:  # of a training that failed
            self._watch.close()
        self._watch = BatchWatch(runner)

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """See :class:`BatchWatch`."""
        if self._watch is not None:
            self._watch.look(data_batch)

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """See :class:`BatchWatch`."""
        self._stepped |= {_task_of(runner)}
        if self._watch is not None:
            self._watch.look_at_step(outputs)

    def after_train(self, runner: Runner) -> None:
        """See :class:`BatchWatch`."""
        if self._watch is not None:
            self._watch.end()

    def before_val_iter(self,
                        runner: Runner,
                        batch_idx: int,
                        data_batch: Optional[dict] = None) -> None:
        """Look at what a pipeline makes of the images that are judged.

        Raises:
            ValueError: If it is not what the model takes, or in a test a
                label is none of the head's.
        """
        if isinstance(unwrap(runner.model), BaseTTAModel):
            return
        if batch_idx == 0:
            check_form(running_model(runner.model), data_batch, padded=False)
        watch, model = self._judging(runner), judged_model(runner)
        if watch is not None and model is not None:
            watch.look(model, data_batch)

    before_test_iter = before_val_iter

    def _judging(self, runner: Runner) -> Optional[JudgedPass]:
        """Looks at all labels the first time that a task is judged by them."""
        task = _task_of(runner)
        if task not in self._judged:
            stage = 'val' if isinstance(runner._val_loop, BaseLoop) else 'test'
            name = '' if task is None else f'.{task}'
            loop = dict(ordinary_loops(getattr(runner, f'_{stage}_loop'))).get(
                name)
            watch = JudgedPass(
                f'{stage}_dataloader{name}',
                stops=not isinstance(runner._train_loop, BaseLoop))
            known = loop is not None and reads_truth(loop.evaluator.metrics)
            self._judged = {**self._judged, task: watch if known else None}
        return self._judged[task]

    def after_val_epoch(self,
                        runner: Runner,
                        metrics: Optional[Dict[str, float]] = None) -> None:
        """Name labels by which little can be judged, and what is NaN."""
        for watch in self._judged.values():
            if watch is not None:
                watch.end()
        self._judged = dict.fromkeys(self._judged)
        say_nan(runner, metrics)

    after_test_epoch = after_val_epoch

    def has_stepped(self, runner: Runner) -> bool:
        """Whether a step of the task that runs is done."""
        return _task_of(runner) in self._stepped

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check and reduce the checkpoint.

        Raises:
            ValueError: If it cannot be resumed from, or does not fit the
                model or the data set that it is to be judged by.
        """
        file = runner._load_from or 'The checkpoint'
        if osp.isfile(file) and not has_checksum(file):
            print_log(
                f'{file} has no checksum, as files of other programs: a '
                'changed bit in it would not be noticed.',
                logger='current')
        check_whole(checkpoint, file)
        model = unwrap(runner.model)
        if isinstance(model, BaseTTAModel):
            model = model.module
        split = not isinstance(model, MultiTaskModel) and task_checkpoint(
            checkpoint, runner.cfg.get(LOAD_TASK), file)
        if runner._resume:
            if split:
                raise ValueError(f'{file} is of several tasks, which a run of '
                                 'one cannot go on with; start from it with '
                                 '`load_from`.')
            check_counters(checkpoint, file)
            check_schedules(runner, checkpoint, file)
            if 'optimizer' in checkpoint:
                check_optimizer(runner.optim_wrapper, checkpoint['optimizer'],
                                file)
            say_which_rates(runner, checkpoint, file)
        read_notes(saved_model(model), checkpoint, file)
        if 'state_dict' in checkpoint:
            keep_numbers(checkpoint, runner)
        loop = _judging_loop(runner)
        if loop is None:
            note_loaded(runner, checkpoint, file)
            return
        state = state_of(checkpoint, file)
        metainfo = getattr(loop.dataloader.dataset, 'metainfo', {})
        _check_classes(metainfo, checkpoint.get('meta') or {}, file)
        strategy = getattr(runner, 'strategy', None)
        check_fit(model, state, file, whole=split,
                  own=getattr(strategy, 'whole', None))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Say what the heads were made of."""
        notes = head_notes(saved_model(runner.model))
        if notes:
            checkpoint['meta'][KEY] = notes


def _check_classes(own: dict, meta: dict, file: str) -> None:
    """Compare the classes of each task's data with the checkpoint's."""
    stored = meta.get('dataset_meta') or {}
    pairs = [(own, stored)]
    if 'tasks' in own:
        pairs = [(each, (stored.get('tasks') or {}).get(task))
                 for task, each in own['tasks'].items()]
    for mine, theirs in pairs:
        check_classes(
            mine.get('classes') or [], dict(dataset_meta=theirs), file)


def _task_of(runner: Runner) -> Optional[str]:
    """The task that runs, of several."""
    model = unwrap(runner.model)
    return model.task if isinstance(model, MultiTaskModel) else None


def _judging_loop(runner: Runner) -> Optional[BaseLoop]:
    """The loop that tests or validates, unless the run trains."""
    # the runner's properties would build them
    if isinstance(runner._train_loop, BaseLoop):
        return None
    loops = (runner._test_loop, runner._val_loop)
    return next((loop for loop in loops if isinstance(loop, BaseLoop)), None)


def recompute_trunks(model: nn.Module, cfg: Config) -> None:
    """Let trunks run again in backward where mmengine is asked to do that.

    Its ``activation_checkpointing`` makes reentrant checkpoints, through which
    nothing beside a frozen trunk would learn.

    Args:
        model (nn.Module): The model of a run, wrapped or not.
        cfg (Config): The run's config. Names inside a ViMBackbone are taken
            out of it, and the backbone runs its trunk's blocks again.
    """
    names = cfg.get('activation_checkpointing')
    if not names:
        return
    names = [names] if isinstance(names, str) else list(names)
    backbones = {
        f'{name}.': part
        for name, part in unwrap(model).named_modules()
        if isinstance(part, ViMBackbone)
    }
    left = [n for n in names if not f'{n}.'.startswith(tuple(backbones))]
    if left == names:
        return
    for prefix, backbone in backbones.items():
        if any(f'{name}.'.startswith(prefix) for name in names):
            backbone.grad_checkpointing()
    print_log(
        f'`activation_checkpointing` names {sorted(set(names) - set(left))}: '
        'there `model.backbone.grad_checkpointing=True` is set instead.',
        logger='current')
    cfg['activation_checkpointing'] = left or None
