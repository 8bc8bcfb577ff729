# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a training step of a config keeps in memory, without a GPU.

    python benchmarks/memory.py configs/vim/midstream_coco.py \\
        --size 800 1216 --batch 2 --amp

Random weights, noise images with one object, the loss of one and of
``--batch`` images. Printed are the gigabytes of the model and those that
autograd keeps for the backward pass, every storage once, with ``--amp`` in
bfloat16, as large as float16; it also keeps weights in this precision. On a
GPU come gradients and optimizer states of what learns, the largest temporary
tensors, cuDNN's workspace and some 0.5 GB for CUDA itself.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from typing import Dict, List, Sequence

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from vim_mm.models import build_model
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import add_cfg_options, read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Memory of a training step')
    parser.add_argument('config')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(224, 224),
        metavar=('HEIGHT', 'WIDTH'), help='of the images, in pixels')
    parser.add_argument(
        '--batch', type=int, default=2, help='images a GPU, 2 or more')
    parser.add_argument('--amp', action='store_true')
    add_cfg_options(parser)
    return parser.parse_args()


def build(cfg: Config) -> BaseModel:
    """The model with random weights, and a module for each that it fuses."""
    backbone = cfg.model.backbone
    backbone.get('trunk', backbone).pop('init_cfg', None)
    names = backbone.pop('modules', [])
    fusion = backbone.pop('fusion', None)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = build_model(cfg)
    for name in names:
        model.backbone.add(name, dict(type='vim_mm.ConvPass'))
        model.backbone.bank.members[name].requires_grad_(False)
    if fusion:
        model.backbone.set_fusion(fusion)
    return model.train()


def batch(model: BaseModel, size: Sequence[int], num: int) -> dict:
    """Pictures of noise, annotated."""
    pictures = [
        torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(num)
    ]
    return dict(inputs=pictures, data_samples=samples(model, size, num))


def samples(model: BaseModel, size: Sequence[int],
            num: int) -> List[BaseDataElement]:
    """One object an image, as the model's kind of task annotates it."""
    height, width = size
    box = torch.tensor([[0., 0., width / 2, height / 2]])
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, :height // 2, :width // 2] = 1
    if hasattr(model, 'roi_head') or hasattr(model, 'bbox_head'):
        objects = InstanceData(
            bboxes=box,
            labels=torch.tensor([0]),
            masks=BitmapMasks(mask.numpy(), height, width))
        found = [
            DetDataSample(gt_instances=objects, ignored_instances=objects[:0])
            for _ in range(num)
        ]
    elif hasattr(model, 'decode_head'):
        labels = PixelData(data=mask.long())
        found = [SegDataSample(gt_sem_seg=labels) for _ in range(num)]
    else:
        found = [DataSample().set_gt_label(0) for _ in range(num)]
    for sample in found:
        sample.set_metainfo(
            dict(
                img_shape=tuple(size),
                ori_shape=tuple(size),
                scale_factor=(1., 1.)))
    return found


def kept_for_backward(model: BaseModel, data: dict, amp: bool) -> int:
    """Bytes that autograd keeps of one loss, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: Dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # lives on with the graph: no address is used twice

    data = model.data_preprocessor(data, training=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), \
            torch.autocast('cpu', torch.bfloat16, enabled=amp):
        losses, _ = model.parse_losses(model(**data, mode='loss'))
        total = sum(kept.values())
    del losses
    return total


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    if args.batch < 2:
        raise ValueError(f'--batch {args.batch} does not tell what an image '
                         'adds; give 2 or more.')
    cfg = read_config(args.config, args.cfg_options)
    # where the runner finds it, too
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    if (cfg.model.data_preprocessor or {}).get('size'):
        cfg.model.data_preprocessor.size = tuple(args.size)
    torch.manual_seed(0)
    model = build(cfg)
    kept = [
        kept_for_backward(model, batch(model, args.size, num), args.amp) / 1e9
        for num in (1, args.batch)
    ]
    weights = sum(p.nbytes for p in model.parameters()) / 1e9
    each = (kept[1] - kept[0]) / (args.batch - 1)
    print(f'{args.config}: {weights + kept[1]:.2f} GB for {args.batch} '
          f'images of {args.size[0]} x {args.size[1]}: weights '
          f'{weights:.2f}, kept for the backward pass {kept[0] - each:.2f} '
          f'and {each:.3f} an image')


if __name__ == '__main__':
    run_cli(main)
