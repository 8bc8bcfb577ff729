# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Two processes distil together, one of them without annotations."""

from pathlib import Path

import pytest
import torch
from _processes import WORLD, join, together

from _distill import CRITERIA, distiller_cfg
from _tiny import Pictures, same

ITERS = 4


class HalfSoft(Pictures):
    """Every second picture has no annotation, and so all of one process."""

    def __getitem__(self, index: int) -> dict:
        data = super().__getitem__(index)
        data['data_samples'].set_metainfo(dict(soft_only=index % 2 == 0))
        return data


def train(rank: int, port: int, folder: str, models: dict) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from _tiny import build_runner, snapshot
    from vim_mm.utils.dist import leave_group
    from vim_mm.utils.wrappers import unwrap
    cfg = join(rank, port)
    for kind, model in models.items():
        run = build_runner(
            kind,
            model,
            Path(folder),
            ITERS,
            train_dataloader=dict(
                dataset=HalfSoft(kind),
                batch_size=2,
                sampler=dict(type='InfiniteSampler', shuffle=False),
                collate_fn=dict(type='pseudo_collate')),
            launcher='pytorch',
            env_cfg=cfg.env_cfg,
            randomness=dict(seed=0, diff_rank_seed=True),
            experiment_name=f'two_{kind}',
            cfg=dict(model_wrapper_cfg=cfg.model_wrapper_cfg))
        before = snapshot(unwrap(run.model))
        run.train()
        scalars = {
            name.removeprefix('train/'): float(buffer.current())
            for name, buffer in run.message_hub.log_scalars.items()
        }
        torch.save(
            dict(
                wrapper=type(run.model).__name__,
                losses={
                    k: v
                    for k, v in scalars.items() if 'loss' in k
                },
                before=before,
                after=snapshot(unwrap(run.model))),
            f'{folder}/{kind}{rank}.pth')
    leave_group()


@pytest.mark.slow
def test_processes_hold_the_same_student(tmp_path):
    """FCOS counts the boxes of all processes, so each must ask."""
    models = {}
    for kind in ('cls', 'det'):
        (tmp_path / kind).mkdir()
        models[kind] = distiller_cfg(tmp_path / kind, kind, CRITERIA).to_dict()
    together(train, str(tmp_path), models)
    for kind in models:
        first, second = (
            torch.load(tmp_path / f'{kind}{rank}.pth')
            for rank in range(WORLD))
        assert first['wrapper'] == 'MMDistributedDataParallel'
        learned = [
            k for k in first['after']
            if 'running_' not in k and 'batches' not in k
        ]
        assert same(*({
            k: rank['after'][k]
            for k in learned
        } for rank in (first, second)))
        moved = [
            k for k in learned
            if not torch.equal(first['after'][k], first['before'][k])
        ]
        assert any('head' in k for k in moved)
        assert len(moved) > 0.9 * len(learned)
        for rank, losses in enumerate((first['losses'], second['losses'])):
            own = [
                v for k, v in losses.items() if 'kd' not in k and k != 'loss'
            ]
            assert own and all(map(bool, own)) == bool(rank)
            assert losses['loss_kd_logits'] > 0
            parts = sum(v for k, v in losses.items() if k != 'loss')
            assert losses['loss'] == pytest.approx(parts, rel=1e-4)
