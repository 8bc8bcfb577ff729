# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Setup of the OpenMMLab stack by ``import vim_mm``."""

from mmengine.config import utils as config_utils

from .import_hooks import install_ops_finder, when_imported


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
    config_utils.MODULE2PACKAGE['vim_mm'] = 'vim_mm.version'
    install_ops_finder()
    when_imported('mmengine.runner.checkpoint', make_loading_safe)


def make_loading_safe() -> None:
    """Replace mmengine's loaders; imports torch, as they do."""
    from .checkpoint import register_loaders
    register_loaders()
