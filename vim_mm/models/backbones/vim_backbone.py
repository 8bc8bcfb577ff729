# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import (Any, Dict, Iterable, Mapping, Optional, Sequence, Tuple,
                    Union)

from mmengine.device import get_device
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import (check_is_config, check_is_list,
                                    refuse_init_cfg)
from vim_mm.zoo.parts import together
from ..fusion import FusionHolder, build_fusion
from .blank_image import ProbeSize
from .compiling import compile_options
from .configs import settings_of
from .folding import fold, gates_to_fold
from .planned_trunk import PlannedTrunk
from .plugged_trunk import DEFAULT_ADAPTER
from .status import Status, status_of


@MODELS.register_module()
class ViMBackbone(FusionHolder, PlannedTrunk):
    """A frozen trunk from any registry, with a bank of modules beside it.

    With a fusion, or with one module, the output is that of the trunk: the
    usual tuple of maps, of one if the trunk returns a tensor. With several
    modules and no fusion it is one such tuple per module, for
    :class:`ViMFusionNeck`. Modules beside the trunk (:class:`SideLadder`)
    share one pass of it, without autograd.

    Args:
        trunk (dict | nn.Module): Config of the backbone to freeze; weights
            named by its ``init_cfg`` are loaded at once and must fit. From
            Python also a ready module of any library that returns maps,
            tokens or vectors: it is used in place, as PEFT does, and stays
            frozen; give a ``deepcopy`` to keep yours as it is.
        adapter (dict, optional): Config of the adapters of ``new_module``.
            ``slots`` in it is a pattern over the names of the submodules it
            occupies, or of outputs; by default those of ``slots``, or what
            its kind takes of the trunk's class. Defaults to None, which is
            ``dict(type='ConvPass', hidden_dims=8)``.
        new_module (str, optional): Name of a fresh, trainable module.
        modules (Sequence[str]): Names of modules to load from ``zoo``.
            Defaults to none.
        tune_modules (bool): Train the loaded modules too: what they become
            is kept in the run's checkpoints, the zoo stays as it is. Defaults
            to False, frozen.
        zoo (str, optional): Directory of the zoo.
        fusion (dict, optional): Config of a fusion in the trunk over
            ``modules`` and ``new_module``. Defaults to None.
        task (str, optional): The task to run; the first of the fusion when
            None.
        learn_tasks (Sequence[str], optional): The tasks that learn, and with
            them the tuned modules they weigh; the one to run when None.
        slots (str, optional): Pattern over submodule names, see
            :func:`match_slots`. Slots are what it matches and what any module
            occupies. Without pattern and modules, those of the trunk's class.
        probe_size (int | Sequence[int]): Side, or height and width, of the
            blank image that finds the slots' shapes, in pixels; a trunk of
            another fixed size is given that. Defaults to 224.
        save_trunk (bool): Keep the trunk in checkpoints. Defaults to False.
        grad_checkpointing (bool): Keep only the inputs of the trunk's blocks
            for the backward pass, see :meth:`grad_checkpointing`. Defaults to
            False.
        compile (bool | dict): Compile the pass into one graph, in training
            and in tests; a dict holds arguments of :func:`torch.compile`.
            Defaults to False.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        FileNotFoundError: If the trunk's weights are missing.
        ValueError: If a name, pattern or config does not fit; the sentence
            names it.
        ZooError: If a module of the zoo is damaged or belongs to another
            trunk.
    """

    no_fusion = 'this backbone has no `fusion` to hold tasks.'

    def __init__(self,
                 trunk: Union[dict, nn.Module],
                 adapter: Optional[dict] = None,
                 new_module: Optional[str] = None,
                 modules: Sequence[str] = (),
                 tune_modules: bool = False,
                 zoo: Optional[str] = None,
                 fusion: Optional[dict] = None,
                 task: Optional[str] = None,
                 learn_tasks: Optional[Sequence[str]] = None,
                 slots: Optional[str] = None,
                 probe_size: ProbeSize = 224,
                 save_trunk: bool = False,
                 grad_checkpointing: bool = False,
                 compile: Union[bool, dict] = False,
                 init_cfg: Optional[dict] = None) -> None:
        check_is_list(modules, 'model.backbone.modules')
        super().__init__(trunk, slots, probe_size, save_trunk, init_cfg)
        self.trunk_settings = settings_of(trunk)
        adapter = adapter or DEFAULT_ADAPTER
        check_is_config(adapter, 'model.backbone.adapter')
        self._plan_slots(zoo, modules, adapter if new_module else None)
        self.load_modules(zoo, modules, tune_modules,
                          _tasks_in(fusion))
        if new_module is not None:
            self.add(new_module, adapter)
            self.new_module = new_module
        if fusion is not None:
            self.set_fusion(fusion)
        self.select_task(task)
        self.learn_tasks(learn_tasks)
        if grad_checkpointing:
            self.grad_checkpointing()
        self._guard_checkpoints()
        self.train()
        if compile:
            self.compile(**compile_options(compile, get_device()))

    def function_settings(self) -> Dict[str, dict]:
        """What may change the trunk's function, beside its tensors."""
        return dict(trunk=self.trunk_settings)

    # ------------------------------------------------------------- modules

    def remove(self, name: str) -> None:
        """Remove a module; the others and the trunk stay as they are.

        Args:
            name (str): Its name.

        Raises:
            ValueError: If there is no module of that name, or a task of the
                fusion weighs it.
        """
        self._check_known([name])
        tasks = [t for t in self.tasks if name in self.fusion.task_modules[t]]
        if tasks:
            raise ValueError(
                f"Module '{name}' cannot be removed, since the tasks {tasks} "
                'of the fusion weigh it; set a fusion without it '
                '(`set_fusion`), or fold the running task (`merge`).')
        self._check_no_context()
        super().remove(name)

    def merge(self, name: str = 'merged') -> None:
        """Fold what the running task weighs into one plain module.

        It takes the place of all modules and of the fusion: outputs stay what
        they are for this task, up to rounding, at the cost of one module;
        other tasks go. The module is frozen, and can be written into a zoo
        (``save_module``). The trunk stays as it is. To fold weights of your
        own, give them to ``set_fusion(dict(type='FixedFusion', weights=...))``
        first; to leave this backbone as it is, merge a ``deepcopy``.

        Args:
            name (str): Name of the new module. Defaults to 'merged'.

        Raises:
            ValueError: If there is no fusion, it cannot be folded, or the
                name is taken; nothing has changed then.
        """
        self._check_no_context()
        kept, _ = gates_to_fold(self)
        before, used = self.bank.names, set().union(*kept.values())
        made_of = together(
            self.made_of.get(member, [dict(name=member)])
            for member in before if member in used)
        self.bank.add(name, *fold(self, kept), trainable=False)
        self.bank.to(self.device)
        self.fusion = None
        self.changes += 1
        for member in before:
            super().remove(member)
        self.made_of[name] = made_of

    def status(self) -> Status:
        """What is plugged in, what of it runs, and what learns.

        Returns:
            Status: Printed, it is a table.
        """
        return status_of(self)

    # --------------------------------------------------------------- tasks

    def set_fusion(self, fusion: dict) -> None:
        """Let a new fusion weigh the bank's modules.

        Its first task runs, and learns.

        Args:
            fusion (dict): Its config; it takes the place of any before.

        Raises:
            ValueError: If there is no such fusion, or of the modules of one
                task some sit in the trunk and some beside it.
        """
        made = build_fusion(fusion, self._occupied(self.bank.names))
        refuse_init_cfg(made, 'model.backbone.fusion')
        for names in made.task_modules.values():
            self._check_place(names)
        self.fusion = made.to(self.device)
        self.changes += 1
        self.select_task(None)
        self.learn_tasks()

    def learn_tasks(self, tasks: Optional[Sequence[str]] = None) -> None:
        """See :meth:`TaskHolder.learn_tasks`; tuned modules that none of
        these tasks weighs are frozen.
        """
        super().learn_tasks(tasks)
        if self.fusion is not None:
            known = {
                name
                for task in self.learning
                for name in self.fusion.task_modules[task]
            }
            for name in self._tuned:
                self._tune(name, name in known)

    def idle(self) -> Iterable[Tensor]:
        """See :meth:`TaskHolder.idle`; modules the task does not weigh, too.
        """
        others = set(self.bank.names)
        if not self.fusion.is_off(self.task):
            others -= set(self.fusion.task_modules[self.task])
        return [
            *super().idle(),
            *(param for name in self.bank.names if name in others
              for param in self.bank.members[name].parameters())
        ]

    def add_task(self,
                 task: str,
                 modules: Optional[Sequence[str]] = None) -> None:
        """Let one more task weigh modules; earlier tasks stay as they are.

        Args:
            task (str): Its name; :meth:`select_task` makes it run, and
                :meth:`learn_tasks` makes it learn.
            modules (Sequence[str], optional): The modules it knows; all that
                the bank holds now when None.

        Raises:
            ValueError: If there is no fusion, the name is taken, or the bank
                lacks a module.
        """
        if self.fusion is None:
            raise ValueError(f"Task '{task}' needs a `fusion` to hold it; "
                             'give ViMBackbone one.')
        names = self.bank.names if modules is None else list(modules)
        self._check_known(names)
        self._check_place(names)
        self.fusion.add_task(task, self._occupied(names))

    # ------------------------------------------------------------- forward

    def forward(self,
                x: Tensor,
                levels: Optional[Tuple[Tensor, ...]] = None) -> tuple:
        """Features of a batch of images.

        Args:
            x (Tensor): Normalised images, (B, 3, H, W).
            levels (tuple[Tensor], optional): What :meth:`read_levels` gave
                for them. Modules beside the trunk then need no pass of it;
                modules in the trunk do all the same. Defaults to None.

        Returns:
            tuple: The trunk's outputs, or one tuple of them per module.

        Raises:
            ValueError: If H or W is not divisible by the patch size, or a
                task that does not learn runs in training.
        """
        self._check_size(x)
        if self._gives_streams:
            return self._streams(x, levels)
        outputs = self._run(x, self._plan(x.device.type), levels)
        if self._running.only is not None:
            return outputs
        return self.with_idle(outputs)


def _tasks_in(fusion: Any) -> Sequence[str]:
    """The tasks that the config of a fusion names, as far as it is one."""
    tasks = fusion.get('tasks') if isinstance(fusion, Mapping) else None
    return tasks if isinstance(tasks, (list, tuple, Mapping)) else ()
