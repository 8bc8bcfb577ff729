# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a config and a checkpoint say of the data that a task is for."""

from numbers import Number
from typing import List, Sequence, Tuple, Union

from mmdet.visualization.palette import get_palette
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from torch import nn

from vim_mm.utils.config import class_of
from vim_mm.utils.messages import short


def test_dataset(cfg: Config) -> ConfigDict:
    """The config of the test data set itself, inside any wrappers.

    Bases of other libraries have noted theirs as ``_scope_`` in the outermost
    dict, which mmengine heeds when it builds all that is inside.

    Raises:
        ValueError: If it has no pipeline.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset', {})
    scope = dataset.get('_scope_')
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset['datasets'][0]
        scope = dataset.get('_scope_', scope)
    if not dataset.get('pipeline'):
        raise ValueError('Its config has no test_dataloader.dataset.pipeline, '
                         'which says how images enter the model.')
    return ConfigDict(dataset, _scope_=scope)


def class_names(dataset: ConfigDict, meta: dict,
                model: nn.Module) -> Tuple[List[str], List[tuple]]:
    """Class names and colours, without building the data set.

    The classes of the checkpoint count most, being those it learned; then
    the config's, the data set class's, and bare numbers.
    """
    found = dict(getattr(class_of(dataset, DATASETS), 'METAINFO', {}))
    found.update(meta)
    found.update(dataset.get('metainfo') or {})
    classes = meta.get('classes') or dataset.get('classes') or found.get(
        'classes')
    if isinstance(classes, str):
        classes = list_from_file(classes)
    counts = [getattr(part, 'num_classes', 0) for part in model.modules()]
    num = max((n for n in counts if isinstance(n, int)), default=0)
    # outputs of the head that nobody named go by their numbers
    names = [str(c) for c in classes or ()]
    names += [str(n) for n in range(len(names), num)]
    return names, colours(found.get('palette'), len(names))


def colours(palette: Union[Sequence, str, None], num: int) -> List[tuple]:
    """A palette as RGB tuples.

    Args:
        palette: A colour for each class, one for all, or what mmdet takes:
            the name of a data set or of a colour. Classes that it leaves
            without one get others.
        num (int): Number of classes.
    """
    if isinstance(palette, str):
        try:
            palette = get_palette(palette, num)
        except (AssertionError, KeyError):  # too few, or no such name
            palette = None
    found = list(palette if palette is not None else ())
    if found and isinstance(found[0], Number):
        found = [found]
    if len(found) == 1:
        found *= num
    found += get_palette('random', num)[len(found):]
    try:
        return [tuple(map(int, colour)) for colour in found]
    except (TypeError, ValueError):
        raise ValueError(f'The palette {short(palette)} holds something else '
                         'than colours (red, green, blue); correct it where '
                         'the classes are named.') from None
