# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Wrappers around models."""

from mmengine.model import BaseModel, is_model_wrapper


def unwrap(model: BaseModel) -> BaseModel:
    """The model itself, without a data-parallel wrapper."""
    return model.module if is_model_wrapper(model) else model
