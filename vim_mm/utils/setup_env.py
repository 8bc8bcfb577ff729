# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Setup of the OpenMMLab stack by ``import vim_mm``."""

from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Iterable, Optional, Tuple

from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.utils import digit_version

from .import_hooks import install_ops_finder, when_imported
from .plain_files import register_readers, restrict_arrays, restrict_pickles
from .quiet_logs import drop_debug_prints

if TYPE_CHECKING:
    from mmengine.registry import Registry

OWN_SCOPE = 'vim_mm'
#: Parts of the stack that read pickles, and arrays of objects, by themselves;
#: the first is of mmdet's DODDataset.
PICKLES = ('d_cube.data_util', 'mmpretrain.datasets.cifar',
           'mmseg.utils.io')
ARRAYS = 'mmdet.datasets.openimages'


def prepare_stack() -> None:
    """Make the installed OpenMMLab stack ready for vim_mm configs.

    Idempotent, and without network or heavy imports.
    """
    # `_base_ = 'scope::…'` looks the scope up in this table. mmseg's entry
    # names a distribution that the maintained fork does not use; the import
    # name works for both.
    config_utils.MODULE2PACKAGE['mmseg'] = 'mmseg'
    # Ours is the name of a module and of no distribution: the original
    # mmengine takes an editable install's distribution for site-packages.
    config_utils.MODULE2PACKAGE[OWN_SCOPE] = 'vim_mm.version'
    leave_own_scope_out()
    drop_debug_prints()
    install_ops_finder()
    when_imported('mmengine.runner.checkpoint', make_loading_safe)
    when_imported('mmengine.dataset.base_dataset', name_unreadable_files)
    when_imported('mmengine.fileio.io', register_readers)
    for module in PICKLES:
        when_imported(module, partial(restrict_pickles, module))
    when_imported(ARRAYS, partial(restrict_arrays, ARRAYS))
    when_imported('mmpretrain.utils.dependency', leave_multimodal_out)


def leave_own_scope_out() -> None:
    """Let bases of ours be read as by a config beside them. Idempotent.

    mmengine notes the scope of a base from another package as ``_scope_`` in
    every dict with a type. In a loop or an optimizer wrapper, whose types are
    mmengine's own, it would hide the data sets and transforms of the user's
    default scope, which are built inside. Our bases name the library of every
    type that is not mmengine's, so they need no scope.
    """
    original = Config._get_cfg_path
    if hasattr(original, 'leaves_out'):
        return

    @wraps(original)
    def get_cfg_path(cfg_path: str,
                     filename: str) -> Tuple[str, Optional[str]]:
        path, scope = original(cfg_path, filename)
        return path, None if scope == OWN_SCOPE else scope

    get_cfg_path.leaves_out = OWN_SCOPE
    Config._get_cfg_path = staticmethod(get_cfg_path)


def make_loading_safe() -> None:
    """Replace mmengine's loaders; imports torch, as they do."""
    from .checkpoint import register_loaders
    register_loaders()


def leave_multimodal_out() -> None:
    """Let mmpretrain be imported beside a newer transformers.

    Its multimodal models, which nothing of ours needs, are written for
    transformers 4, those of mmpretrain 1.2 for names that moved within it,
    and stop its import beside others. Without them mmpretrain is what it is
    without transformers.
    """
    from mmpretrain.utils import dependency
    from mmpretrain.version import __version__
    limit = '5' if digit_version(__version__) >= (1, 3) else '4.56'
    if dependency.satisfy_requirement(f'transformers>={limit}'):
        dependency.WITH_MULTIMODAL = False
        dependency.register_multimodal_placeholder = partial(
            refuse_all, limit=limit)


def refuse_all(names: Iterable[str], registry: 'Registry',
               limit: str) -> None:
    """Register functions that refuse to build what mmpretrain left out."""
    for name in names:

        def refuse(*args: Any, name: str = name, **kwargs: Any) -> None:
            raise ImportError(
                f'{name} of mmpretrain is written for an older transformers: '
                f'pip install "transformers<{limit}"')

        registry.register_module(name=name, module=refuse)


def name_unreadable_files() -> None:
    """Let pipelines name the file that a stage cannot read."""
    from .unreadable import watch_pipelines
    watch_pipelines()
