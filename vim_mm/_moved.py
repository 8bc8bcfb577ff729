# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Old import paths of 0.1, which lead to the new ones until 0.3.

Importing an old module, or a module inside an old package, warns and gives a
module that holds what the new ones hold.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

#: Old module or package to the new ones, by their names in ``vim_mm``.
MODULES: Dict[str, Tuple[str, ...]] = {
    'apis.comparison': ('report.comparison', 'report.variants'),
    'apis.demo': ('demo.steps', 'demo.common'),
    'apis.evidence': ('report.evidence', ),
    'apis.pictures': ('report.pictures', ),
    'apis.report': ('report.page', 'report.steps'),
    'datasets.prepare': ('demo.data', ),
    'datasets.prepare.common': ('demo.data.recipe', ),
    'engine.feature_cache': ('features.cache', 'features.loaders',
                             'utils.wrappers'),
    'engine.fit': ('models.fit', ),
    'engine.hold_out': ('evaluation.ridge', ),
    'engine.module_rows': ('features.module_rows', ),
    'engine.transfer_score': ('evaluation.ridge', 'features.rows'),
    'engine.transferability': ('evaluation.transferability', ),
    'engine.unlike_halves': ('evaluation.unlike_halves', ),
    'utils.trunk_weights': ('interchange.trunks', ),
    'zoo.interchange': ('interchange', ),
    'zoo.interchange.folders': ('utils.files', ),
}
#: Module to names it exported, and where they are now.
NAMES: Dict[str, Dict[str, str]] = {
    'apis': {
        name: 'report'
        for name in ('Row', 'Step', 'Variant', 'VariantResult', 'run_variant',
                     'variants', 'write_report')
    },
}


def install() -> None:
    """Let old paths be imported."""
    if not any(isinstance(f, MovedFinder) for f in sys.meta_path):
        # before the others: folders that only hold caches of compiled files
        # may be left where a package was, and would be found
        sys.meta_path.insert(0, MovedFinder())


def new_paths(fullname: str) -> Tuple[str, ...]:
    """Where an old module is now; nothing if it did not move."""
    package, _, name = fullname.partition('.')
    if package != 'vim_mm':
        return ()
    old, inside = name, ''
    while old and old not in MODULES:
        old, _, last = old.rpartition('.')
        inside = f'.{last}{inside}'
    return tuple(f'vim_mm.{new}{inside}' for new in MODULES.get(old, ()))


def moved_names(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose names have moved."""
    names = NAMES[module.partition('.')[2]]

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f'module {module!r} has no attribute '
                                 f'{name!r}')
        new = f'vim_mm.{names[name]}'
        _warn(f'{module}.{name}', f'{new}.{name}')
        return getattr(import_module(new), name)

    return find


class MovedFinder(MetaPathFinder):
    """Finds modules under their old paths."""

    def find_spec(self,
                  fullname: str,
                  path: Optional[Sequence[str]] = None,
                  target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        new = new_paths(fullname)
        spec = find_spec(new[0]) if new else None
        if spec is None:
            return None
        # what is inside a package is found by this finder again
        is_package = spec.submodule_search_locations is not None
        return ModuleSpec(fullname, MovedLoader(), is_package=is_package)


class MovedLoader(Loader):
    """Fills an old module with what the new ones hold."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = new_paths(module.__name__)
        _warn(module.__name__, ' and '.join(new))
        for path in new:
            module.__dict__.update({
                name: value
                for name, value in vars(import_module(path)).items()
                if not name.startswith('__') or name == '__all__'
            })


def _warn(old: str, new: str) -> None:
    # frames of the import system do not count: this is the import statement
    warnings.warn(
        f'{old} is now {new}; the old path goes with version 0.3.',
        DeprecationWarning,
        stacklevel=3)
