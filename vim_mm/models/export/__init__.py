# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .decoders import decode
from .dense_heads import decoder_spec
from .graphs import Graph, graph_of, traceable
from .onnx_model import OnnxModel

__all__ = [
    'Graph', 'OnnxModel', 'decode', 'decoder_spec', 'graph_of', 'traceable'
]
