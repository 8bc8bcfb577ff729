# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What the steps of ``tools/demo.py student`` train, generate and export."""

import json
import shutil
import time
from copy import deepcopy
from pathlib import Path
from typing import List, Tuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint

from vim_mm.apis.export import export_onnx, latency, load_for_export
from vim_mm.apis.generate import generate
from vim_mm.apis.release import publish_upstream, re_represent_folder
from vim_mm.registry import DATASETS
from vim_mm.report import Chart, Gallery, Row
from vim_mm.utils.files import write_atomic
from .common import CONFIGS, Found, ask
from .student_training import Costs, config, metric_of, sizes, train

SOLAR, TREES = 'solar cells (cls)', 'tree crowns (det)'
#: images of a strip
SHOWN = 6
#: of small detectors; their config has more
EPOCHS = 10


# ------------------------------------------------------------------- steps


def release(work_dir: Path, seed: int) -> Found:
    """Publish codes of photographs, and apply them to the few images."""
    root = work_dir / 'release'
    costs = Costs(seed)
    cfg = config('ota/demo_release', work_dir, seed)
    cfg.work_dir = str(root / 'run')
    for made in ('published', 'copies', 'few'):
        shutil.rmtree(root / made, ignore_errors=True)
    card = publish_upstream(cfg, root / 'published')
    few = _write_few(config('ota/demo_teacher_solar-cells', work_dir, seed),
                     root / 'few')
    re_represent_folder(
        root / 'published', root / 'few', root / 'copies', scale=2.)
    values = {
        'codes in use': card.metrics['codes_in_use'],
        'perplexity': card.metrics['perplexity'],
        'L1, held-out images': card.metrics['l1_held_out'],
        'membership AUC (0.5: nothing leaks)': card.leak['membership_auc']
    }
    rows = [
        costs.row('release', 'upstream', 'VQ auto-encoder', metric, value,
                  card.num_images, card.leak['num_held_out'])
        for metric, value in values.items()
    ]
    copies = [root / 'copies' / path.relative_to(root / 'few') for path in few]
    strip = _strip([few[:SHOWN], copies[:SHOWN]], root / 're-represented.png')
    return Found(
        rows,
        charts=[
            Chart(
                str(strip.relative_to(work_dir)),
                'The first of the few images (above), and what encoder, '
                'codebook and decoder make of them (below)')
        ])


def _write_few(cfg: Config, folder: Path) -> List[Path]:
    """Copy the few images into folders by class, mixed in their order."""
    few = DATASETS.build(cfg.train_dataloader.dataset)
    paths = []
    for index in range(len(few)):
        info = few.get_data_info(index)
        path = folder / cfg.classes[info['gt_label']] / Path(
            info['img_path']).name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, Path(info['img_path']).read_bytes())
        paths.append(path)
    half = len(paths) // 2
    return [p for pair in zip(paths[:half], paths[half:]) for p in pair]


def _strip(rows: List[List[Path]], file: Path) -> Path:
    """Rows of images, 160 px each, as one image."""
    cells = [[cv2.resize(cv2.imread(str(p)), (160, 160)) for p in row]
             for row in rows]
    strip = np.vstack([np.hstack(row) for row in cells])
    write_atomic(file, cv2.imencode(file.suffix, strip)[1].tobytes())
    return file


def teacher(work_dir: Path, seed: int) -> Found:
    """IRF and its control."""
    rows = []
    for method in ('LP-FT', 'IRF'):
        cfg = config('ota/demo_teacher_solar-cells', work_dir, seed)
        if method == 'LP-FT':
            cfg.custom_hooks[0].release = None
        runner, values, costs = train(cfg, work_dir / 'teacher' / method)
        for name, value in zip((f'{method}: head alone', method), values):
            rows.append(
                costs.row('teacher', SOLAR, name, 'accuracy', value,
                          *sizes(runner)))
    gallery = ask(Gallery(), runner, work_dir, 'teacher', 'IRF')
    return Found(rows, [gallery])


def generation(work_dir: Path, seed: int) -> Found:
    """Images guided by the few."""
    cfg = config('ota/demo_teacher_solar-cells', work_dir, seed)
    cfg.generate.seed = seed
    folder = work_dir / 'generation' / 'solar-cells'
    shutil.rmtree(folder, ignore_errors=True)
    costs = Costs(seed)
    report = generate(
        cfg,
        find_latest_checkpoint(str(work_dir / 'teacher' / 'IRF')),
        str(folder))
    values = {
        'seconds an image': report.seconds,
        'loss at the guides': report.start,
        'loss in the end': report.loss
    }
    rows = [
        costs.row('generation', SOLAR, 'DIGG', metric, value, report.total, 0)
        for metric, value in values.items()
    ]
    return Found(
        rows,
        charts=[
            Chart(
                str((folder / 'sheet.png').relative_to(work_dir)),
                'Guides, and the images generated from them')
        ])


def ota(work_dir: Path, seed: int) -> Found:
    """Students on the few images, and on more of their kind."""
    found = []
    for method, parts in {
            'student alone': (),
            'KD on the few': (0, ),
            'KD + re-represented': (0, 1),
            'OTA: KD + re-represented + DIGG': (0, 1, 2)
    }.items():
        cfg = config('ota/demo_student_solar-cells', work_dir, seed)
        if not parts:
            cfg.model = cfg.model.student
        loader = cfg.train_dataloader
        if len(parts) < 2:
            loader.dataset = loader.dataset.datasets[0]
            loader.sampler = dict(type='InfiniteSampler', shuffle=True)
        elif len(parts) == 2:
            loader.dataset.datasets = loader.dataset.datasets[:2]
            loader.sampler.source_ratio = [1, 1]
        found.append((method, cfg))
    return _students(found, work_dir, 'ota')


def tdmr(work_dir: Path, seed: int) -> Found:
    """TDMR, and distillation from a linear probe."""
    found = []
    for method in ('KD from a linear probe', 'TDMR'):
        cfg = config('tdmr/demo_solar-cells', work_dir, seed)
        if method != 'TDMR':
            cfg.model.proxy = dict(reprogram=False)
            cfg.model.schedule = dict(feature=0.)
        found.append((method, cfg))
    result = _students(found, work_dir, 'tdmr')
    costs = [
        json.loads((work_dir / 'tdmr' / _slug(method) /
                    'cost.json').read_text()) for method, _ in found
    ]
    last = result.rows[-1]
    for metric in ('forwards', 'backwards'):  # of the two, one store
        result.rows.append(
            Row('tdmr', SOLAR, 'both', f'foundation models: {metric}',
                sum(cost[metric] for cost in costs), last.n_train, 0,
                last.seconds, last.peak_mb, seed))
    return result


def _students(found: List[Tuple[str, Config]], work_dir: Path,
              step: str) -> Found:
    rows, gallery = [], Gallery()
    for method, cfg in found:
        runner, values, costs = train(cfg, work_dir / step / _slug(method))
        rows.append(
            costs.row(step, SOLAR, method, 'accuracy', values[-1],
                      *sizes(runner)))
        ask(gallery, runner, work_dir, step, method)
    return Found(rows, [gallery])


def _slug(method: str) -> str:
    return method.partition(':')[0].replace(' ', '-')


def detection(work_dir: Path, seed: int) -> Found:
    """A detector with a module, and what a small one learns from it."""
    cfg = config('demo/midstream_tree-crowns_det', work_dir, seed)
    cfg.custom_hooks = cfg.custom_hooks[:1]  # it goes to no zoo
    folder = work_dir / 'detection'
    runner, values, costs = train(cfg, folder / 'teacher')
    rows = [
        costs.row('detection', TREES, 'teacher: ViT-S/14 with a module',
                  'AP50', values[-1], *sizes(runner))
    ]
    gallery = ask(Gallery(), runner, work_dir, 'detection', 'teacher')
    for method in ('student alone', 'student with KD'):
        cfg = config('kd/tree-crowns_mobilenet-v2', work_dir, seed)
        cfg.model.teacher.update(
            config=str(CONFIGS / 'demo/midstream_tree-crowns_det.py'),
            checkpoint=find_latest_checkpoint(str(folder / 'teacher')))
        if method == 'student alone':
            cfg.model = cfg.model.student
        cfg.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS)
        cfg.param_scheduler.T_max = EPOCHS
        cfg.default_hooks.checkpoint.interval = EPOCHS
        runner, values, costs = train(cfg, folder / _slug(method))
        rows.append(
            costs.row('detection', TREES, method, 'AP50', values[-1],
                      *sizes(runner)))
        ask(gallery, runner, work_dir, 'detection', method)
    return Found(rows, [gallery])


def export(work_dir: Path, seed: int) -> Found:
    """Students as ONNX files beside their teachers."""
    rows = []
    for task, metric, trained, teacher_cfg, checkpoint in (
        (SOLAR, 'accuracy', work_dir / 'tdmr' / 'TDMR',
         config('ota/demo_teacher_solar-cells', work_dir, seed),
         work_dir / 'teacher' / 'IRF'),
        (TREES, 'AP50', work_dir / 'detection' / 'student-with-KD',
         config('demo/midstream_tree-crowns_det', work_dir, seed),
         work_dir / 'detection' / 'teacher')):
        student, costs = trained / 'student', Costs(seed)
        file = work_dir / 'export' / f'{task.split()[0]}.onnx'
        file.parent.mkdir(parents=True, exist_ok=True)
        written = export_onnx(
            str(student / 'student.py'), str(student / 'student.pth'), file)
        own, *_ = load_for_export(
            str(student / 'student.py'), str(student / 'student.pth'))
        threads = torch.get_num_threads()
        times = latency(own, file, num_threads=threads)
        large, *_ = load_for_export(
            teacher_cfg, find_latest_checkpoint(str(checkpoint)))
        value, count = _judge(student / 'student.py', file, work_dir)
        for name, of in {
                metric: value,
                'ms an image, onnxruntime': times['onnx'],
                'ms an image, PyTorch': times['torch'],
                'ms an image, teacher': latency(
                    large, file, num_threads=threads)['torch'],
                'MB': written.megabytes,
                'largest difference from PyTorch': max(
                    written.differences.values())
        }.items():
            rows.append(
                costs.row('export', task, f'{task.split()[0]}.onnx', name, of,
                          0, count))
    return Found(rows)


def _judge(config_file: Path, file: Path, work_dir: Path) -> Tuple[float, int]:
    """The file's metric on the test images."""
    cfg = Config.fromfile(config_file)
    cfg.model = dict(type='vim_mm.OnnxModel', file=str(file))
    cfg.work_dir = str(work_dir / 'export')
    cfg.experiment_name = f'export_{time.time_ns()}'
    for part in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg.pop(part, None)
    runner = Runner.from_cfg(deepcopy(cfg))
    return metric_of(runner.test()), len(runner.test_dataloader.dataset)


RUNS = dict(
    release=release,
    teacher=teacher,
    generation=generation,
    ota=ota,
    tdmr=tdmr,
    detection=detection,
    export=export)
