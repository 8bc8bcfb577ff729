# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Everything that may change what a backbone runs."""

from copy import deepcopy
from pathlib import Path
from typing import Callable, Dict

import torch
from torch import Tensor, nn

from _tiny import TWO_TASKS, add_modules, build_backbone, fill, save_trunk
from vim_mm.apis.sharing import share
from vim_mm.models.backbones import ViMBackbone
from vim_mm.zoo import save_module

Event = Callable[[ViMBackbone, Path], None]
EVENTS: Dict[str, Event] = {}
SLOT = 'layers.1.attn'


def event(function: Event) -> Event:
    EVENTS[function.__name__] = function
    return function


def backbone_of(folder: Path) -> ViMBackbone:
    """Two frozen modules and one that learns, under two tasks."""
    torch.manual_seed(0)
    backbone = build_backbone(save_trunk(folder / 'trunk.pth'))
    add_modules(backbone, 'a', 'b', drop_rate=0.3)
    add_modules(backbone, 'c', trainable=True)
    backbone.set_fusion(dict(type='EnsMoE', tasks=TWO_TASKS))
    fill(backbone.fusion, 1.)
    return backbone


def members(backbone: ViMBackbone, name: str) -> nn.Module:
    return backbone.bank.members[name]


@event
def add(backbone, folder):
    add_modules(backbone, 'd')
    tasks = dict(TWO_TASKS, x=['a', 'd'])
    backbone.set_fusion(dict(type='EnsMoE', tasks=tasks))


@event
def remove(backbone, folder):
    backbone.set_fusion(dict(type='EnsMoE', tasks=dict(x=['a'], y=['a'])))
    backbone.bank.remove('b')


@event
def replace(backbone, folder):
    backbone.bank.remove('b')
    add_modules(backbone, 'b', std=0.4)


@event
def load_modules(backbone, folder):
    if not (folder / 'zoo').exists():
        save_module(backbone, 'a', str(folder / 'zoo'))
    backbone.bank.remove('a')
    fill(members(backbone, 'b'), seed=3)
    backbone.load_modules(str(folder / 'zoo'), ['a'], trainable=True)


@event
def set_fusion(backbone, folder):
    backbone.set_fusion(
        dict(type='FixedFusion', tasks=TWO_TASKS, weights=dict(b=2.)))


@event
def merge(backbone, folder):
    tasks = dict(x=['a', 'b'], y=['b', 'a'])
    backbone.set_fusion(dict(type='ParameterMerge', tasks=tasks))


@event
def add_task(backbone, folder):
    backbone.add_task('z', ['c', 'a'])
    backbone.select_task('z')
    backbone.learn_tasks(['z'])


@event
def select_task(backbone, folder):
    backbone.select_task('y')


@event
def learn_tasks(backbone, folder):
    backbone.learn_tasks(['x', 'y'])
    backbone.select_task('y')


@event
def learn_tasks_of_the_fusion(backbone, folder):
    backbone.fusion.learn_tasks(['y'])
    backbone.fusion.select('y')


@event
def learn_nothing(backbone, folder):
    backbone.learn_tasks([])


@event
def set_logits(backbone, folder):
    backbone.fusion.set_logits('x', torch.tensor([2., -1.]))


@event
def requires_grad_on_the_backbone(backbone, folder):
    backbone.requires_grad_(True)


@event
def requires_grad_on_the_bank(backbone, folder):
    backbone.bank.requires_grad_(True)


@event
def requires_grad_on_a_module(backbone, folder):
    members(backbone, 'a').requires_grad_(True)


@event
def requires_grad_on_a_parameter(backbone, folder):
    backbone.bank.adapter('b', SLOT).up.bias.requires_grad_(True)


@event
def requires_grad_on_logits(backbone, folder):
    backbone.fusion.logits['y'].requires_grad_(True)
    backbone.fusion.select('y')


@event
def freeze_logits(backbone, folder):
    backbone.fusion.logits['x'].requires_grad_(False)


@event
def freeze_the_bank(backbone, folder):
    backbone.bank.requires_grad_(False)


@event
def freeze_and_thaw(backbone, folder):
    backbone.bank.requires_grad_(False)
    with torch.no_grad():
        backbone(torch.zeros(1, 3, 56, 56))
    backbone(torch.zeros(1, 3, 56, 56))
    members(backbone, 'c').requires_grad_(True)
    backbone.select_task('y')
    backbone.learn_tasks(['y'])


@event
def thaw_the_trunk(backbone, folder):
    backbone.trunk.requires_grad_(True)


@event
def train_a_module_alone(backbone, folder):
    members(backbone, 'a').train()


@event
def fill_in_place(backbone, folder):
    fill(backbone.bank, 0.3, seed=7)


@event
def exchange_data(backbone, folder):
    for param in members(backbone, 'a').parameters():
        param.data = torch.full_like(param, 0.1)


@event
def vector_to_parameters(backbone, folder):
    params = list(members(backbone, 'b').parameters())
    vector = nn.utils.parameters_to_vector(params)
    nn.utils.vector_to_parameters(vector * 1.5, params)


@event
def new_parameters(backbone, folder):
    layer = backbone.bank.adapter('a', SLOT).up
    layer.weight = nn.Parameter(layer.weight + 1, requires_grad=False)


@event
def new_trunk_weights(backbone, folder):
    layer = backbone.trunk.layers[0].attn.qkv
    layer.weight = nn.Parameter(layer.weight * 1.5, requires_grad=False)


@event
def change_trunk_in_place(backbone, folder):
    with torch.no_grad():
        backbone.trunk.layers[0].attn.qkv.weight.mul_(1.5)


@event
def new_logits(backbone, folder):
    logits = backbone.fusion.logits['x']
    backbone.fusion.logits['x'] = nn.Parameter(logits.detach() * -1)


def _state(backbone: ViMBackbone) -> Dict[str, Tensor]:
    other = deepcopy(backbone)
    fill(other.bank, 0.1, seed=4)
    fill(other.fusion, 0.5, seed=5)
    return other.state_dict()


@event
def load_state_dict(backbone, folder):
    backbone.load_state_dict(_state(backbone))


@event
def load_state_dict_and_assign(backbone, folder):
    backbone.load_state_dict(_state(backbone), assign=True)


@event
def load_state_dict_of_a_module(backbone, folder):
    state = members(backbone, 'a').state_dict()
    state = {key: value * 2 for key, value in state.items()}
    members(backbone, 'a').load_state_dict(state, assign=True)


@event
def load_state_dict_of_the_fusion(backbone, folder):
    state = backbone.fusion.state_dict()
    state['logits.x'] = state['logits.x'] * 2
    backbone.fusion.load_state_dict(state)


@event
def double(backbone, folder):
    backbone.double()


@event
def half_and_back(backbone, folder):
    backbone.half().float()


@event
def bfloat16_of_a_module(backbone, folder):
    members(backbone, 'a').bfloat16().float()


@event
def bfloat16_of_the_trunk(backbone, folder):
    backbone.trunk.bfloat16().float()


@event
def apply_to_tensors(backbone, folder):
    backbone._apply(lambda tensor: tensor * 1.)


@event
def share_with_another(backbone, folder):
    other = deepcopy(backbone)
    fill(members(other, 'b'), seed=9)
    share(backbone, other)
    with torch.no_grad():  # what is shared changes for both
        members(other, 'a').get_parameter('layers-0-attn.up.bias').add_(1.)


@event
def optimizer_step(backbone, folder):
    backbone.requires_grad_(True)
    for step in (torch.optim.SGD, torch.optim.AdamW):
        params = list(backbone.bank.parameters())
        optimizer = step(params, lr=0.1)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    backbone.requires_grad_(False)


@event
def fused_optimizer_step(backbone, folder):
    backbone.requires_grad_(True)
    params = [*backbone.bank.parameters(), *backbone.fusion.parameters()]
    for param in params:
        param.grad = torch.ones_like(param)
    torch.optim.AdamW(params, lr=0.1, fused=True).step()
    backbone.zero_grad()
    backbone.requires_grad_(False)
