# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import json
import os.path as osp
from pathlib import Path
from typing import Any, Dict, List, Optional

from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor

from vim_mm.models.distillers import BaseDistiller, Outside
from vim_mm.models.function_notes import KEY as FUNCTION
from vim_mm.models.function_notes import function_notes
from vim_mm.models.head_origin import KEY, head_notes, head_parts
from vim_mm.registry import HOOKS
from vim_mm.utils.checksum import save_checkpoint
from vim_mm.utils.config import library_of, type_name
from vim_mm.utils.described import card_fields
from vim_mm.utils.files import new_folder, write_atomic
from vim_mm.utils.kinds import KINDS
from vim_mm.utils.wrappers import unwrap
from vim_mm.version import __version__
from vim_mm.zoo.parts import of_parts, together
from ..divided import check_whole

#: What a checkpoint of a distillation keeps beside the student.
HELP = 'distiller'
#: Where a run leaves its student.
FOLDER = 'student'
#: What a plain run of the student needs of its config.
KEPT = ('data_preprocessor', 'val_dataloader',
        'val_evaluator', 'val_cfg', 'test_dataloader', 'test_evaluator',
        'test_cfg', 'env_cfg', 'visualizer')


@HOOKS.register_module()
class StudentHook(Hook):
    """Resume distillations, and leave an ordinary model when they end.

    Checkpoints of a run hold the student alone; what learned beside it is
    kept next to it, for ``--resume``. After training ``WORK_DIR/student/``
    holds ``student.pth``, the weights (the best ones if the run kept these,
    averaged ones if it averaged), ``student.py``, a plain config of the
    student's library to test it with, and ``card.json``, which names classes,
    data and the licences of all that it learned from. Every run of a
    distiller has this hook.

    Args:
        folder (str): The folder's name in the run's. Defaults to 'student'.
    """

    # after the last checkpoint was written and averages were put back
    priority = 'VERY_LOW'

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what learns beside the student."""
        model = unwrap(runner.model)
        if isinstance(model, BaseDistiller):
            checkpoint[HELP] = model.help_state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Go on with what learned beside the student.

        Raises:
            ValueError: If a run is to be resumed without it.
        """
        model = unwrap(runner.model)
        if not runner._resume or not isinstance(model, BaseDistiller):
            return
        if HELP not in checkpoint:
            raise ValueError(
                f'{runner._load_from} holds a student alone, so its '
                'distillation cannot go on; start from it with `load_from`.')
        model.load_help(checkpoint[HELP])

    def before_train(self, runner: Runner) -> None:
        """Look whether the help fits the training set.

        Raises:
            ValueError: If it does not, or processes hold parts of the
                student, which is small beside what helps it.
        """
        model = unwrap(runner.model)
        if isinstance(model, BaseDistiller):
            check_whole(runner, type(model).__name__, 'a student is small, so '
                        'divide nothing')
            dataset = runner.train_dataloader.dataset
            model.check_data(getattr(dataset, 'metainfo', {}))

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Write the student as a plain model and config."""
        model = unwrap(runner.model)
        if not isinstance(model, BaseDistiller):
            return
        meta = getattr(runner.train_dataloader.dataset, 'metainfo', {})
        folder, card = Path(runner.work_dir, FOLDER), student_card(runner)
        notes = dict(
            dataset_meta=dict(meta),
            **{
                KEY: head_notes(model.student),
                FUNCTION: function_notes(model.student)
            })
        with new_folder(folder) as draft:
            save_checkpoint(
                dict(meta=notes, state_dict=_trained(runner)),
                draft / 'student.pth')
            if 'model' in runner.cfg:  # not of a runner made from parts
                student = student_config(runner.cfg)
                # a student may be a teacher, whose licences its own keeps
                student.module_card = {
                    key: card[key] for key in ('task', 'dataset', 'licence')}
                student.dump(draft / 'student.py')
            write_atomic(draft / 'card.json',
                         json.dumps(card, indent=2) + '\n')
        runner.logger.info(f'StudentHook: {folder} holds an ordinary model')


def student_card(runner: Runner) -> Dict[str, Any]:
    """What is said of a student: its task, its data, and licences.

    Data set and licence are those of the config's ``module_card``; what the
    networks that it learned from bring along is added.

    Args:
        runner (Runner): The run of a distiller.
    """
    model, cfg = unwrap(runner.model), runner.cfg
    student, said = model.student, card_fields(cfg)
    metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', {})
    library = type(student).__module__.partition('.')[0]
    fields = dict(
        model=type(student).__name__,
        task=next((name for name, kind in KINDS.items()
                   if kind.scope == library), None),
        dataset=said.get('dataset'),
        licence=said.get('licence'),
        classes=list(map(str, metainfo.get('classes') or [])),
        image_size=said.get('image_size'),
        num_params=sum(p.numel() for p in student.parameters()),
        vim_mm_version=__version__)
    parts = [_parts(name, each) for name, each in model.outside.items()]
    return of_parts(fields, together([*parts, _inside(student)]))


def _parts(name: str, outside: Outside) -> List[Dict[str, Any]]:
    """A frozen network and what it was made of."""
    own = {key: outside.card.get(key)
           for key in ('task', 'dataset', 'licence')}
    return [*_inside(outside.network), dict(own, name=name)]


def _inside(model: BaseModel) -> List[Dict[str, Any]]:
    """The modules in a model's backbone, and those of its head."""
    backbone = getattr(model, 'backbone', None)
    made_of = getattr(backbone, 'made_of', {})
    return together([*made_of.values(), head_parts(model)])


def _trained(runner: Runner) -> Dict[str, Tensor]:
    best = _best_file(runner)
    if best is not None:
        loaded: Any = CheckpointLoader.load_checkpoint(best, 'cpu', 'silent')
        return loaded['state_dict']
    model = unwrap(runner.model)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            model = hook.ema_model.module
    return {k: v.detach().cpu() for k, v in model.state_dict().items()}


def _best_file(runner: Runner) -> Optional[str]:
    infos = runner.message_hub.runtime_info
    path = infos.get('best_ckpt')
    return path if path and osp.isfile(path) else None


def student_config(cfg: Config) -> Config:
    """The config of a distillation's student, an ordinary model.

    Args:
        cfg (Config): Config of the distillation.
    """
    kept = {key: cfg[key] for key in KEPT if cfg.get(key) is not None}
    student = Config(kept).copy()
    student.model = _without_weights(cfg.model.student.to_dict())
    # a plain library reads the file, which may not know ours
    student.default_scope = library_of(student.model,
                                       cfg.get('default_scope'))
    return student


def _without_weights(cfg: Any) -> Any:
    """A config that starts from no file: a checkpoint holds all weights.

    All but those of a frozen trunk, which it leaves out.
    """
    if isinstance(cfg, dict):
        frozen = 'type' in cfg and type_name(cfg) == 'ViMBackbone'
        return {
            key: value if frozen and key == 'trunk' else
            None if key == 'pretrained' else _without_weights(value)
            for key, value in cfg.items()
            if not (key == 'init_cfg' and _reads_file(value))
        }
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(map(_without_weights, cfg))
    return cfg


def _reads_file(init_cfg: Any) -> bool:
    several = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(
        isinstance(each, dict) and 'checkpoint' in each for each in several)
