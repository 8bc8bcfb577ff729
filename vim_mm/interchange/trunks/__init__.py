# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Published trunk weights as safetensors files of bare mm* backbones.

One file a family says how its tensors are named and read; ``convert.py`` is
the way through all of them.
"""

from .convert import FAMILIES, convert_trunk
from .family import Family
from .sources import ConversionError

__all__ = ['FAMILIES', 'ConversionError', 'Family', 'convert_trunk']
