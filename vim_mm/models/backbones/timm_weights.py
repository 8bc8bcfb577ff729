# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of timm's own models, for backbones that wrap timm."""

from contextlib import contextmanager
from typing import Dict, Iterator, List, Mapping, Optional
from unittest import mock

from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.state_dicts import common_prefix
from .configs import innermost
from .hugging_face import published_names
from .weight_errors import said
from .weights import (Loaded, check_loaded, load_trunk_weights, read_weights,
                      strip, watched)

#: timm itself takes RADIO's tower out of its whole model.
_FOUND_BY_TIMM = 'radio_model.'


def wraps_timm(cfg: dict) -> bool:
    """Whether a config is that of mmpretrain's or mmseg's TIMMBackbone."""
    kind = MODELS.get(cfg['type']) if isinstance(cfg.get('type'),
                                                 str) else cfg.get('type')
    return getattr(kind, '__name__', '') == 'TIMMBackbone'


def build_timm(cfg: dict, checkpoint: str, prefix: Optional[str]) -> nn.Module:
    """Build a TIMMBackbone with a file that timm itself would load.

    timm does the work while it builds its model: it converts what others
    published, resizes position embeddings and renames for ``features_only``.
    A file of the backbone's own names is loaded as such.

    Args:
        cfg (dict): Config of the backbone, without weights.
        checkpoint (str): Path or URL of the weights.
        prefix (str, optional): Prefix of timm's names in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a learned tensor is missing or has another shape.
    """
    loading = _Loading(checkpoint, prefix)
    with loading.instead_of_timm():
        trunk = MODELS.build(dict(cfg, pretrained=True))
    own = trunk.state_dict()
    if common_prefix(loading.state, own) is not None:
        load_trunk_weights(trunk, checkpoint, prefix, cfg)
        return trunk
    if loading.error:
        name = innermost(cfg).get('model_name')
        # ours say what mends them
        mend = '' if isinstance(loading.error, ValueError) else (
            ' Name the model that they belong to in '
            '`model.backbone.trunk.model_name`.')
        raise ValueError(
            f"The weights '{checkpoint}' cannot be loaded into timm's {name}: "
            f'{said(loading.error)}.{mend}') from loading.error
    check_loaded(trunk, loading.of(trunk), checkpoint, cfg)
    return trunk


class _Loading:
    """One file on its way through timm."""

    def __init__(self, checkpoint: str, prefix: Optional[str]) -> None:
        self.state = read_weights(checkpoint)
        self.error: Optional[Exception] = None
        self._missing: List[Tensor] = []
        self._unexpected: List[str] = []
        self._prefix = prefix

    @contextmanager
    def instead_of_timm(self) -> Iterator[None]:
        """Within this context a model that timm builds gets this file."""
        from timm.models import _builder
        self._load_pretrained = _builder.load_pretrained
        with mock.patch.object(_builder, 'load_pretrained', self._load):
            yield

    def _load(self,
              model: nn.Module,
              pretrained_cfg: Optional[dict] = None,
              *args,
              **kwargs) -> None:
        """In the place of timm's ``load_pretrained``; heads are dropped."""
        kwargs.update(num_classes=None, strict=False)
        own = model.state_dict()
        try:
            state = self.state
            if self._prefix:
                state = strip(state, own, self._prefix)
            state, beside = published_names(state)
            if not any(key.startswith(_FOUND_BY_TIMM) for key in state):
                state = strip(state, own, None)
            state = _without_zero_biases(state, own)
            cfg = dict(pretrained_cfg or {}, source='', state_dict=state)
            with watched(model) as loaded:
                self._load_pretrained(model, cfg, **kwargs)
        except Exception as error:  # each of timm's filters may raise its own
            self.error = error
            return
        own = dict(model.named_parameters())
        own.update(model.named_buffers())
        self._missing = [own[key] for key in loaded.missing if key in own]
        self._unexpected = beside + loaded.unexpected

    def of(self, trunk: nn.Module) -> Loaded:
        """What became of the tensors that the trunk took of the model."""
        lacking = set(map(id, self._missing))
        tensors = [*trunk.named_parameters(), *trunk.named_buffers()]
        missing = [key for key, tensor in tensors if id(tensor) in lacking]
        return Loaded(missing, self._unexpected)


def _without_zero_biases(state: Dict[str, Tensor],
                         own: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """DINOv3's own file without the biases that its timm model leaves out.

    Biases of queries and values that are all zero need no parameters, and
    timm has a model without; it would leave out others as well.

    Raises:
        ValueError: If they are not zero.
    """
    if 'storage_tokens' not in state or any(
            key.endswith('attn.q_bias') for key in own):
        return state
    biases = [key for key in state if key.endswith('attn.qkv.bias')]
    for key in biases:
        queries, _, values = state[key].chunk(3)  # that of keys is masked
        if queries.any() or values.any():
            raise ValueError(
                f"its '{key}' is not zero, and this model has no biases "
                "there: its twin whose name has '_qkvb' does")
    return {key: state[key] for key in state if key not in biases}
