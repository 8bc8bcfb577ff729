# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From a graph in PyTorch to the bytes of an ONNX file that computes the same.

The tracing exporter is used: it takes seconds where the one of
``torch.export`` takes a minute, and sizes stay free in all of mm*.
"""

import io
import json
import warnings
from typing import Any, Dict, Mapping, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from .about import PLAIN
from .decoders import decode
from .graphs import Detector, Graph, traceable
from .onnx_model import open_session

#: Version of ONNX that files are written in, which runtimes have known long.
OPSET = 17
#: Largest difference of an output, in units of its largest number, that
#: rounding explains.
TOLERANCE = 1e-4
#: Share of boxes that a decoder must find. Where scores are equal but for
#: rounding, as of a head that is certain of many boxes, another may be kept.
AGREEMENT = 0.9
#: Protocol buffers, which ONNX files are, hold no more bytes.
MAX_BYTES = 2**31 - 1

Shape = Tuple[int, ...]


def takes(graph: Graph, shape: Shape) -> bool:
    """Whether a model reads images of a shape at all."""
    try:
        graph(*example(graph, shape))
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def example(graph: Graph, shape: Shape, seed: int = 0) -> Tuple[Tensor, ...]:
    """Noise as inputs of a graph."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(shape, generator=generator)
    if len(graph.inputs) == 1:
        return (images, )
    return images, images.new_tensor(shape[2:]).expand(shape[0], 2).clone()


def trace(graph: Graph, shape: Shape, any_size: bool) -> bytes:
    """The graph as an ONNX file for any number of images.

    Args:
        graph (Graph): In eval mode.
        shape (tuple[int]): Of the images that are traced, (B, 3, H, W).
        any_size (bool): Whether sizes are free, too.

    Raises:
        ValueError: If a part of the model does not go into a graph.
    """
    axes = graph.dynamic_axes()
    if not any_size:
        axes = {name: {0: own[0]} for name, own in axes.items()}
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), traceable(graph):
            warnings.simplefilter('ignore')  # every size is a warning
            torch.onnx.export(
                graph,
                example(graph, shape),
                file,
                input_names=graph.inputs,
                output_names=graph.names,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False)
    except (AttributeError, ImportError, RuntimeError, TypeError,
            ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f'The {type(graph.model).__name__} does not go into a graph'
            f'{_where(error)}: {said}') from error
    return file.getvalue()


def _where(error: Exception) -> str:
    """The class of the innermost part of the model that failed."""
    place, name = error.__traceback__, ''
    while place is not None:
        part = place.tb_frame.f_locals.get('self')
        if isinstance(part, torch.nn.Module):
            name = type(part).__name__
        place = place.tb_next
    return f' because of its {name}' if name else ''


def with_metadata(content: bytes,
                  about: Mapping[str, Any]) -> Tuple[bytes, int]:
    """The file with metadata in it, checked, and its opset.

    Raises:
        ValueError: If the exporter did not write the opset asked for, left
            weights beside the file, or the file is too large for one.
    """
    import onnx
    model = onnx.load_from_string(content)
    opsets = {each.domain: each.version for each in model.opset_import}
    if opsets.get('') != OPSET:
        raise ValueError(f'The exporter wrote opset {opsets.get("")} where '
                         f'{OPSET} was asked for; use another version of '
                         'torch.')
    onnx.helper.set_model_props(
        model, {
            key: value if key in PLAIN else json.dumps(value)
            for key, value in about.items()
        })
    if model.ByteSize() > MAX_BYTES:
        raise ValueError(
            f'The model has {model.ByteSize() / 2**30:.1f} GiB, and one ONNX '
            'file holds 2; export a smaller one.')
    outside = [
        each.name for each in model.graph.initializer
        if each.data_location == onnx.TensorProto.EXTERNAL
    ]
    if outside:
        raise ValueError(f'The exporter left {len(outside)} weights beside '
                         'the file; use another version of torch.')
    onnx.checker.check_model(model)
    return model.SerializeToString(), opsets['']


def compare(graph: Graph, content: bytes,
            shapes: Sequence[Shape]) -> Dict[str, float]:
    """Largest differences from PyTorch, by the shape of the images.

    Args:
        graph (Graph): In eval mode.
        content (bytes): The file.
        shapes (Sequence[tuple[int]]): Shapes of images, (B, 3, H, W).

    Returns:
        dict[str, float]: In units of the largest number of an output; of a
        graph that ends in boxes the share of others.

    Raises:
        ValueError: If one is larger than rounding explains, or a decoder
            finds other boxes than the detector.
    """
    session = open_session(content)
    differences = {}
    for index, shape in enumerate(shapes):
        inputs = example(graph, shape, seed=index)
        expected = graph(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected, )
        what = ' x '.join(map(str, shape))
        try:
            found = session.run(
                graph.names,
                {k: v.numpy()
                 for k, v in zip(graph.inputs, inputs)})
        except Exception as error:  # of classes that onnxruntime hides
            raise ValueError(
                f'The exported graph fails on images of {what}: '
                f'{str(error).splitlines()[0]}') from error
        expected = [each.numpy() for each in expected]
        differences[what] = _difference(graph.names, expected, found, what)
        if type(graph) is Detector:
            compare_boxes(graph, expected, shape)
    return differences


def _difference(names: Sequence[str], expected: Sequence[np.ndarray],
                found: Sequence[np.ndarray], what: str) -> float:
    """The largest relative difference, or the share of other boxes."""
    if not all(np.isfinite(each).all() for each in expected):
        raise ValueError('The outputs of the model are not finite, so they '
                         'cannot be compared; check its weights.')
    wrong = f'On images of {what} the exported graph gives '
    if 'bboxes' in names:
        images = zip(zip(*expected), zip(*found))
        share = min(
            agreement(*(_real(dict(zip(names, each))) for each in image))
            for image in images)
        if share < AGREEMENT:
            raise ValueError(f'{wrong}{1 - share:.0%} other boxes than '
                             'PyTorch; it was not saved.')
        return 1 - share
    gaps = []
    for name, ours, theirs in zip(names, expected, found):
        if ours.shape != theirs.shape:
            raise ValueError(f"{wrong}'{name}' of {theirs.shape} where "
                             f'PyTorch gives {ours.shape}; it was not saved.')
        largest = float(np.abs(ours).max(initial=0)) or 1.
        gaps.append(float(np.abs(ours - theirs).max(initial=0)) / largest)
        if not gaps[-1] <= TOLERANCE:
            raise ValueError(
                f"{wrong}'{name}' that differs from PyTorch's by "
                f'{gaps[-1]:.1e} of its largest number, more than '
                f'{TOLERANCE:.0e}; it was not saved.')
    return max(gaps)


def _real(found: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The boxes of an image without what fills up the batch."""
    return {name: each[found['labels'] >= 0] for name, each in found.items()}


def compare_boxes(graph: Detector, maps: Sequence[np.ndarray],
                  shape: Shape) -> None:
    """Decode the same maps as the detector does, down to a score of 0.

    Raises:
        ValueError: If its boxes are others.
    """
    size, scale = (shape[2] - 1, shape[3] - 3), (0.5, 0.75)
    cfg = graph.head.test_cfg.copy()
    cfg.score_thr = 0.
    meta = dict(img_shape=size, scale_factor=scale)
    levels = len(graph.about['decoder']['levels'])
    theirs = graph.head.predict_by_feat(
        *(list(map(torch.from_numpy, maps[start:start + levels]))
          for start in range(0, len(maps), levels)),
        batch_img_metas=[meta] * shape[0],
        cfg=cfg,
        rescale=True)
    ours = decode(
        dict(zip(graph.names, maps)),
        dict(graph.about['decoder'], score_thr=0.), [size] * shape[0],
        [scale] * shape[0])
    for mine, its in zip(ours, theirs):
        if agreement(mine, {k: v.numpy() for k, v in its.items()}) < AGREEMENT:
            raise ValueError(
                'The decoder finds other boxes than the '
                f'{type(graph.head).__name__}; it was not saved.')


def agreement(found: Dict[str, np.ndarray],
              expected: Dict[str, np.ndarray]) -> float:
    """Share of the boxes of two predictions that are in both.

    Args:
        found (dict[str, ndarray]): ``bboxes``, ``scores`` and ``labels``.
        expected (dict[str, ndarray]): The same.
    """
    total = max(len(found['labels']), len(expected['labels']))
    if not total:
        return 1.
    same = np.isclose(
        found['bboxes'][:, None], expected['bboxes'], rtol=1e-4,
        atol=1e-2).all(-1)
    same &= np.isclose(found['scores'][:, None], expected['scores'], atol=1e-4)
    same &= found['labels'][:, None] == expected['labels']
    return min(same.any(0).sum(), same.any(1).sum()) / total
