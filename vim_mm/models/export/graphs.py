# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What of a model goes into an ONNX graph, by kind of task.

Graphs read normalised images, not pixels: mm* preprocessors pad after they
normalise, so that what is padded is zero to the network. The file's metadata
says how to normalise.
"""

from contextlib import contextmanager
from functools import partial
from typing import Any, Dict, Iterator, List, Tuple, Type

import torch.nn.functional as F
from mmdet.models.detectors import SingleStageDetector
from mmengine.model import BaseModel
from mmpretrain.models.classifiers import BaseClassifier
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from .dense_heads import decoder_spec

__all__ = ['Graph', 'graph_of', 'traceable']


class Graph(nn.Module):
    """A model from normalised images to the outputs of its file.

    Args:
        model (BaseModel): In eval mode.

    Attributes:
        kind (str): Of :data:`vim_mm.utils.kinds.KINDS`.
        names (list[str]): Of its outputs.
        inputs (list[str]): Of its inputs.
        about (dict): Plain values for the metadata that say how outputs
            become predictions.
    """

    kind: str
    names: List[str]
    inputs = ['image']

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model = model
        self.about: Dict[str, Any] = {}

    def dynamic_axes(self) -> Dict[str, Dict[int, str]]:
        """Names of the dimensions that are not fixed."""
        return dict(
            image={0: 'batch', 2: 'height', 3: 'width'},
            **{name: {0: 'batch'} for name in self.names})


class Classifier(Graph):
    """Scores of classes (B, C), from 0 to 1."""

    kind = 'cls'
    names = ['scores']

    def __init__(self, model: BaseClassifier) -> None:
        super().__init__(model)
        head = getattr(model, 'head', None)
        head = getattr(head, 'running', head)  # of TaskHeads
        predict = getattr(type(head), '_get_predictions', None)
        if predict is ClsHead._get_predictions:
            self.about = dict(activation='softmax')
        elif predict is MultiLabelClsHead._get_predictions:
            self.about = dict(
                activation='sigmoid', thr=head.thr, topk=head.topk)
        else:
            raise ValueError(
                'The classifier cannot be exported: its head '
                f'{type(head).__name__} gives no scores as ClsHead or '
                'MultiLabelClsHead do.')

    def forward(self, image: Tensor) -> Tensor:
        logits = self.model(image, mode='tensor')
        if self.about['activation'] == 'softmax':
            return logits.softmax(1)
        return logits.sigmoid()


class Segmentor(Graph):
    """Logits of the pixels (B, C, H, W), as large as the image."""

    kind = 'seg'
    names = ['logits']

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__(model)
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise ValueError(
                'The segmentor cannot be exported: it slides a window over '
                'the image (`test_cfg.mode`); set '
                "`model.test_cfg.mode='whole'`.")
        head = model.decode_head
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        self.about = dict(
            align_corners=bool(model.align_corners), threshold=head.threshold)

    def forward(self, image: Tensor) -> Tensor:
        size = tuple(image.shape[2:])
        meta = dict(img_shape=size, pad_shape=size, ori_shape=size)
        return self.model.encode_decode(image, [meta])

    def dynamic_axes(self) -> Dict[str, Dict[int, str]]:
        axes = super().dynamic_axes()
        return dict(axes, logits=axes['image'])


class Detector(Graph):
    """Raw maps of a detector's head, for a decoder."""

    kind = 'det'

    def __init__(self, model: SingleStageDetector) -> None:
        super().__init__(model)
        head = model.bbox_head
        self.head = getattr(head, 'running', head)  # of TaskHeads
        spec = decoder_spec(self.head)
        self.about = dict(decoder=spec)
        kinds = ['score', 'box', 'factor'][:self._num_kinds()]
        self.names = [
            f'{kind}_{index}' for kind in kinds
            for index in range(len(spec['levels']))
        ]

    def _num_kinds(self) -> int:
        """Maps a level that the head gives: two, or three with a factor."""
        weight = next(self.model.parameters())
        side = 2 * int(max(max(s) for s in self.head.prior_generator.strides))
        outputs = self.model(weight.new_zeros(1, 3, side, side), mode='tensor')
        return len(outputs)

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        outputs = self.model(image, mode='tensor')
        return tuple(level for levels in outputs for level in levels)

    def dynamic_axes(self) -> Dict[str, Dict[int, str]]:
        axes = super().dynamic_axes()
        return {
            name: own if name == 'image' else {
                0: 'batch',
                2: f'height_{name}',
                3: f'width_{name}'
            }
            for name, own in axes.items()
        }


#: Graphs and the models that they take.
GRAPHS: Tuple[Tuple[Type[BaseModel], Type[Graph]], ...] = (
    (BaseClassifier, Classifier),
    (EncoderDecoder, Segmentor),
    (SingleStageDetector, Detector),
)


def graph_of(model: BaseModel) -> Graph:
    """The graph of a model, in eval mode and without gradients.

    Args:
        model (BaseModel): A classifier of mmpretrain, a segmentor of mmseg or
            a single-stage detector of mmdet, which gives raw maps.

    Raises:
        ValueError: If it is another kind of model, or a part of it does not
            go into a graph.
    """
    for kind, graph in GRAPHS:
        if isinstance(model, kind):
            return graph(model).eval().requires_grad_(False)
    parts = [
        f'`{name}` ({type(part).__name__})'
        for name, part in model.named_children()
        if name in ('rpn_head', 'roi_head', 'mask_head', 'encoder')
    ]
    raise ValueError(
        f'A {type(model).__name__} cannot be exported'
        f'{" because of its " + " and ".join(parts) if parts else ""}; '
        "classifiers, segmentors of the kind EncoderDecoder and detectors of "
        'the kind SingleStageDetector can.')


# ------------------------------------------------------------------- tracing


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Within this context, sizes that a model computes are in its graph.

    Where mm* code rounds a size with ``math.ceil`` or ``int``, it makes a
    constant of it, and a graph would treat every image as the one traced:
    in ``AdaptivePadding`` (before patches are cut) and in ``window_reverse``
    (attention in windows).
    """
    changed = []
    for part in model.modules():
        if type(part).__name__ == 'AdaptivePadding' and all(
                kernel >= stride
                for kernel, stride in zip(_kernel(part), part.stride)):
            part.forward = partial(_pad, part)
            changed.append((part, 'forward'))
        elif hasattr(part, 'window_reverse'):
            part.window_reverse = _join_windows
            changed.append((part, 'window_reverse'))
    try:
        yield
    finally:
        for part, name in changed:
            delattr(part, name)


def _kernel(part: nn.Module) -> List[int]:
    """Sides of a kernel, with what its dilation leaves out."""
    return [(size - 1) * dilation + 1
            for size, dilation in zip(part.kernel_size, part.dilation)]


def _pad(part: nn.Module, x: Tensor) -> Tensor:
    """``AdaptivePadding`` in whole numbers, with no condition on a size."""
    sides: List[int] = []
    for axis in (1, 0):  # the last dimension comes first
        size, stride = x.shape[2 + axis], part.stride[axis]
        missing = (size + stride - 1) // stride * stride - size
        missing = missing + _kernel(part)[axis] - stride
        before = missing // 2 if part.padding == 'same' else 0
        sides += [before, missing - before]
    return F.pad(x, sides)


def _join_windows(windows: Tensor, height: int, width: int,
                  *_: int) -> Tensor:
    """Windows (N, side, side, C) as maps (B, H, W, C)."""
    side, channels = windows.shape[1], windows.shape[3]
    x = windows.view(-1, height // side, width // side, side, side, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)
