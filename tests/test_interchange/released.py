# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A random checkpoint in the layout of ViM's release, and what it computes.

The forward pass is written from the published description in plain tensor
operations, one module after the other; nothing of vim_mm takes part.
"""

from typing import Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

DIMS, DEPTH, PATCH, GRID, JOINT = 128, 12, 8, 4, 32
HIDDEN, MODULES, CLASSES, FPN, HEAD = 4, 3, 5, 16, 8
SIZE = PATCH * GRID
CONVS = (1, 1, 2, 3)  # of each scale of Semantic FPN


def make_release(seed: int = 0) -> dict:
    """A checkpoint of random values, with a task of each kind."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int, std: float = 0.1, center: float = 0.) -> Tensor:
        return center + std * torch.randn(shape, generator=generator)

    def affine(name: str, *shape: int, out: int = None) -> Dict[str, Tensor]:
        return {
            f'{name}.weight': rand(*shape),
            f'{name}.bias': rand(out or shape[0])
        }

    def norm(name: str, dims: int) -> Dict[str, Tensor]:
        return {
            f'{name}.weight': rand(dims, center=1.),
            f'{name}.bias': rand(dims)
        }

    def batch_norm(name: str, dims: int) -> Dict[str, Tensor]:
        return {
            **norm(name, dims), f'{name}.running_mean': rand(dims),
            f'{name}.running_var': rand(dims).abs() + 0.5,
            f'{name}.num_batches_tracked': torch.tensor(7)
        }

    def adapter() -> Dict[str, Tensor]:
        return {
            **affine('adapter_down', HIDDEN, DIMS),
            **affine('adapter_conv', HIDDEN, HIDDEN, 3, 3),
            **affine('adapter_up', DIMS, HIDDEN)
        }

    tower = {
        'class_embedding': rand(DIMS),
        'positional_embedding': rand(1 + GRID * GRID, DIMS),
        'proj': rand(DIMS, JOINT),
        'conv1.weight': rand(DIMS, 3, PATCH, PATCH),
        **norm('ln_pre', DIMS),
        **norm('ln_post', DIMS)
    }
    for i in range(DEPTH):
        block = f'transformer.resblocks.{i}.'
        tower.update({
            block + 'attn.in_proj_weight': rand(3 * DIMS, DIMS),
            block + 'attn.in_proj_bias': rand(3 * DIMS),
            **affine(block + 'attn.out_proj', DIMS, DIMS),
            **affine(block + 'mlp.c_fc', 4 * DIMS, DIMS),
            **affine(block + 'mlp.c_proj', DIMS, 4 * DIMS),
            **norm(block + 'ln_1', DIMS),
            **norm(block + 'ln_2', DIMS)
        })
    seg = {
        **affine('pre_fpn.0.0', DIMS, DIMS, 2, 2),
        **batch_norm('pre_fpn.0.1', DIMS),
        **affine('pre_fpn.0.3', DIMS, DIMS, 2, 2),
        **affine('pre_fpn.1', DIMS, DIMS, 2, 2)
    }
    for i, convs in enumerate(CONVS):
        seg.update(affine(f'fpn_neck.lateral_convs.{i}.conv', FPN, DIMS, 1, 1))
        seg.update(affine(f'fpn_neck.fpn_convs.{i}.conv', FPN, FPN, 3, 3))
        for j in range(convs):
            # an upsampling, which has no tensors, follows each convolution
            name = f'fpn_head.scale_heads.{i}.{2 * j}'
            seg[f'{name}.conv.weight'] = rand(HEAD, HEAD if j else FPN, 3, 3)
            seg.update(batch_norm(f'{name}.bn', HEAD))
    seg.update(affine('fpn_head.conv_seg', CLASSES, HEAD, 1, 1))
    tasks = ['cls-birds', 'seg-voc']
    return dict(
        meta_info=dict(
            task_list=tasks,
            backbone_arch='vit_b16_224',
            ViM_agg_algo='Ens-MoE',
            label_map={'seg-voc': [f'thing {i}' for i in range(CLASSES)]}),
        backbone_weights=tower,
        ViM_weights=[{
            f'vim_{branch}_weights': [adapter() for _ in range(MODULES)]
            for branch in ('att', 'mlp')
        } for _ in range(DEPTH)],
        ViM_agg_weights={
            task: [{
                f'vim_{branch}_agg': rand(MODULES, std=1.)
                for branch in ('att', 'mlp')
            } for _ in range(DEPTH)]
            for task in tasks
        },
        head_weights={
            'cls-birds': affine('classifier', CLASSES, JOINT),
            'seg-voc': seg
        })


def linear(x: Tensor, state: Dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def run_adapter(x: Tensor, state: Dict[str, Tensor]) -> Tensor:
    """One adapter on tokens (B, 1 + P, d), the class token first."""
    u = quick_gelu(linear(x, state, 'adapter_down'))
    kernel, bias = state['adapter_conv.weight'], state['adapter_conv.bias']
    patches = u[:, 1:].mT.unflatten(2, (GRID, GRID))
    patches = F.conv2d(patches, kernel, bias, padding=1).flatten(2).mT
    cls = F.conv2d(u[:, 0, :, None, None], kernel, bias, padding=1)
    v = torch.cat([cls.flatten(1)[:, None], patches], dim=1)
    return linear(quick_gelu(v), state, 'adapter_up')


def run_branch(x: Tensor, content: dict, task: str, layer: int,
               branch: str) -> Tensor:
    """Every module in turn, weighed by the softmax of the task's logits."""
    logits = content['ViM_agg_weights'][task][layer][f'vim_{branch}_agg']
    states = content['ViM_weights'][layer][f'vim_{branch}_weights']
    gates = logits.exp() / logits.exp().sum()
    return sum(gate * run_adapter(x, state)
               for gate, state in zip(gates, states))


def run_blocks(content: dict, x: Tensor, task: str) -> List[Tensor]:
    """Tokens (B, 1 + P, d) after every block."""
    w = content['backbone_weights']

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIMS, ), w[f'{name}.weight'],
                            w[f'{name}.bias'])

    x = F.conv2d(x, w['conv1.weight'], stride=PATCH).flatten(2).mT
    x = torch.cat([w['class_embedding'].expand(len(x), 1, DIMS), x], dim=1)
    x = norm(x + w['positional_embedding'], 'ln_pre')
    outputs = []
    for i in range(DEPTH):
        name = f'transformer.resblocks.{i}.'
        n1 = norm(x, name + 'ln_1')
        qkv = n1 @ w[name + 'attn.in_proj_weight'].T
        q, k, v = (qkv + w[name + 'attn.in_proj_bias']).split(DIMS, dim=2)
        heads = [(q[..., h:h + 64] @ k[..., h:h + 64].mT / 8).softmax(-1)
                 @ v[..., h:h + 64] for h in range(0, DIMS, 64)]
        attention = linear(torch.cat(heads, 2), w, name + 'attn.out_proj')
        x = x + attention + run_branch(n1, content, task, i, 'att')
        n2 = norm(x, name + 'ln_2')
        hidden = quick_gelu(linear(n2, w, name + 'mlp.c_fc'))
        x = x + linear(hidden, w, name + 'mlp.c_proj') + run_branch(
            n2, content, task, i, 'mlp')
        outputs.append(x)
    return outputs


def run_cls(content: dict, x: Tensor, task: str) -> Tensor:
    """Scores of a classification task, (B, classes)."""
    w, head = content['backbone_weights'], content['head_weights'][task]
    x = run_blocks(content, x, task)[-1][:, 0]
    x = F.layer_norm(x, (DIMS, ), w['ln_post.weight'], w['ln_post.bias'])
    return linear(x @ w['proj'], head, 'classifier')


def run_maps(content: dict, x: Tensor, task: str) -> List[Tensor]:
    """Raw patch maps of blocks 3, 5, 7 and 11."""
    tokens = run_blocks(content, x, task)
    return [
        tokens[i][:, 1:].mT.unflatten(2, (GRID, GRID)) for i in (3, 5, 7, 11)
    ]


def run_seg(content: dict, x: Tensor, task: str) -> Tensor:
    """Logits of a segmentation task, a map of four times the grid's side."""
    w = content['head_weights'][task]

    def up(x: Tensor, name: str) -> Tensor:
        return F.conv_transpose2d(
            x, w[f'{name}.weight'], w[f'{name}.bias'], stride=2)

    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(
            x, w[f'{name}.weight'], w.get(f'{name}.bias'), padding=padding)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, w[f'{name}.running_mean'],
                            w[f'{name}.running_var'], w[f'{name}.weight'],
                            w[f'{name}.bias'])

    x4, x2, x1, x0 = run_maps(content, x, task)
    x4 = up(F.gelu(norm(up(x4, 'pre_fpn.0.0'), 'pre_fpn.0.1')), 'pre_fpn.0.3')
    levels = [x4, up(x2, 'pre_fpn.1'), x1, F.max_pool2d(x0, 2)]
    levels = [
        conv(x, f'fpn_neck.lateral_convs.{i}.conv', 0)
        for i, x in enumerate(levels)
    ]
    for i in (2, 1, 0):
        levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2)
    total = 0
    for i, x in enumerate(levels):
        x = conv(x, f'fpn_neck.fpn_convs.{i}.conv')
        for j in range(CONVS[i]):
            name = f'fpn_head.scale_heads.{i}.{2 * j}'
            x = F.relu(norm(conv(x, f'{name}.conv'), f'{name}.bn'))
            if i:
                x = F.interpolate(x, scale_factor=2, mode='bilinear')
        total = total + x
    return conv(total, 'fpn_head.conv_seg', 0)
