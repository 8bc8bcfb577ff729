# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Pipelines whose images and annotations do not belong together.

Each of their stages is in order, so no library looks at what follows on what.
"""

import inspect
import logging
import os.path as osp
import re
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from .config import class_of, library_of, type_name
from .messages import short
from .settings import data_sets, dicts

_TURNS = 'Flip|Crop|Rotate|Shear|Translate|Affine|Shift|Expand|Perspective'
#: Stages that show an image elsewhere, and those that no detector undoes.
_MOVES = re.compile(f'{_TURNS}|Resize')
_STAYS = re.compile(f'{_TURNS}|Mosaic|MixUp')
_LOADS = re.compile('Load.*Annotations')
_ANOTHER_WAY = ()
#: Stages after which a model of its own undoes what they did.
_UNDONE = ('TestTimeAug', 'MultiScaleFlipAug')
#: Stages that draw.
_DRAWS = re.compile('Rand|AutoAugment|ColorJitter|PhotoMetric')


def check_pipelines(cfg: Config) -> None:
    """Refuse stages in an order, or at a place, where they do harm.

    Args:
        cfg (Config): The config of a run.

    Raises:
        ValueError: If images are moved before the annotations of a training
            are loaded, boxes are judged on images that were turned, images
            are normalised in another way than in training, or label maps of
            one folder are read in two ways.
    """
    forms: Dict[str, Dict[str, List[Any]]] = {}
    for where, dataset in data_sets(cfg):
        stages = list(_stages(dataset.get('pipeline')))
        loader, _, task = where.split('.dataset')[0].partition('.')
        with DefaultScope.overwrite_default_scope(_scope(cfg, where)):
            _check_resizes(where, dataset, stages)
        if loader == 'train_dataloader':
            _check_order(where, stages)
        else:
            _check_judged(where, stages)
        if stages:
            found = forms.setdefault(task, {}).setdefault(loader, [])
            found += [form for form in _forms(stages) if form not in found]
    _check_zero_labels(cfg)
    for task, by_loader in forms.items():
        _check_alike(f'.{task}' if task else '', by_loader)


def _check_resizes(where: str, dataset: Mapping,
                   stages: List[Tuple[str, Mapping]]) -> None:
    """Refuse stages that resize boxes of mmdet by what cannot.

    mmcv's build a 'Resize' of the scope of the run, which may be mmcv's.
    """
    if not dataset.get('type') or library_of(
            dataset, DefaultScope.get_current_instance().scope_name
            if DefaultScope.get_current_instance() else None) != 'mmdet':
        return
    for name, stage in stages:
        kind = class_of(stage, TRANSFORMS)
        given = inspect.signature(kind.__init__).parameters if kind else {}
        if 'resize_type' not in given:
            continue
        inner = stage.get('resize_type', given['resize_type'].default)
        found = class_of(dict(type=inner), TRANSFORMS)
        if found is not None and found.__module__.startswith('mmcv.'):
            raise ValueError(
                f"`{where}.pipeline` has a {name} that resizes by mmcv's "
                f'{found.__name__}, which leaves boxes of mmdet as they are '
                "or fails; set its `resize_type='mmdet.Resize'`.")


def _check_zero_labels(cfg: Config) -> None:
    """Refuse maps of one folder whose labels mean two things.

    A test builds no training set, so what configs say is compared.
    """
    first: Dict[tuple, Tuple[str, Any]] = {}
    for where, dataset in data_sets(cfg):
        root = dataset.get('data_root') or _folder_of_maps(dataset)
        if not root or not dataset.get('type'):
            continue
        with DefaultScope.overwrite_default_scope(_scope(cfg, where)):
            way = _zero_label(dataset)
        if way is None:
            continue
        place, other = first.setdefault(
            (type_name(dataset), root), (where, way))
        if way != other:
            raise ValueError(
                f"`{place}.reduce_zero_label` is {other}, and that of "
                f"`{where}` {way}, of maps in '{root}': their labels would be "
                'one off; give both the same.')


def _scope(cfg: Config, where: str) -> Optional[str]:
    """The library that a data set's type is looked for in."""
    default = cfg.get('default_scope')
    model = cfg.get('model')
    tasks = model.get('tasks') if isinstance(model, Mapping) else None
    own = tasks.get(where.split('.')[1]) if isinstance(tasks, Mapping) else {}
    has_type = isinstance(own, Mapping) and own.get('type')
    return library_of(own, default) if has_type else default


def _folder_of_maps(dataset: Mapping) -> str:
    """What those of training and validation lie in, without a root."""
    prefix = dataset.get('data_prefix')
    maps = prefix.get('seg_map_path') if isinstance(prefix, Mapping) else None
    return osp.dirname(maps.rstrip('/')) if isinstance(maps, str) else ''


def _zero_label(dataset: Mapping) -> Optional[bool]:
    """Whether a data set leaves the label 0 out, if it says so."""
    way = dataset.get('reduce_zero_label')
    kind = class_of(dataset, DATASETS) if way is None else None
    # a class of one's own may leave it to the one that it is made of
    for base in kind.__mro__ if kind is not None else ():
        given = inspect.signature(base.__init__).parameters.get(
            'reduce_zero_label')
        if given is not None:
            way = given.default
            break
    return way if isinstance(way, bool) else None


def _stages(pipeline: Any) -> Iterator[Tuple[str, Mapping]]:
    """The stages of a pipeline by name, those of no type left out."""
    for stage in pipeline or ():
        if isinstance(stage, Mapping) and stage.get('type'):
            yield type_name(stage), stage


def _names(stage: Mapping) -> Iterator[str]:
    """Of a stage that may do something, and of those inside of it."""
    for _, part in dicts('', stage):
        if part.get('type') and part.get('prob') not in (0, 0.) and \
                not part.get('test_mode'):
            yield type_name(part)


def _first(stage: Mapping, kind: re.Pattern) -> Optional[str]:
    return next(filter(kind.search, _names(stage)), None)


def _check_order(where: str, stages: List[Tuple[str, Mapping]]) -> None:
    moves = None
    for name, stage in stages:
        if moves and _LOADS.match(name):
            raise ValueError(
                f'`{where}.pipeline` has {moves} before {name}: annotations '
                'are those of the image as it is in its file, and would not '
                f'fit the one that is trained with; put {name} first.')
        moves = moves or _first(stage, _MOVES)


def _check_judged(where: str, stages: List[Tuple[str, Mapping]]) -> None:
    boxes = any(name == 'PackDetInputs' for name, _ in stages)
    for name, stage in stages:
        if name in _UNDONE:
            continue
        turned = _first(stage, _STAYS)
        if boxes and turned:
            raise ValueError(
                f'`{where}.pipeline` has {turned}, and boxes are judged by '
                'the image as it is in its file: a detector undoes what '
                'Resize did, and nothing else; leave it out.')
        drawn = _first(stage, _DRAWS)
        if drawn:
            _warn(f'`{where}.pipeline` draws at random ({drawn}), so two '
                  'results of one model differ; leave it out.')
        if 'ReRepresent' in _names(stage):
            _warn(f'`{where}.pipeline` has ReRepresent, so a model is judged '
                  'by images that it is not given in use; leave it out.')


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)


def _forms(stages: List[Tuple[str, Mapping]]) -> Iterator[tuple]:
    """How images are normalised: mean, std, and whether as RGB.

    Other libraries do it inside of a stage (``Albu``), and count otherwise.
    """
    for name, stage in stages:
        if name == 'Normalize':
            yield (*(list(stage.get(key) or ()) for key in ('mean', 'std')),
                   stage.get('to_rgb', True))
        elif 'Normalize' in _names(stage):
            yield _ANOTHER_WAY


def _check_alike(task: str, forms: Dict[str, List[Any]]) -> None:
    """Refuse images that are normalised unlike those of the training."""
    learned = forms.pop('train_dataloader', None)
    if learned is None:
        return
    for loader, judged in forms.items():
        known = _ANOTHER_WAY not in learned + judged and \
            max(len(learned), len(judged)) < 2
        if known and judged != learned:
            raise ValueError(
                f'Images of `{loader}{task}` are normalised by '
                f'{_words(judged)}, and those of `train_dataloader{task}` by '
                f'{_words(learned)}, so a model is judged by others than it '
                'has learned from; give both the same, or leave Normalize to '
                'the `data_preprocessor`.')


def _words(forms: List[Any]) -> str:
    if not forms:
        return 'no Normalize'
    mean, std, to_rgb = forms[0]
    return f'Normalize(mean={short(mean)}, std={short(std)}, to_rgb={to_rgb})'
