# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Heads of classifiers, detectors and segmentors, and their class scores."""

from inspect import Parameter, signature
from typing import Dict, List, NamedTuple, Sequence, Tuple

from mmdet.models import BaseDetector, SingleStageDetector
from mmengine.model import BaseModel
from mmpretrain.models import BaseClassifier
from mmseg.models import BaseSegmentor
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from torch import Tensor, nn

from vim_mm.utils.kinds import KINDS

#: the name of a network's class scores, whatever its library calls them
LOGITS = 'logits'
_BASES = dict(cls=BaseClassifier, det=BaseDetector, seg=BaseSegmentor)


class Layer(NamedTuple):
    """Where a layer's output stands.

    Attributes:
        path (str): The submodule.
        index (tuple[int]): Which entry of its output, of that entry, ...
    """
    path: str
    index: Tuple[int, ...] = ()


class Logits(NamedTuple):
    """A network's class scores.

    Attributes:
        layer (Layer): Where they stand.
        classes (int): How many there are, with one for none if it has one.
        sigmoid (bool): Whether they do not exclude each other.
    """
    layer: Layer
    classes: int
    sigmoid: bool


def kind_of(network: nn.Module) -> str:
    """Kind of task of a network, a key of ``KINDS``.

    Raises:
        ValueError: If it is no classifier, detector or segmentor.
    """
    for kind, base in _BASES.items():
        if isinstance(network, base):
            return kind
    raise ValueError(
        f'{type(network).__name__} is no model that can be distilled; give a '
        f'classifier, detector or segmentor of one of '
        f'{[kind.scope for kind in KINDS.values()]}.')


def heads_of(network: BaseModel) -> Dict[str, nn.Module]:
    """The heads that read a network's features and nothing else, by path.

    Region and transformer heads of detectors read more than that.
    """
    names = dict(cls=['head', 'model'], seg=['decode_head', 'auxiliary_head'])
    names['det'] = ['bbox_head'] if isinstance(
        network, SingleStageDetector) else ['rpn_head']
    heads = {}
    for name in names[kind_of(network)]:
        head = getattr(network, name, None)
        if isinstance(head, nn.ModuleList):
            heads.update({
                f'{name}.{key}': part
                for key, part in head.named_children()
            })
        elif head is not None:
            heads[name] = head
    return heads


def needs_more(head: nn.Module) -> bool:
    """Whether a head's forward must read more than features.

    Heads of a cascade, which read what the one before gave, do not count.
    """
    needed = [p for p in _parameters(head) if p.default is p.empty]
    return len(needed) > 1 and not isinstance(head, BaseCascadeDecodeHead)


def are_alone(network: BaseModel, heads: Dict[str, nn.Module]) -> bool:
    """Whether nothing but these heads reads the features, and they no more.

    Args:
        network (BaseModel): A network.
        heads (dict): What :func:`heads_of` gives of it.
    """
    if not hasattr(network, 'backbone'):
        return True  # one module from image to scores
    if isinstance(network, BaseDetector) \
            and not isinstance(network, SingleStageDetector):
        return False
    return all(len(_parameters(head)) == 1 for head in heads.values())


def _parameters(head: nn.Module) -> List[Parameter]:
    return [
        p for p in signature(head.forward).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def logits_of(network: BaseModel, who: str) -> Logits:
    """Where a network's class scores stand.

    Args:
        network (BaseModel): The network.
        who (str): What it is, for messages.

    Raises:
        ValueError: If it has none that belong to places of the picture.
    """
    kind, heads = kind_of(network), heads_of(network)
    path = next((path for path in reversed(heads)
                 if not path.startswith(('auxiliary_head', 'rpn_head'))), None)
    head = heads.get(path)
    field = dict(cls='num_classes', det='cls_out_channels', seg='out_channels')
    classes = getattr(head, field[kind], None)
    if classes is None or needs_more(head):
        raise ValueError(
            f"The {who} {type(network).__name__} has no '{LOGITS}' at fixed "
            'places of the picture; name layers of its `backbone` or `neck` '
            'instead.')
    if kind == 'det':
        # those of all anchors of a place, and boxes behind them
        return Logits(Layer(path, (0, )), classes, head.use_sigmoid_cls)
    losses = getattr(head, 'loss_decode', getattr(head, 'loss_module', None))
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    sigmoid = any(getattr(loss, 'use_sigmoid', False) for loss in losses)
    return Logits(Layer(path), classes, sigmoid or classes == 1)


def is_scores(network: BaseModel, name: str,
              levels: Sequence[Tensor]) -> bool:
    """Whether what a layer gives are class scores, by whatever name.

    Args:
        network (BaseModel): The network.
        name (str): The layer.
        levels (Sequence[Tensor]): What it gives.
    """
    if name == LOGITS:
        return True
    path = name.partition('[')[0]
    for key, head in heads_of(network).items():
        if f'{path}.'.startswith(f'{key}.'):
            try:
                logits = logits_of(network, 'network')
            except ValueError:
                return False
            width = logits.classes * getattr(head, 'num_base_priors', 1)
            channel = 1 if levels[0].dim() in (2, 4) else 2
            return levels[0].shape[channel] == width
    return False
