# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Iterable, List, Optional, Sequence, Union

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_is_list
from vim_mm.utils.building import AUTO
from ..auto_channels import behind, unknown_channels
from ..fusion import FusionHolder, build_fusion
from ..layouts import as_tokens

Stream = Sequence[Tensor]


def resize_layer(channels: int, scale: float, norm_cfg: dict) -> nn.Module:
    """The pyramid step of ViM's segmentation head for one scale.

    Args:
        channels (int): Number of channels, kept.
        scale (float): 4 (two transposed convolutions with a norm and GELU
            between), 2 (one), 1 (nothing) or 0.5 (maximum pooling).
        norm_cfg (dict): Norm between the two convolutions of scale 4.

    Raises:
        ValueError: If the scale is another number.
    """
    if scale == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            build_norm_layer(norm_cfg, channels)[1], nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2))
    if scale == 2:
        return nn.ConvTranspose2d(channels, channels, 2, stride=2)
    if scale == 1:
        return nn.Identity()
    if scale == 0.5:
        return nn.MaxPool2d(2)
    raise ValueError(f'scale={scale} is not one of 4, 2, 1 and 0.5.')


@MODELS.register_module()
class ViMFusionNeck(FusionHolder, BaseModule):
    """Weigh the modules' streams, build a pyramid, run an ordinary neck.

    Input is what :class:`ViMBackbone` returns: one tuple of maps, or one such
    tuple per module. Every output level reads one or several of the trunk's
    levels, so a plain ViT, whose maps all have one stride, becomes a pyramid.

    Args:
        in_channels (Sequence[int] | str): Channels of the trunk's maps.
            'auto' takes them from the backbone where a whole model is built.
        scales (Sequence[float]): Up- or downsampling of every output level,
            of 4, 2, 1 and 0.5. ViM's segmentation head has (4, 2, 1, 0.5).
        sources (Sequence[Sequence[int]], optional): Indices of the trunk's
            levels that each output level reads, concatenated. By default
            level i reads map i.
        out_channels (int, optional): Width that a 1x1 convolution projects
            every level to before it is resized, which saves most of the cost
            of transposed convolutions. None keeps the trunk's width, as the
            paper does, and needs one source a level. Defaults to None.
        modules (Sequence[str]): Names of the streams, in the backbone's
            order; empty for a single stream. Defaults to empty.
        fusion (dict, optional): Config of the streams' weights, one row per
            trunk level. Defaults to ``dict(type='EnsMoE')``.
        task (str, optional): The fusion's task to run; its first when None.
        learn_tasks (Sequence[str], optional): The fusion's tasks that learn;
            the one to run when None.
        pre_norm_cfg (dict, optional): Norm of the trunk's maps, which are
            raw block outputs. Defaults to None.
        norm_cfg (dict): Norm inside scale 4. Defaults to ``dict(type='BN')``.
        inner_neck (dict, optional): Config of the neck that receives the
            pyramid, e.g. ``mmdet.FPN``; its ``in_channels`` may be 'auto'.
            Defaults to None.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        ValueError: If the levels do not fit each other.
    """

    no_fusion = 'this neck weighs no streams; name them in `modules`.'

    def __init__(self,
                 in_channels: Union[Sequence[int], str],
                 scales: Sequence[float] = (4, 2, 1, 0.5),
                 sources: Optional[Sequence[Sequence[int]]] = None,
                 out_channels: Optional[int] = None,
                 modules: Sequence[str] = (),
                 fusion: dict = dict(type='EnsMoE'),
                 task: Optional[str] = None,
                 learn_tasks: Optional[Sequence[str]] = None,
                 pre_norm_cfg: Optional[dict] = None,
                 norm_cfg: dict = dict(type='BN'),
                 inner_neck: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_channels == AUTO:
            raise ValueError(unknown_channels(type(self).__name__))
        check_is_list(modules, 'neck.modules')
        if sources is None:
            sources = [[i] for i in range(len(in_channels))]
        self._check(in_channels, scales, sources, out_channels)
        self.sources = [list(s) for s in sources]
        self.scales = list(scales)
        self.stream_names = list(modules)
        self._levels = {f'level{i}': c for i, c in enumerate(in_channels)}
        self.fusion = None
        if modules:
            self.fusion = build_fusion(fusion,
                                       dict.fromkeys(modules, self._levels))
            if self.fusion.merges:
                raise ValueError(
                    f'{type(self.fusion).__name__} merges parameters, but a '
                    'neck sees only feature maps; use EnsMoE here.')
        self.select_task(task)
        self.learn_tasks(learn_tasks)
        self.pre_norms = nn.ModuleList(
            nn.Identity() if pre_norm_cfg is None else build_norm_layer(
                pre_norm_cfg, c)[1] for c in in_channels)
        widths = [sum(in_channels[i] for i in s) for s in self.sources]
        self.projections = nn.ModuleList(
            nn.Identity() if out_channels is None else nn.
            Conv2d(width, out_channels, 1) for width in widths)
        self.resizes = nn.ModuleList(
            resize_layer(out_channels or width, scale, norm_cfg)
            for width, scale in zip(widths, scales))
        self.inner_neck = None
        if inner_neck is not None:
            with behind(self, inner_neck):
                self.inner_neck = MODELS.build(inner_neck)

    @staticmethod
    def _check(in_channels: Sequence[int], scales: Sequence[float],
               sources: Sequence[Sequence[int]],
               out_channels: Optional[int]) -> None:
        if len(scales) != len(sources):
            raise ValueError(
                f'ViMFusionNeck has {len(scales)} scales but {len(sources)} '
                'sources; give each output level one of both.')
        if out_channels is None and any(len(s) != 1 for s in sources):
            raise ValueError(
                'An output level reads several maps; set `out_channels` to '
                'the width they are projected to.')
        last = len(in_channels) - 1
        if any(not 0 <= i <= last for s in sources for i in s):
            raise ValueError(f'`sources` {sources} name a level beyond the '
                             f'{len(in_channels)} of `in_channels`.')

    def function_settings(self) -> Dict[str, dict]:
        """What changes its function, beside tensors."""
        return {'': dict(sources=self.sources, scales=self.scales)}

    def gates(self) -> Dict[str, Dict[str, float]]:
        """The weights of the streams: level to module to weight."""
        return self.fusion.named_gates(self.task)

    def add_task(self, task: str, modules: Sequence[str]) -> None:
        """Let one more task weigh streams; earlier tasks stay as they are.

        Args:
            task (str): Its name; :meth:`select_task` makes it run, and
                :meth:`learn_tasks` makes it learn.
            modules (Sequence[str]): The modules it knows. Those that joined
                the bank since are new streams, in the bank's order.

        Raises:
            ValueError: If the name is taken, or the neck weighs no streams.
        """
        if self.fusion is None:
            raise ValueError(f"Task '{task}' needs streams to weigh; name "
                             'them in `modules` of the neck.')
        self.fusion.add_task(task, dict.fromkeys(modules, self._levels))
        self.stream_names += [
            name for name in modules if name not in self.stream_names
        ]

    def fuse(self, streams: Union[Stream, Sequence[Stream]]) -> List[Tensor]:
        """Weigh the streams into one list of features, one per trunk level.

        Args:
            streams: K tuples of maps (B, C_l, H_l, W_l), tokens (B, L, C_l)
                or vectors (B, C_l), or one such tuple.

        Returns:
            list[Tensor]: ``sum_k g[l, k] * streams[k][l]`` for each level l;
            a router reads the mean of the streams of that level. What the
            weights lack to one is that of the bare trunk, where the streams
            know its features, so that a weight is a module's strength as it
            is in the trunk.

        Raises:
            ValueError: If the streams or levels are not as declared, or a
                task that does not learn runs in training.
        """
        read_trunk = getattr(streams, 'read_trunk', None)
        if isinstance(streams[0], Tensor):
            streams = [streams]
        expected = max(1, len(self.stream_names))
        if len(streams) != expected:
            raise ValueError(
                f'ViMFusionNeck expects {expected} streams '
                f'({self.stream_names or "a single one"}), but the backbone '
                f'returned {len(streams)}; list its modules in the `modules` '
                'of the neck, in the same order.')
        self.check_streams(getattr(streams, 'names', None))
        if len(streams[0]) != len(self.pre_norms):
            raise ValueError(
                f'The backbone returned {len(streams[0])} levels, but '
                f'`in_channels` of ViMFusionNeck names '
                f'{len(self.pre_norms)}.')
        if self.fusion is None:
            return list(streams[0])
        # a task keeps to the modules it knows, whatever joined later
        known = self.fusion.task_modules[self.task]
        unread = [
            level for name, stream in zip(self.stream_names, streams)
            if name not in known for level in stream
        ]
        streams = [streams[self.stream_names.index(name)] for name in known]
        trunk = None
        if read_trunk is not None and not self.fusion.sums_to_one(self.task):
            trunk = read_trunk()
        if trunk is not None and self.fusion.is_off(self.task):
            unread += [level for stream in streams for level in stream]
            return self.with_idle(list(trunk), *unread)
        rows = self.fusion.rows(self.task)
        fused = []
        for level, maps in enumerate(map(torch.stack, zip(*streams))):
            read = maps
            if self.fusion.per_picture:
                read = as_tokens(maps.mean(dim=0))
            row = rows(level, read)
            picture = 'b' if row.dim() == 2 else ''
            total = torch.einsum(f'{picture}k,k{picture}...->{picture}...',
                                 row, maps)
            if trunk is not None:
                total = total + torch.einsum(
                    f'{picture},{picture}...->{picture}...',
                    1 - row.sum(dim=-1), trunk[level])
            fused.append(total)
        return self.with_idle(fused, *unread)

    def check_streams(self, names: Optional[Sequence[str]]) -> None:
        """Refuse streams of other modules, or in another order.

        Args:
            names (Sequence[str], optional): Whose streams arrive, if known.

        Raises:
            ValueError: If they are not those that are weighed.
        """
        if self.stream_names and names and list(names) != self.stream_names:
            raise ValueError(
                f'ViMFusionNeck weighs the streams of {self.stream_names}, '
                f'but the backbone returns those of {list(names)}; list the '
                'same `modules` in both, in the same order.')

    def forward(self, streams: Union[Stream, Sequence[Stream]]) -> tuple:
        """Return the pyramid, or what the inner neck makes of it."""
        levels = self.with_idle(self._pyramid(streams))
        if self.inner_neck is None:
            return levels
        return self.with_idle(self.inner_neck(levels))

    @torch.no_grad()
    def fit(self, features: Iterable[Union[Stream, Sequence[Stream]]]) -> None:
        """Let an inner neck that standardises measure its levels.

        Args:
            features: One entry per batch, each as for :meth:`forward`.
        """
        if hasattr(self.inner_neck, 'fit'):
            self.inner_neck.fit(self._pyramid(batch) for batch in features)

    def _pyramid(self, streams: Union[Stream, Sequence[Stream]]) -> tuple:
        maps = self.with_idle(
            [norm(x) for norm, x in zip(self.pre_norms, self.fuse(streams))])
        levels = []
        for source, project, resize in zip(self.sources, self.projections,
                                           self.resizes):
            x = torch.cat([maps[i] for i in source], dim=1)
            levels.append(resize(project(x)))
        return tuple(levels)
