# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is asked of ``torch.compile``, checked before anything is compiled."""

import inspect
import os
import shutil
import sys
from typing import Any, Dict, Union

import torch
from mmengine.utils import digit_version

#: The first torch whose compiler takes a pass, and another one of a module
#: more, as one graph.
OLDEST = '2.8'


def compile_options(given: Union[bool, dict], device: str,
                    **defaults: Any) -> Dict[str, Any]:
    """Arguments of ``torch.compile`` for a backbone.

    The whole pass becomes one graph, or compiling fails by name. Where torch
    can tell, the graphs of one backbone do not count against the limit of
    another's.

    Args:
        given (bool | dict): True, or arguments that come before the defaults.
        device (str): Where the graph runs.
        **defaults: What to take where ``given`` does not say.

    Raises:
        ValueError: If it is no such thing, names an argument that there is
            none of, torch is too old, or the compiler it needs is not
            installed.
    """
    if given is not True and not isinstance(given, dict):
        raise ValueError(f'compile={given!r} is neither True nor a dict of '
                         'arguments of `torch.compile`.')
    if digit_version(torch.__version__) < digit_version(OLDEST):
        raise ValueError(f'torch {torch.__version__} cannot compile a backbone'
                         f' into one graph; take torch >= {OLDEST}, or leave '
                         'out `compile`.')
    known = set(inspect.signature(torch.compile).parameters) - {'model'}
    options = dict(fullgraph=True, **defaults)
    if 'isolate_recompiles' in known:
        options['isolate_recompiles'] = True
    options.update({} if given is True else given)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f'`torch.compile` takes no {unknown}, which `compile`'
                         f' names; it takes {sorted(known)}.')
    if options.get('backend', 'inductor') == 'inductor':
        _check_compiler(device)
    elif 'mode' in defaults and 'mode' not in (given or {}):
        del options['mode']  # only Inductor has modes
    if 'options' in options:
        options.pop('mode', None)  # torch takes either
    return options


def _check_compiler(device: str) -> None:
    """Inductor writes C++ for the CPU.

    Raises:
        ValueError: If nothing there compiles it.
    """
    own = 'clang++' if sys.platform == 'darwin' else 'g++'
    compiler = os.environ.get('CXX', own)
    if device == 'cpu' and not shutil.which(compiler):
        raise ValueError(
            f"Compiling for the CPU needs a C++ compiler, and '{compiler}' is "
            'not installed; install one, name yours in the environment '
            'variable CXX, or leave out `compile`.')
