# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Any trunk with experts in the place of its MLPs."""

from typing import Dict, Optional, Sequence, Union

from torch import nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_is_config, check_width
from ..recompute import set_recompute, stop_checkpoints
from .ffn import Ffn, find_ffns
from .moe_layer import moe_layers
from .moe_mlp import MoEMlp
from .upcycling import Upcycling


@MODELS.register_module()
def to_moe(trunk: Union[dict, nn.Module],
           num_experts: int,
           k: int,
           ffns: Union[str, Sequence[str]] = 'auto',
           tasks: Optional[Sequence[str]] = None,
           task: Optional[str] = None,
           slices: Optional[int] = None,
           router: str = 'mlp',
           gate_scale: Union[float, str] = 'auto',
           dispatch: str = 'auto',
           perturb: float = 0.,
           seed: int = 0,
           from_trunk: Optional[bool] = None) -> nn.Module:
    """Turn the MLPs of any trunk into experts.

    The trunk stays what it is otherwise: its class, its names, its forward.
    It still loads the dense file of its kind, by its ``init_cfg`` or any
    other way: experts then start from slices of the MLPs' hidden units, see
    :class:`Upcycling`. Without weights they are drawn as dense layers are
    (truncated normal of 0.02), independently of each other.

    Gates are a router's probabilities as they are, not made to sum to one
    over the k chosen experts. While routers are near uniform they sum to
    k / E, and the MLPs' share of the trunk nearly vanishes. That is how MTHT
    trains from scratch; a trunk with weights would be lost.
    ``gate_scale='auto'`` multiplies gates by E / k, which keeps the
    magnitude: k experts with different slices then give what the dense MLP
    gave.

    Args:
        trunk (dict | nn.Module): Config of any registry backbone, or a
            backbone, which is changed in place.
        num_experts (int): E, in each layer.
        k (int): Experts per token.
        ffns (str | Sequence[str]): Which MLPs, see :func:`find_ffns`.
            Defaults to ``'auto'``, all of them.
        tasks (Sequence[str], optional): Tasks that get a router in each
            layer; one router for all when None.
        task (str, optional): The task that runs; the first when None.
        slices (int, optional): The hidden width of an expert is that of the
            MLP divided by it; ``k`` when None, so that k experts cost a token
            what the MLP did.
        router (str): Kind of routers, see :class:`Router`. Defaults to
            ``'mlp'``.
        gate_scale (float | str): What gates are multiplied by; E / k when
            ``'auto'``. Defaults to ``'auto'``.
        dispatch (str): See :class:`Experts`. Defaults to ``'auto'``.
        perturb (float): Noise of experts that start from a dense MLP, see
            :class:`Upcycling`. Defaults to 0.
        seed (int): Of the noise. Defaults to 0.
        from_trunk (bool, optional): Start from the weights that the trunk has
            now. When None, those of a ready backbone count, and those that
            timm's ``pretrained=True`` loads.

    Returns:
        nn.Module: The trunk.

    Raises:
        ValueError: If there is no MLP that can become experts, or the numbers
            do not fit; names the module.
    """
    slices = k if slices is None else slices
    _check_numbers(num_experts, k=k, slices=slices)
    ready = isinstance(trunk, nn.Module)
    if not ready:
        check_is_config(trunk, 'to_moe.trunk')
        ready = bool(trunk.get('pretrained'))
        trunk = MODELS.build(trunk)
    found = find_ffns(trunk, ffns)
    for ffn in found:
        _check_slices(trunk, ffn, slices)
    dense = {
        name: trunk.get_submodule(name)
        for ffn in found for name in (ffn.first, ffn.second)
    }
    layers: Dict[str, MoEMlp] = {}
    for ffn in found:
        first = dense[ffn.first]
        layer = MoEMlp(
            first.in_features,
            first.out_features // slices,
            num_experts,
            k,
            tasks,
            router,
            gate_scale,
            dispatch=dispatch)
        layer.experts.act = ffn.activation(trunk)
        layer.select_task(task)
        layers[ffn.first] = layer.to(first.weight).train(first.training)
    hook = Upcycling({f.first: f.second for f in found}, perturb, seed)
    if ready if from_trunk is None else from_trunk:
        hook.from_layers(layers, dense)
    for ffn in found:
        layer = layers[ffn.first]
        layer.requires_grad_(dense[ffn.first].weight.requires_grad)
        ffn.put(trunk, layer)
    trunk._register_load_state_dict_pre_hook(hook, with_module=True)
    if stop_checkpoints(trunk):
        # a reentrant one would hide routers from whoever records them
        recompute_blocks(trunk)
    return trunk


def recompute_blocks(trunk: nn.Module) -> None:
    """Keep only the inputs of the blocks with experts, and their like.

    Raises:
        ValueError: If there are no such blocks.
    """
    if not set_recompute(trunk, list(moe_layers(trunk)), True):
        raise ValueError(
            f'{type(trunk).__name__} has no repeated blocks around its '
            'experts to run again; leave out `with_cp`.')


def _check_numbers(num_experts: int, **counts: int) -> None:
    check_width(num_experts, 'num_experts')
    for name, count in counts.items():
        check_width(count, name)
        if count > num_experts:
            raise ValueError(
                f'`{name}` is {count}, but there are {num_experts} experts; '
                f'give 1 to {num_experts}, or more `num_experts`.')


def _check_slices(trunk: nn.Module, ffn: Ffn, slices: int) -> None:
    hidden = trunk.get_submodule(ffn.first).out_features
    if hidden % slices:
        raise ValueError(
            f"The {hidden} hidden units of '{ffn.first}' cannot be cut into "
            f'{slices} slices; give `slices` (or `k`) that divides them.')
