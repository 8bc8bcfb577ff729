# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import re
from typing import List, Optional, Sequence, Union

from mmpretrain.models.backbones import DaViT

from vim_mm.registry import MODELS
from ..moe.to_moe import to_moe
from ..recompute import set_recompute
from .davit_parts import RatesOnHost, repair

#: what MTHT chose for each size: number of experts, placement, drop path
_CHOSEN = {
    't': (64, 'all', .2),
    's': (32, 'all', .3),
    'b': (16, 'every_two', .4)
}
_PLACES = ('all', 'every_two', None)


@MODELS.register_module()
class MoEDaViT(DaViT):
    """DaViT with experts in the place of its MLPs (MTHT), or its dense twin.

    A layer is a spatial and a channel block, whose MLPs become experts with
    one router per task each; all else is shared. Maps of all four stages come
    out as they are, without a norm.

    It is mmpretrain's DaViT with the parts of the released network that
    mmpretrain has otherwise, see :mod:`.davit_parts`: with the same weights
    it gives what timm's gives, on images of any size. It loads files of
    mmpretrain's (``norm3`` is left out where no ``norm_cfg`` asks for it) and
    those that ``convert_trunk.py timm-davit`` makes; experts start from their
    MLPs then, see :func:`to_moe`.

    Args:
        arch (str | dict): ``'tiny'``, ``'small'`` or ``'base'``, or as in
            mmpretrain. Defaults to ``'tiny'``.
        tasks (Sequence[str], optional): Tasks that get a router in each
            layer; one router for all when None.
        task (str, optional): The task that runs; the first when None.
        num_experts (int, optional): E, in each layer; 64, 32 or 16 for the
            three sizes when None.
        k (int): Experts per token. An expert has 4C / k hidden units.
            Defaults to 4.
        moe (str, optional): ``'all'`` layers, ``'every_two'`` (every second
            layer of a stage, beginning with the first in odd and the second
            in even stages), or None: the dense twin. Defaults to ``'auto'``:
            ``'every_two'`` for Base, ``'all'`` for others.
        router, gate_scale, dispatch, perturb, seed: See :func:`to_moe`.
        drop_path_rate (float, optional): Stochastic depth; 0.2, 0.3 or 0.4
            for the three sizes when None, and 0.1 for others.
        pad_small_map (bool): Pad maps that are smaller than a window; they
            are refused otherwise. Defaults to True.
        norm_cfg (dict, optional): Norm of the maps. Defaults to None.
        out_indices (Sequence[int]): Stages whose maps come out. Defaults to
            all.
        with_cp (bool): Keep only the inputs of the layers for the backward
            pass, in which they run again. Defaults to False.
        init_cfg (dict | list, optional): mmengine init config. Defaults to
            that of the paper's code for dense layers.
        **kwargs: Arguments of :class:`mmpretrain.models.DaViT`.

    Raises:
        ValueError: If the numbers do not fit.
    """

    def __init__(self,
                 arch: Union[str, dict] = 'tiny',
                 tasks: Optional[Sequence[str]] = None,
                 task: Optional[str] = None,
                 num_experts: Optional[int] = None,
                 k: int = 4,
                 moe: Optional[str] = 'auto',
                 router: str = 'mlp',
                 gate_scale: Union[float, str] = 1.,
                 dispatch: str = 'auto',
                 perturb: float = 0.,
                 seed: int = 0,
                 drop_path_rate: Optional[float] = None,
                 in_channels: int = 3,
                 patch_size: int = 4,
                 pad_small_map: bool = True,
                 norm_cfg: Optional[dict] = None,
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 with_cp: bool = False,
                 init_cfg: Union[dict, list, None] = dict(
                     type='TruncNormal', layer='Linear', std=.02, bias=0.),
                 **kwargs) -> None:
        size = arch[0].lower() if isinstance(arch, str) else None
        chosen = _CHOSEN.get(size, (num_experts, 'all', .1))
        num_experts = num_experts or chosen[0]
        moe = chosen[1] if moe == 'auto' else moe
        if moe not in _PLACES:
            raise ValueError(f"`moe` is {moe!r}; give 'all', 'every_two' or "
                             'None.')
        if moe and not num_experts:
            raise ValueError('A MoEDaViT of a size of its own needs '
                             '`num_experts`, or `moe=None`.')
        with RatesOnHost():
            super().__init__(
                arch,
                patch_size=patch_size,
                in_channels=in_channels,
                drop_path_rate=chosen[2]
                if drop_path_rate is None else drop_path_rate,
                pad_small_map=pad_small_map,
                norm_cfg=norm_cfg,
                out_indices=out_indices,
                init_cfg=init_cfg,
                **kwargs)
        repair(self, in_channels, patch_size)
        self._register_load_state_dict_pre_hook(
            _keep_norms, with_module=True)
        layers = self._layers(moe)
        if moe and not layers:
            raise ValueError(f'`moe` is {moe!r}, which no layer of this '
                             '`arch` is; give depths, or `moe=None`.')
        if layers:
            to_moe(
                self,
                num_experts,
                k,
                [rf'{re.escape(name)}\..+\.ffn' for name in layers],
                tasks,
                task,
                router=router,
                gate_scale=gate_scale,
                dispatch=dispatch,
                perturb=perturb,
                seed=seed,
                from_trunk=False)
        if with_cp:
            set_recompute(self, self._layers('all'), True)

    def _layers(self, moe: Optional[str]) -> List[str]:
        """Names of the layers with experts."""
        return [
            f'stages.{stage}.blocks.{layer}'
            for stage, depth in enumerate(self.depths)
            for layer in range(depth)
            if moe == 'all' or moe and (stage + layer) % 2 == 0
        ]


def _keep_norms(trunk: DaViT, state_dict: dict, prefix: str, *_) -> None:
    """Hook before loading: norms of stages that did not come out are new.

    A file has the norms of the stages that came out when it was trained.
    """
    own = {
        f'{prefix}{key}': value
        for key, value in trunk.state_dict().items()
        if re.match(r'norm\d+\.', key)
    }
    if own.keys() & state_dict.keys():
        for key, value in own.items():
            state_dict.setdefault(key, value)
