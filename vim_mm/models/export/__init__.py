# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from .decoders import decode
from .onnx_model import OnnxModel

# `graphs` and `boxes` need all libraries, and only those who export
__all__ = ['OnnxModel', 'decode']
