# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import glob
import os.path as osp
from typing import Dict, Iterator, List, Optional, Tuple, Union

from mmengine.config import Config

from vim_mm.registry import DATASETS
from .arguments import arguments_of
from .class_names import check_class_names, check_same_names, names_of
from .config import task_scopes, type_name
from .manifest import check_files, manifest_of


def check_data(cfg: Union[Config, dict], parts: Tuple[str, ...]) -> None:
    """Refuse missing data, or that of other classes, before a run begins.

    Args:
        cfg (Config | dict): The whole config. What is built already in it
            is not looked at.
        parts (tuple[str]): The data loaders that the run needs, e.g.
            ``('train_dataloader', 'val_dataloader')``.

    Raises:
        FileNotFoundError: If the data root, an annotation file or a folder
            of a data set or its evaluator is not there; names the option
            that says where to look.
        ValueError: If annotations know other classes than the config, the
            data sets of a run number theirs otherwise, or images that
            networks made are not as they were made.
    """
    first: Dict[str, Tuple[str, List[str]]] = {}
    for part in parts:
        for loader, scope, task in _loaders(cfg, part):
            for key, dataset in _datasets(f'{part}{task}.dataset',
                                          loader['dataset'], scope):
                if not _downloads(dataset):
                    _check(key, dataset)
                    _check_images(dataset)
                    check_class_names(key, dataset)
                names = names_of(dataset)
                if names is not None:
                    check_same_names(*first.setdefault(task, (key, names)),
                                     key, names)
        evaluator = part.replace('dataloader', 'evaluator')
        if evaluator != part and isinstance(cfg.get(part), dict):
            _check_evaluator(evaluator, cfg.get(evaluator))


def _loaders(cfg: Union[Config, dict],
             part: str) -> Iterator[Tuple[dict, Optional[str], str]]:
    """Configs of a run's loaders, each with its scope and '.TASK', if any."""
    loader, scope = cfg.get(part), cfg.get('default_scope')
    if not isinstance(loader, dict):
        return
    if 'dataset' in loader:
        yield loader, scope, ''
        return
    model = cfg.get('model') or {}
    scopes = getattr(model, 'scopes', None) if not isinstance(
        model, dict) else task_scopes(model.get('tasks') or {}, scope)
    for task, own in loader.items():
        if isinstance(own, dict) and 'dataset' in own:
            yield own, (scopes or {}).get(task, scope), f'.{task}'


def _check(key: str, dataset: dict) -> None:
    root = dataset.get('data_root') or ''
    if root and '://' not in root and not osp.isdir(root):
        raise FileNotFoundError(
            f"The data root '{root}' does not exist; set `{key}.data_root` to "
            "where the data is (--cfg-options); tools/dataset_converters make "
            "the demo's.")
    ann = dataset.get('ann_file')
    if isinstance(ann, str) and _is_missing(root, ann):
        raise FileNotFoundError(
            f"The annotation file '{osp.join(root, ann)}' does not exist; set "
            f'`{key}.ann_file` (--cfg-options).')
    if any(map(_is_elsewhere, (dataset, *dataset.get('pipeline', ())))):
        return
    for option, path in dataset.items():
        # as a data set joins it, or not
        if option.endswith('_file') and isinstance(path, str) and _is_missing(
                root, path) and _is_missing('', path):
            raise FileNotFoundError(
                f"The file '{osp.join(root, path)}' does not exist; set "
                f'`{key}.{option}` (--cfg-options).')
    for option, prefix in _prefixes(f'{key}.data_prefix', dataset).items():
        # a prefix of files' names is no folder
        if isinstance(prefix, str) and _is_missing(
                root, prefix) and not _starts_files(osp.join(root, prefix)):
            raise FileNotFoundError(
                f"There is nothing at '{osp.join(root, prefix)}'; set "
                f'`{option}` (--cfg-options).')


def _check_images(dataset: dict) -> None:
    """Compare generated and re-represented images with their checksums."""
    root = dataset.get('data_root') or ''
    if '://' in root or _is_elsewhere(dataset):
        return
    prefixes = _prefixes('', dataset).values()
    folders = {
        osp.join(root, prefix)
        for prefix in prefixes or ('', )
        if isinstance(prefix, str) and '://' not in prefix
    }
    for path in sorted(set(map(manifest_of, folders)) - {None}):
        check_files(path)


def _prefixes(option: str, dataset: dict) -> dict:
    """The prefixes that a data set reads from, by the option that sets each.

    Images to test on may come without label maps.
    """
    prefix = dataset.get('data_prefix') or {}
    if isinstance(prefix, str):
        return {option: prefix}
    labelled = any('Annotation' in type_name(stage)
                   for stage in dataset.get('pipeline', ()))
    return {
        f'{option}.{name}': value
        for name, value in prefix.items()
        if labelled or name.startswith('img')
    }


def _check_evaluator(key: str, evaluator: Union[dict, list, None]) -> None:
    if isinstance(evaluator, (list, tuple)):
        for index, item in enumerate(evaluator):
            _check_evaluator(f'{key}.{index}', item)
    elif isinstance(evaluator, dict):
        if 'type' not in evaluator and 'metrics' not in evaluator:
            for task, item in evaluator.items():
                _check_evaluator(f'{key}.{task}', item)
        ann = evaluator.get('ann_file')
        if isinstance(ann, str) and _is_missing('', ann):
            raise FileNotFoundError(
                f"The annotation file '{ann}' does not exist, which metrics "
                f'are measured by; set `{key}.ann_file` (--cfg-options).')


def _is_missing(root: str, path: str) -> bool:
    path = osp.join(root, path)
    return bool(path) and '://' not in path and not osp.exists(path)


def _is_elsewhere(reader: dict) -> bool:
    """Whether a data set or a loading stage reads from another storage."""
    backend = reader.get('backend_args') or {}
    return backend.get('backend', 'local') != 'local'


def _starts_files(prefix: str) -> bool:
    return any(map(osp.isfile, glob.iglob(glob.escape(prefix) + '*')))


def _downloads(dataset: dict) -> bool:
    """Whether a data set fetches what is missing (CIFAR, MNIST)."""
    kind = dataset.get('type')
    if isinstance(kind, str):
        scope = dataset.get('_scope_')
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    known = arguments_of(kind) if isinstance(kind, type) else ()
    return 'download' in known and dataset.get('download', True)


def _datasets(key: str, dataset: dict,
              scope: Optional[str]) -> Iterator[Tuple[str, dict]]:
    """The real data sets with their scope, inside any wrappers.

    mmengine notes the scope of a base in the outermost one alone.
    """
    if not isinstance(dataset, dict):
        return
    scope = dataset.get('_scope_', scope)
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner is None:
        yield key, dict(dataset, _scope_=scope)
    elif isinstance(inner, dict):
        yield from _datasets(f'{key}.dataset', inner, scope)
    else:
        for index, item in enumerate(inner):
            yield from _datasets(f'{key}.datasets.{index}', item, scope)
