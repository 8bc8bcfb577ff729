# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Optional, Sequence, Union

from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_is_config
from ..moe.moe_attention import MoEAttention
from ..moe.to_moe import recompute_blocks, to_moe

#: Mod-Squad's sizes, by width, heads, and experts of attention
_SIZES = {'small': (384, 6, 15, 6), 'base': (768, 12, 24, 12)}
_MLP = dict(num_experts=16, k=4)


@MODELS.register_module()
class MoEVisionTransformer(VisionTransformer):
    """A vision transformer with experts in each block (Mod-Squad).

    Even blocks have attention experts and a dense MLP, odd ones a dense
    attention and MLP experts. It is mmpretrain's VisionTransformer otherwise.
    No dense file has anything for attention experts, so one loads but for
    them; see :func:`to_moe` for MLPs.

    Mod-Squad itself also adds a task's embedding to all tokens before each
    block, and runs all tasks on each image; here, as in MTHT, one pass is one
    task, which its routers alone tell.

    Args:
        arch (str | dict): ``'small'`` or ``'base'``, or as in mmpretrain.
            Defaults to ``'base'``.
        tasks (Sequence[str], optional): Tasks that get a router in each
            block; one router for all when None.
        task (str, optional): The task that runs; the first when None.
        attn (dict, optional): Attention experts: ``num_experts``, ``k`` and
            other arguments of :class:`MoEAttention`; the size's 15 and 6, or
            24 and 12, when None. False for none.
        mlp (dict, optional): MLP experts: ``num_experts``, ``k`` and other
            arguments of :func:`to_moe`; 16 and 4 when None. False for none.
        router (str): Kind of routers. Defaults to ``'linear'``.
        gate_scale (float | str): What gates are multiplied by, see
            :func:`to_moe`. Defaults to 1.
        out_type (str): As in mmpretrain. Defaults to ``'featmap'``.
        drop_path_rate (float): Stochastic depth. Defaults to 0.1.
        with_cp (bool): Keep only the inputs of the blocks for the backward
            pass, in which they run again. Defaults to False.
        **kwargs: Arguments of :class:`mmpretrain.models.VisionTransformer`.

    Raises:
        ValueError: If the numbers do not fit.
    """

    def __init__(self,
                 arch: Union[str, dict] = 'base',
                 tasks: Optional[Sequence[str]] = None,
                 task: Optional[str] = None,
                 attn: Union[dict, bool, None] = None,
                 mlp: Union[dict, bool, None] = None,
                 router: str = 'linear',
                 gate_scale: Union[float, str] = 1.,
                 out_type: str = 'featmap',
                 drop_path_rate: float = .1,
                 with_cp: bool = False,
                 **kwargs) -> None:
        if isinstance(arch, str) and arch in _SIZES:
            dims, heads, *experts = _SIZES[arch]
            arch = dict(
                embed_dims=dims,
                num_layers=12,
                num_heads=heads,
                feedforward_channels=4 * dims)
            attn = dict(zip(('num_experts', 'k'),
                            experts)) if attn is None else attn
            mlp = _MLP if mlp is None else mlp
        if attn is None or mlp is None:
            raise ValueError(
                f'A MoEVisionTransformer of {arch!r} needs `attn` and `mlp`, '
                'dicts of `num_experts` and `k`, or False for dense ones; or '
                f'give one of {list(_SIZES)} as `arch`.')
        _check_experts(attn=attn, mlp=mlp)
        super().__init__(
            arch, out_type=out_type, drop_path_rate=drop_path_rate, **kwargs)
        common = dict(tasks=tasks, router=router, gate_scale=gate_scale)
        if attn is not False:
            for layer in self.layers[::2]:
                layer.attn = _ExpertAttention(layer.attn,
                                              **dict(common, **attn))
                layer.attn.select_task(task)
        if mlp is not False:
            to_moe(
                self,
                ffns=[rf'layers\.{i}\.ffn'
                      for i in range(1, self.num_layers, 2)],
                task=task,
                from_trunk=False,
                **dict(common, **mlp))
        if with_cp:
            recompute_blocks(self)


def _check_experts(**settings: Union[dict, bool]) -> None:
    for name, experts in settings.items():
        if experts is False:
            continue
        check_is_config(experts, name)
        for key in ('num_experts', 'k'):
            if key not in experts:
                raise ValueError(f'`{name}` lacks `{key}`; give it, or '
                                 f'`{name}=False` for dense ones.')


class _ExpertAttention(MoEAttention):
    """Experts in the place of an attention, whose settings they keep.

    Args:
        dense (MultiheadAttention): That attention.
        **kwargs: Arguments of :class:`MoEAttention`.
    """

    def __init__(self, dense: MultiheadAttention, **kwargs) -> None:
        super().__init__(
            dense.embed_dims,
            2 * dense.head_dims,
            attn_drop=dense.attn_drop,
            kv_bias=dense.qkv.bias is not None,
            **kwargs)
        self.proj_drop, self.gamma1 = dense.proj_drop, dense.gamma1
        self.out_drop = dense.out_drop
        self.requires_grad_(dense.qkv.weight.requires_grad)
        self.train(dense.training)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, C) to tokens of the same shape."""
        return self.out_drop(self.gamma1(self.proj_drop(super().forward(x))))
