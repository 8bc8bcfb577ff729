# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""vim_mm: a frozen trunk, and everything else as small exchangeable parts.

Importing the package prepares the OpenMMLab stack for it, which has to happen
before the first config is parsed: configs of ``mmseg::`` and ``vim_mm::``
resolve, a stand-in serves missing compiled mmcv ops, safetensors files load as
checkpoints, and runners look at data and checkpoints before they work.
"""

from ._moved import install as install_moved
from .utils.import_hooks import when_imported
from .utils.setup_env import prepare_stack
from .version import __version__


def _guard_runner() -> None:
    from .engine.runner import guard_runner
    guard_runner()


install_moved()
prepare_stack()
when_imported('mmengine.runner', _guard_runner)

__all__ = ['__version__']
