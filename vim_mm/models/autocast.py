# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Frozen weights under autocast: cast once instead of in every pass."""

from argparse import Namespace
from contextlib import nullcontext
from typing import ContextManager, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

#: layers whose weights autocast casts as they are
LAYERS = (nn.Linear, nn.Conv2d)
#: their forwards; mmcv's differ for empty tensors in old versions of torch
STOCK = {kind.forward for kind in (*LAYERS, wrappers.Linear, wrappers.Conv2d)}


def autocast_dtype(device: str) -> Optional[torch.dtype]:
    """The precision that autocast runs in on a type of device, if it does."""
    if device != 'meta' and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def is_cast(tensor: Tensor) -> bool:
    """Whether autocast takes a tensor; it leaves double precision alone."""
    return tensor.dtype != torch.float64


def exact(device: str) -> ContextManager:
    """A context without autocast on a type of device.

    Where there is none, it is no context at all, which leaves exporters a
    plain graph.
    """
    if autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device, enabled=False)


class CastOnce:
    """The forward of a layer that keeps what autocast makes of its weights.

    Autocast keeps casts only of weights that require gradients, and only
    within one context, so it would cast those of a frozen trunk in every
    pass. The outputs are bit-identical.

    Args:
        layer (nn.Module): One of :data:`LAYERS`.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._kept: Dict[torch.dtype, Tuple[tuple, tuple, list]] = {}
        self._traced = Namespace()

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output."""
        layer = self.layer
        dtype = autocast_dtype(x.device.type)
        weight, bias = layer.weight, layer.bias
        learns = weight.requires_grad or (bias is not None
                                          and bias.requires_grad)
        if dtype is not None and not learns and is_cast(weight):
            if torch.compiler.is_compiling():
                weight, bias = getattr(self._traced, self._trace(dtype))
            else:
                weight, bias = self._cast(dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        return layer._conv_forward(x, weight, bias)

    def _cast(self, dtype: torch.dtype) -> tuple:
        own = self.layer.weight, self.layer.bias
        state = tuple(_stamp(t) for t in own if t is not None)
        before, kept, _ = self._kept.get(dtype, (None, None, None))
        if state != before:
            with torch.inference_mode(False), torch.no_grad():
                kept = tuple(t if t is None else t.detach().to(dtype)
                             for t in own)
            # as long as they live no other storage gets the same number
            names = [StorageWeakRef(t.untyped_storage())
                     for t in own if t is not None]
            self._kept[dtype] = state, kept, names
        return kept

    @torch.compiler.assume_constant_result
    def _trace(self, dtype: torch.dtype) -> str:
        # a compiler takes the name for a constant, and looks at what it names
        name = str(dtype).replace('.', '_')
        setattr(self._traced, name, self._cast(dtype))
        return name

    def __getstate__(self) -> dict:
        return CastOnce(self.layer).__dict__


def _stamp(tensor: Tensor) -> tuple:
    """A value that differs once a tensor has changed.

    Its storage changes with ``.to()``, also where the new one lies in the
    memory of the old; its version with every copy.
    """
    version = 0 if tensor.is_inference() else tensor._version
    storage = tensor.untyped_storage()._cdata
    return id(tensor), storage, tensor.data_ptr(), version


def cast_once(trunk: nn.Module) -> None:
    """Let the layers of a frozen trunk keep their weights in low precision.

    Layers with a forward of their own (standardised weights, quantised ones,
    one that somebody has set) are left as they are.
    """
    for layer in trunk.modules():
        if (isinstance(layer, LAYERS) and type(layer).forward in STOCK
                and 'forward' not in vars(layer)):
            layer.forward = CastOnce(layer)
