# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Train an upstream release, judge it, publish it, apply it to a folder."""

import os.path as osp
import time
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import mmcv
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor
from torch.utils.data import Dataset

from vim_mm.engine.loaders import build_dataset
from vim_mm.engine.runner import build_runner
from vim_mm.evaluation.leak import Report, leak_report, reconstruction_errors
from vim_mm.models.generators import (UpstreamCard, VQAutoEncoder, code_use,
                                      load_upstream_release, re_represent,
                                      save_upstream_release)
from vim_mm.models.generators.upstream_release import CARD
from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_positive
from vim_mm.utils.config import class_of, read_config
from vim_mm.utils.drafts import named
from vim_mm.utils.files import new_folder, sha256
from vim_mm.utils.manifest import (COPIES, MANIFEST, SUM, check_files,
                                   images_in, manifest_of, write_manifest)
from vim_mm.zoo.base_card import ZooError
from .release_checks import check_can_judge, check_images, load_whole

#: Data that a release's config must have.
PARTS = ('train_dataloader', 'held_out_dataloader')
BATCH = 32


def publish_upstream(cfg: Union[str, Config],
                     folder: Union[str, Path],
                     checkpoint: Optional[str] = None,
                     max_images: int = 2000) -> UpstreamCard:
    """Train a release's auto-encoder, write its leak report, publish it.

    Args:
        cfg (str | Config): A whole config: ``model`` (a
            :class:`VQAutoEncoder`), ``train_dataloader``,
            ``held_out_dataloader`` (images of the same source that it does
            not learn from; its pipeline gives images of one size), and
            ``release_card`` with ``name``, ``data`` and ``licence``.
        folder (str | Path): Folder to make.
        checkpoint (str, optional): What its training left, to publish without
            training. Defaults to None.
        max_images (int): Images of either kind in the report. Defaults to
            2000.

    Raises:
        ZooError: If the folder is there already, or the card is not valid.
        ValueError: If the config lacks something, or its images cannot be
            judged by.
        FileNotFoundError: If data or the checkpoint is not there.
    """
    cfg = read_config(cfg)
    fields = _card_fields(cfg, Path(folder))
    check_can_judge(cfg, folder, max_images, trains=checkpoint is None)
    cfg.launcher = 'none'
    runner = build_runner(cfg, PARTS)
    train, held_out = _datasets(cfg)
    check_images(runner.model, dict(zip(PARTS, (_learned(cfg), held_out))))
    start = time.perf_counter()
    if checkpoint is None:
        runner.train()
    else:
        load_whole(runner.model, checkpoint)
    seconds = time.perf_counter() - start
    model: VQAutoEncoder = runner.model.eval()
    num_read = [min(len(data), max_images) for data in (train, held_out)]
    print_log(
        f'Leak report: reading {num_read[0]} of {len(train)} training images '
        f'and {num_read[1]} of {len(held_out)} held-out ones.', 'current')
    metrics, leak = judge(model, load_images(model, train, max_images),
                          load_images(model, held_out, max_images))
    return save_upstream_release(
        model,
        folder,
        **fields,
        num_images=len(train),
        metrics=metrics,
        leak=leak,
        training=dict(
            config=osp.basename(cfg.filename or ''),
            iterations=runner.iter,
            seconds=round(seconds, 1)))


def _card_fields(cfg: Config, folder: Path) -> Dict[str, Any]:
    """Fields of the card that the config gives; refuses what cannot end well.

    Training takes long: what is wrong is said before it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZooError(f"'{folder}' is there already: name a new folder.")
    if class_of(cfg.model, MODELS) is not VQAutoEncoder:
        raise ValueError('An upstream release is made of a model of type '
                         f"'vim_mm.VQAutoEncoder', not {cfg.model.type!r}.")
    for part in PARTS:
        if 'dataset' not in (cfg.get(part) or {}):
            raise ValueError(f'The config has no `{part}` with a `dataset`; a '
                             'release is judged by images that it did not '
                             'learn from.')
    fields = cfg.get('release_card')
    if not isinstance(fields, dict) or set(fields) != {
            'name', 'data', 'licence'
    }:
        raise ValueError(f'The config has `release_card`={fields!r}; give a '
                         'dict with `name`, `data` (what the images are) and '
                         '`licence`.')
    UpstreamCard(**fields, num_images=1, architecture={})
    return dict(fields)


def _learned(cfg: Config) -> Dataset:
    """Training images, as the training sees them."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return build_dataset(cfg.train_dataloader.dataset)


def _datasets(cfg: Config) -> Tuple[Dataset, Dataset]:
    """Training and held-out images, both through the latter's pipeline.

    Images that went through different crops would be told apart by these.
    """
    held_out = cfg.held_out_dataloader.dataset
    train = _with_pipeline(cfg.train_dataloader.dataset, held_out.pipeline)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return build_dataset(train), build_dataset(held_out)


def _with_pipeline(dataset: dict, pipeline: list) -> dict:
    """The config of a data set, inside any wrappers, with this pipeline."""
    if 'dataset' in dataset:
        inner = _with_pipeline(dataset['dataset'], pipeline)
        return dict(dataset, dataset=inner)
    if 'datasets' in dataset:
        inner = [_with_pipeline(d, pipeline) for d in dataset['datasets']]
        return dict(dataset, datasets=inner)
    return dict(dataset, pipeline=pipeline)


def load_images(model: VQAutoEncoder, dataset: Dataset,
                limit: int) -> Tensor:
    """Images of a data set in random order, RGB in 0..1, on the CPU.

    Args:
        model (VQAutoEncoder): Its data preprocessor is used.
        dataset (Dataset): Whose pipeline gives images of one size.
        limit (int): How many at most.

    Raises:
        ValueError: If sizes differ.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(dataset), generator=generator)[:limit].tolist()
    loaded = [dataset[index]['inputs'] for index in order]
    sizes = sorted({tuple(image.shape[-2:]) for image in loaded})
    if len(sizes) > 1:
        raise ValueError(
            f'Images of {len(loaded)} come in {len(sizes)} sizes, such as '
            f'{sizes[0]} and {sizes[-1]}, which cannot be compared; let the '
            'pipeline of held_out_dataloader crop them to one.')
    return torch.cat([
        model.data_preprocessor(dict(inputs=loaded[i:i + BATCH]))
        ['inputs'].cpu() for i in range(0, len(loaded), BATCH)
    ])


@torch.no_grad()
def judge(model: VQAutoEncoder, train: Tensor,
          held_out: Tensor) -> Tuple[Report, Report]:
    """Metrics and leak report of a trained auto-encoder in eval mode.

    Args:
        model (VQAutoEncoder): The model.
        train (Tensor): Images that it learned from, as of
            :func:`load_images`.
        held_out (Tensor): Images that it did not.
    """
    decoded_train, counts = _decode(model, train)
    decoded_held_out, _ = _decode(model, held_out)
    metrics = {
        f'l1_{name}': float(reconstruction_errors(images, decoded).mean())
        for name, images, decoded in (('train', train, decoded_train),
                                      ('held_out', held_out,
                                       decoded_held_out))
    }
    metrics.update(
        {key: float(value)
         for key, value in code_use(counts).items()})
    samples = sample(model, counts, len(held_out), held_out.shape[-2:])
    return metrics, leak_report(train, held_out, decoded_train,
                                decoded_held_out, samples)


def _decode(model: VQAutoEncoder, images: Tensor) -> Tuple[Tensor, Tensor]:
    """Re-represented images, and how often each code was used."""
    decoded, counts = [], 0
    for batch in images.split(BATCH):
        batch = batch.to(model.codebook.device)
        counts = counts + model.count(model.quantize(model.encode(batch))[1])
        decoded.append(model.reconstruct(batch).cpu())
    return torch.cat(decoded), counts.cpu()


@torch.no_grad()
def sample(model: VQAutoEncoder, counts: Tensor, num: int,
           size: Tuple[int, int]) -> Tensor:
    """Images of random codes, each drawn as often as it is used.

    Args:
        model (VQAutoEncoder): The model.
        counts (Tensor): How often each code is used.
        num (int): Number of images.
        size (tuple[int, int]): Their height and width.
    """
    height, width = (-(-side // model.downsample) for side in size)
    generator = torch.Generator().manual_seed(0)
    codes = torch.multinomial(
        counts.double(), num * height * width, True, generator=generator)
    codes = codes.view(num, height, width).to(model.codebook.device)
    images = [
        model.decode(model.codebook[part].movedim(-1, 1)).clamp(0, 1).cpu()
        for part in codes.split(BATCH)
    ]
    return torch.cat(images)[..., :size[0], :size[1]]


def re_represent_folder(release: Union[str, Path],
                        source: Union[str, Path],
                        target: Union[str, Path],
                        device: str = 'cpu',
                        scale: float = 1.) -> int:
    """Write re-represented copies of all images of a folder.

    Names and sizes stay, so that annotations of the source fit. A manifest
    beside them has the checksum of each, with which whoever reads them as
    data compares them first.

    Args:
        release (str | Path): Folder of an upstream release.
        source (str | Path): Folder with images, at any depth.
        target (str | Path): Folder to make; it appears when it is whole.
        device (str): Where the network runs. Defaults to 'cpu'.
        scale (float): See :func:`re_represent`. Defaults to 1.

    Returns:
        int: Number of images.

    Raises:
        FileNotFoundError: If there is no image.
        ValueError: If images of the source were made by a network, and are
            not as they were made, or the scale is not above 0.
        ZooError: If the release is not valid, or the target is there already.
    """
    check_positive(scale, '--scale')
    source, target = Path(source), Path(target)
    names = sorted(images_in(source))
    if not names:
        raise FileNotFoundError(f"There is no image in '{source}': name a "
                                'folder with images.')
    manifest = manifest_of(source)
    if manifest is not None:
        check_files(manifest)
    model = load_upstream_release(release).to(device)
    settings = dict(release=sha256(Path(release, CARD)), scale=scale)
    try:
        with new_folder(target, error=ZooError) as draft:
            copies = {
                name: _copy(model, source / name, draft, name, scale)
                for name in names
            }
            write_manifest(
                draft / MANIFEST,
                dict(kind=COPIES, settings=settings, images=copies))
    except OSError as error:
        raise ZooError(f"'{target}' cannot be written ({error}); nothing is "
                       'left of it.') from error
    return len(names)


def _copy(model: VQAutoEncoder, source: Path, draft: Path, name: str,
          scale: float) -> Dict[str, Any]:
    """Write the re-represented copy of one image; what is noted of it."""
    with named(source):
        image = mmcv.imread(str(source))
    if image is None:
        raise ZooError(f"'{source}' cannot be read as an image; take it out "
                       'of the folder.')
    loaded = torch.from_numpy(image).permute(2, 0, 1)
    changed = re_represent(model, [loaded], scale)[0].permute(1, 2, 0)
    if not mmcv.imwrite(changed.contiguous().numpy(), str(draft / name)):
        raise OSError(f"'{name}' could not be written")
    height, width = changed.shape[:2]
    return {
        'file': name,
        'height': height,
        'width': width,
        SUM: sha256(draft / name)
    }
