# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any, Iterator

from mmengine.dist import barrier
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from vim_mm.registry import HOOKS
from ..saving import VALIDATE, remove_drafts, save_now
from ..stopping import EXIT_CODE, OutlivingWorker, Stop, Stopped


@HOOKS.register_module()
class StopHook(Hook):
    """Save and stop a run that a signal (SIGTERM, SIGHUP) asks to.

    All processes stop after the same step, with the exit code 75. A run that
    is stopped while it validates does so anew when it is resumed; so does one
    that was killed between a checkpoint and the validation that follows it.
    Every run has this hook.
    """

    # after all that works on a step, checkpoints too
    priority = 'LOWEST'

    def before_run(self, runner: Runner) -> None:
        """Let the workers of loaders outlive a signal to all processes."""
        if not isinstance(runner._train_loop, BaseLoop):
            return
        for loader in _loaders(runner):
            if not isinstance(loader.worker_init_fn, OutlivingWorker):
                loader.worker_init_fn = OutlivingWorker(loader.worker_init_fn)
        for evaluator in _evaluators(runner._val_loop):
            _meet_before(evaluator)

    def before_train(self, runner: Runner) -> None:
        """Do what the run that is resumed was about to do."""
        if Stop.current is not None:
            Stop.current.is_preparing = False
        remove_drafts(runner)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                _note_swaps(hook)
        due = runner.message_hub.runtime_info.pop(VALIDATE, 0)
        if due and runner._resume and runner.val_loop is not None:
            runner.logger.info('The checkpoint was written before a '
                               'validation, which comes first.')
            runner.val_loop.run()

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Stop after this step if a signal asks for it.

        Raises:
            Stopped: If it does.
        """
        stop = Stop.current
        if _is_partial(runner.optim_wrapper):
            return
        if stop is not None and stop.meet():
            _leave(runner, runner.epoch, runner.iter + 1)

    def after_val_iter(self, runner: Runner, *args: Any,
                       **kwargs: Any) -> None:
        """Stop validating if a signal asks for it.

        Raises:
            Stopped: If it does.
        """
        if Stop.current is not None and Stop.current.is_asked():
            leave_validation()


def leave_validation() -> None:
    """Stop in a validation if a signal asks any process for it.

    Each process comes here once in each pass through its data: as soon as it
    knows of a signal, or at the end.

    Raises:
        Stopped: If one does.
    """
    stop = Stop.current
    if stop is None or not stop.meet():
        return
    runner = stop.runner
    for hook in runner.hooks:
        if getattr(hook, 'is_swapped', False):
            hook._swap_ema_parameters()
    runner.model.train()
    runner.message_hub.update_info(VALIDATE, 1)
    _leave(runner, runner.epoch, runner.iter)


def _is_partial(wrapper: Any) -> bool:
    """Whether gradients have been added that no step has used yet."""
    engine = getattr(wrapper, '_model', None)  # of DeepSpeed
    if engine is not None:
        return bool(engine.micro_steps % engine.gradient_accumulation_steps())
    count = getattr(wrapper, '_inner_count', 0)
    return bool(count % getattr(wrapper, '_accumulative_counts', 1)
                ) and count != wrapper._max_counts


def _leave(runner: Runner, epoch: int, step: int) -> None:
    stop, path = Stop.current, None
    if step:
        path = save_now(runner, epoch, step)
        barrier()  # whoever ends first has the others ended
    said = f'saved {path}; --resume goes on' if path else 'nothing is saved'
    runner.logger.warning(
        f'Stopped by {stop.name} after step {step}: {said}. Exit code '
        f'{EXIT_CODE}.')
    raise Stopped(EXIT_CODE)


def _loaders(runner: Runner) -> Iterator[DataLoader]:
    """The loaders of training and validation, of each task."""
    for loop in (runner._train_loop, runner._val_loop):
        loader = getattr(loop, 'dataloader', None)
        if isinstance(loader, DataLoader):
            yield loader
        yield from getattr(loader, 'loaders', {}).values()


def _evaluators(loop: Any) -> Iterator[Any]:
    """The evaluator of a validation, those of each task."""
    if hasattr(loop, 'evaluator'):
        yield loop.evaluator
    for inner in getattr(loop, 'loops', {}).values():
        yield inner.evaluator


def _meet_before(evaluator: Any) -> None:
    """Let all processes meet before they put together what they have seen."""
    evaluate = evaluator.evaluate
    if hasattr(evaluate, 'meets'):
        return

    def meet_and_evaluate(*args: Any, **kwargs: Any) -> dict:
        leave_validation()
        return evaluate(*args, **kwargs)

    meet_and_evaluate.meets = True
    evaluator.evaluate = meet_and_evaluate


def _note_swaps(hook: EMAHook) -> None:
    """Let a hook know whether averages are in the model's place."""
    swap = hook._swap_ema_parameters
    if hasattr(hook, 'is_swapped'):
        return

    def note_and_swap() -> None:
        hook.is_swapped = not hook.is_swapped
        swap()

    hook.is_swapped = False
    hook._swap_ema_parameters = note_and_swap
