# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""vim_mm: a frozen trunk, and everything else as small exchangeable parts.

Importing the package prepares the OpenMMLab stack for it, which has to happen
before the first config is parsed: configs of ``mmseg::`` and ``vim_mm::``
resolve, a stand-in serves missing compiled mmcv ops, safetensors files load as
checkpoints, runners look at data and checkpoints before they work, and models
whose config says ``in_channels='auto'`` find out.
"""

from typing import Callable

from ._moved import install as install_moved
from .utils.import_hooks import when_imported
from .utils.setup_env import prepare_stack
from .version import __version__


def _guard_runner() -> None:
    # it does so when it has been imported, which it may be about to be: it
    # imports mmengine's runners itself
    from .engine import runner  # noqa: F401


def _watch_builds() -> None:
    from .utils.building import watch_builds

    def load() -> Callable:
        from .models.auto_channels import build_part
        return build_part

    watch_builds(load)


install_moved()
prepare_stack()
when_imported('mmengine.runner', _guard_runner)
when_imported('mmengine.registry', _watch_builds)

__all__ = ['__version__']
