# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Actions for when modules of the OpenMMLab stack are imported.

This process may never need the stack, so ``import vim_mm`` imports neither
torch nor the stack. It only registers what to do when they are imported.
"""

import sys
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Callable, Iterator, Optional, Sequence

EXT_NAME = 'mmcv._ext'


def when_imported(name: str, act: Callable[[], None]) -> None:
    """Call a function as soon as a module is imported, or now if it is.

    Args:
        name (str): Full name of the module.
        act (Callable): Called once the module has run, before the
            importing code goes on. Only the first call for a name counts.
    """
    if name in sys.modules:
        act()
    elif not any(
            isinstance(f, ImportWatch) and f.name == name
            for f in sys.meta_path):
        sys.meta_path.insert(0, ImportWatch(name, act))


@contextmanager
def while_importing(name: str, act: Callable[[], None]) -> Iterator[None]:
    """Call a function now if a module is imported, or if it is within.

    Args:
        name (str): Full name of the module.
        act (Callable): Called once the module has run.
    """
    if sys.modules.get(name) is not None:
        act()
        yield
        return
    watch = ImportWatch(name, act)
    sys.meta_path.insert(0, watch)
    try:
        yield
    finally:
        sys.meta_path.remove(watch)


class ImportWatch(MetaPathFinder):
    """Lets the other finders find one module, and acts after it has run."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self.name = name
        self.act = act

    def find_spec(self,
                  fullname: str,
                  path: Optional[Sequence[str]] = None,
                  target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        if fullname != self.name:
            return None
        others = (f for f in sys.meta_path if f is not self)
        specs = (f.find_spec(fullname, path, target) for f in others)
        spec = next((s for s in specs if s is not None), None)
        if spec is not None:
            run = spec.loader.exec_module

            def run_and_act(module: ModuleType) -> None:
                run(module)
                self.act()

            spec.loader.exec_module = run_and_act
        return spec


def install_ops_finder() -> None:
    """Let ``mmcv._ext`` be imported when there are no compiled ops."""
    if not any(isinstance(f, OpsFinder) for f in sys.meta_path):
        sys.meta_path.append(OpsFinder())


def ops_are_stand_in() -> bool:
    """Whether mmcv would run, or runs, on the stand-in.

    Raises:
        ModuleNotFoundError: mmcv itself is not installed.
    """
    spec = find_spec(EXT_NAME)
    return spec is not None and isinstance(spec.loader, OpsLoader)


class OpsFinder(MetaPathFinder):
    """Finds ``mmcv._ext`` after every other finder has failed to."""

    def find_spec(self,
                  fullname: str,
                  path: Optional[Sequence[str]] = None,
                  target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        if fullname != EXT_NAME:
            return None
        return ModuleSpec(fullname, OpsLoader(), origin='vim_mm stand-in')


class OpsLoader(Loader):
    """Fills the module with the ops of :mod:`vim_mm.utils.mmcv_ops`."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        import torchvision  # noqa: F401  (registers torch.ops.torchvision)

        from .mmcv_ops import STAND_IN_OPS, missing_op
        module.__dict__.update(STAND_IN_OPS)
        module.__dict__['__getattr__'] = missing_op
