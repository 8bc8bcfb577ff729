# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Runs that cannot begin say so in a sentence, whoever notices it.

Libraries look at a config as late as they need it, and end in an error about
some index or shape. Until a step is done, of several tasks one of the task
that runs, such an error is about the config; later it may be anything, and
keeps its traceback.
"""

from contextlib import contextmanager
from functools import wraps
from typing import Any, Callable, Iterator

from mmengine.runner import Runner
from torch import nn

from vim_mm.utils.cli import is_user_error
from vim_mm.utils.refusals import frames, refusal, refused_by_library, unhooked
from vim_mm.utils.state_dicts import plain_name

_FIX = 'correct it in the config'


def explained_method(cls: type, method: str, what: str) -> None:
    """Let what a library raises in a method end in a sentence. Idempotent.

    Args:
        cls (type): A class of runners.
        method (str): Name of the method.
        what (str): What went wrong, in words.
    """
    original: Callable = getattr(cls, method)
    if hasattr(original, 'explained'):
        return

    @wraps(original)
    def call(self: Runner, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except Exception as error:
            if not refused_by_library(error):
                raise
            raise refusal(what, error, _FIX) from error

    call.explained = True
    setattr(cls, method, call)


@contextmanager
def explained(runner: Runner) -> Iterator[None]:
    """Within, what a library raises before a step is done is a sentence.

    Later, too, if it comes of values that are not finite.

    Args:
        runner (Runner): The run. Its :class:`GuardHook` notes steps, and its
            :class:`FiniteLossHook` knows of such values.

    Raises:
        RefusedError: In place of the library's error.
        ValueError: If values are not finite.
    """
    try:
        yield
    except Exception as error:
        inner = unhooked(error)
        if inner is not error and is_user_error(inner):
            raise inner from None  # as it was said
        bad = next(filter(None, (
            hook.why_it_fails(runner) for hook in runner.hooks
            if hasattr(hook, 'why_it_fails'))), None) \
            if refused_by_library(error) else None
        if bad:
            raise ValueError(bad) from error
        stepped = any(
            hook.has_stepped(runner) for hook in runner.hooks
            if hasattr(hook, 'has_stepped'))
        if stepped or not refused_by_library(error):
            raise
        where = place_of(runner.model, error)
        raise refusal(f'The run fails{where} before a step is done', error,
                      _FIX) from error


def place_of(model: Any, error: Exception) -> str:
    """The innermost part of a model that an error came by, in words.

    Args:
        model (nn.Module): The model.
        error (Exception): The error.

    Returns:
        str: Such as ' in `model.neck` (FPN)'; empty if it came by none.
    """
    names = {
        id(part): plain_name(name)
        for name, part in model.named_modules()
    } if isinstance(model, nn.Module) else {}
    found = None
    for frame in frames(error):
        part = frame.f_locals.get('self')
        if isinstance(part, nn.Module) and names.get(id(part)):
            found = part
    if found is None:
        return ''
    return f' in `model.{names[id(found)]}` ({type(found).__name__})'
