# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import re
from itertools import count
from typing import (Any, Dict, Iterator, List, Mapping, Optional, Sequence,
                    Tuple, Union)

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.infer import BaseInferencer
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.progress import track

from vim_mm.registry import INFERENCERS
from .batches import Failures, answer_each, group_by_size, read_each
from .inputs import (Inputs, Request, Tasks, check_device, list_requests,
                     make_folder, tasks_of)
from .results import Painter, ResultFolder, describe, words
from .serving import ServedTask
from .sharing import memory
from .trunk_pass import read_once


@INFERENCERS.register_module()
class ViMInferencer(BaseInferencer):
    """Answers several downstream tasks with one trunk and one zoo in memory.

    Each task comes from an ordinary config and the checkpoint its training
    left. Its predictions are bit for bit those of its own model alone.

    Args:
        tasks (Mapping[str, tuple] | str | Config): Task name to ``(config,
            checkpoint)`` or, to use another task of the model or of its
            fusion than that of the same name or of the config, ``(config,
            checkpoint, task)``. Or one config: a single task goes by the name
            of its file, those of a multi-task model by their own.
        checkpoint (str, optional): What the training of that config left.
            With a mapping the device may stand here. Defaults to None.
        device (str, optional): Where the models run; the best there is when
            None. Defaults to None.
        show_progress (bool): Whether to show a bar. Defaults to True.
        compile (bool | dict, optional): Compile every backbone into one
            graph; a dict holds arguments of :func:`torch.compile` that come
            before those :func:`~vim_mm.apis.serving.choose_graph` chooses.
            What ``model.backbone.compile`` says when None, the default.
        task (str, optional): With one config, the task of its model that is
            served; all when None. Defaults to None.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a checkpoint does not fit its config, the tasks do
            not have one trunk, or nothing can compile.

    Examples:
        >>> inferencer = ViMInferencer('flowers.py', 'flowers.pth')
        >>> inferencer('photos/', out_dir='out')
        >>> inferencer = ViMInferencer({
        ...     'flowers': ('flowers.py', 'flowers.pth'),
        ...     'roads': ('roads.py', 'roads.pth')})
        >>> inferencer('photos/', task='flowers', out_dir='out')
        >>> inferencer('photos/', task=['flowers', 'roads'])
        >>> inferencer([('a.jpg', 'flowers'), ('b.jpg', 'roads')])
        >>> inferencer = ViMInferencer('mtht.py', 'mtht.pth', task='det')
    """

    visualize_kwargs = {'return_vis', 'show', 'wait_time', 'pred_score_thr'}
    postprocess_kwargs = {'print_result', 'no_save_pred', 'no_save_vis'}

    def __init__(self,
                 tasks: Union[Mapping[str, tuple], str, Config],
                 checkpoint: Optional[str] = None,
                 device: Optional[str] = None,
                 show_progress: bool = True,
                 compile: Union[bool, dict, None] = None,
                 task: Optional[str] = None) -> None:
        if not isinstance(tasks, Mapping):
            tasks = tasks_of(tasks, checkpoint, task)
        elif task is not None:
            raise ValueError(f"The task '{task}' is asked for beside names of "
                             'several; give (config, checkpoint, task) under '
                             'its name.')
        elif checkpoint is not None:  # positions of (tasks, device, …)
            if device is not None:
                show_progress = device
            device = checkpoint
        self.scope = 'vim_mm'
        self.device = device or get_device()
        check_device(self.device)
        self.show_progress = show_progress
        self.compile = compile
        self.tasks: Dict[str, ServedTask] = {}
        self.painters: Dict[str, Painter] = {}
        self._numbers = count()  # of arrays, over all calls
        for name, source in tasks.items():
            self.add_task(name, *source)

    def add_task(self,
                 name: str,
                 config: Union[str, Config],
                 checkpoint: str,
                 gates: Optional[str] = None) -> None:
        """Serve one more task; the earlier ones answer as before.

        While it is built the new task holds a trunk of its own, on the CPU.

        Args:
            name (str): Letters, digits, '_', '-' and '.'.
            config (str | Config): Its config.
            checkpoint (str): What its training left.
            gates (str, optional): See the class.

        Raises:
            FileNotFoundError: If a file does not exist.
            ValueError: If the name is taken or not allowed, or the task does
                not fit; nothing is added then.
        """
        if name in self.tasks:
            raise ValueError(f"A task '{name}' is served already; give the "
                             'new one another name.')
        if not re.fullmatch(r'\w[\w.-]*', name):
            raise ValueError(f"'{name}' cannot name a task: its results go to "
                             "a folder of that name. Use letters, digits, "
                             "'_', '-' and '.'.")
        task = ServedTask(name, config, checkpoint, gates,
                          list(self.tasks.values()), self.device, self.compile)
        self.painters[name] = self._init_visualizer(task)
        self.tasks[name] = task

    def memory(self) -> Tuple[int, int]:
        """Bytes held by all tasks' models, and by as many separate ones."""
        models = [task.model for task in self.tasks.values()]
        return memory(models), sum(memory([model]) for model in models)

    # ------------------------------------------------------------- answering

    def __call__(self,
                 inputs: Inputs,
                 return_datasamples: bool = False,
                 batch_size: int = 1,
                 *,
                 task: Optional[Tasks] = None,
                 out_dir: str = '',
                 **kwargs) -> Dict[str, Any]:
        """Answer images, each by all tasks that it is asked for.

        A batch holds images of one task and one size, so that no image
        is padded for the sake of another.

        Args:
            inputs: A path, a folder, a URL, a (H, W, 3) uint8 array in BGR
                order, or a list of these. An entry of a list may be a pair
                with tasks of its own, ``('a.jpg', 'roads')``.
            return_datasamples (bool): Return data samples of the task's
                library instead of plain values. Defaults to False.
            batch_size (int): Images a batch. Defaults to 1.
            task (str | Sequence[str], optional): The task, or the tasks that
                all answer every image. May be None if one task is served.
            out_dir (str): Where to write ``vis/TASK/*.png`` and
                ``preds/TASK/*.json``; nothing is written when empty.
            return_vis (bool): Return the drawings, RGB. Defaults to False.
            show (bool), wait_time (float): Show drawings in a window, for
                some seconds or until a key is pressed. Defaults to False, 0.
            pred_score_thr (float): Boxes from this score on are drawn.
                Defaults to 0.3.
            no_save_vis, no_save_pred (bool): Write no drawings, or no
                predictions. Default to False.
            print_result (bool): Print a line for each. Defaults to False.

        Returns:
            dict: ``predictions``, see
            :func:`~vim_mm.apis.results.describe`, and ``visualization``, one
            entry an answer, in the order of the inputs and, of one image, of
            its tasks; and ``errors``, index to sentence. Where there is no
            answer both lists hold None, and no file is left.

        Raises:
            FileNotFoundError: If a path does not exist.
            ValueError: If a task is unknown, a folder holds no image, an
                argument is not as above, or no image can be answered.
        """
        _, _, drawing_of, saving = self._dispatch_kwargs(**kwargs)
        if batch_size < 1:
            raise ValueError(f'batch_size={batch_size}: use at least 1.')
        requests = list_requests(inputs, task, list(self.tasks),
                                 self._numbers)
        num = len(requests)
        keep = bool(out_dir) and not saving.get('no_save_vis')
        if out_dir:
            make_folder(out_dir)
        results = dict(predictions=[None] * num, visualization=[None] * num)
        failures = Failures()
        batches = self.preprocess(requests, batch_size, failures)
        if self.show_progress:
            batches = track(batches, 'Inference', console=Console(stderr=True))
        for one, sample in self._samples(batches, failures):
            try:
                drawing, = self.visualize([one], [sample], keep, **drawing_of)
                answer = self.postprocess([sample], [drawing],
                                          return_datasamples, [one], out_dir,
                                          **saving)
            except Exception as error:  # drawing may fail at any of them
                failures.add([one], error)
                continue
            results['predictions'][one.index], = answer['predictions']
            if drawing_of.get('return_vis'):
                results['visualization'][one.index] = drawing
        results['errors'] = failures.report(num)
        return results

    def _samples(
            self, batches: Iterator[List[Request]],
            failures: Failures) -> Iterator[Tuple[Request, BaseDataElement]]:
        """Images with what their tasks say of them."""
        passes = [task.trunk_pass for task in self.tasks.values()]
        with read_once(filter(None, passes)):
            yield from answer_each(batches, self.forward, failures)

    def preprocess(self,
                   inputs: List[Request],
                   batch_size: int = 1,
                   failures: Optional[Failures] = None,
                   **kwargs) -> Iterator[List[Request]]:
        """Read images and group them, see :func:`group_by_size`.

        What cannot be read is noted, and the others go on.
        """
        failures = Failures() if failures is None else failures
        return group_by_size(
            read_each(inputs, self._read, failures), batch_size)

    def _read(self, one: Request) -> None:
        one.data, one.loaded = self.tasks[one.task].read(
            one.picture, one.index)

    def forward(self, inputs: List[Request],
                **kwargs) -> List[BaseDataElement]:
        """Data samples of a batch of one task."""
        task = self.tasks[inputs[0].task]
        samples = task.predict([one.data for one in inputs])
        for one in inputs:
            one.data = None
        return samples

    def visualize(self,
                  inputs: List[Request],
                  preds: List[BaseDataElement],
                  keep: bool = False,
                  return_vis: bool = False,
                  show: bool = False,
                  wait_time: float = 0,
                  pred_score_thr: float = 0.3) -> List[Optional[np.ndarray]]:
        """Draw predictions if anything is to be done with the drawings."""
        drawings = [None] * len(inputs)
        for place, (one, sample) in enumerate(zip(inputs, preds)):
            if keep or return_vis or show:
                with self.tasks[one.task].in_scope():
                    drawings[place] = self.painters[one.task](one.loaded,
                                                              sample, one.name,
                                                              show, wait_time,
                                                              pred_score_thr)
            one.loaded = None
        return drawings

    def postprocess(self,
                    preds: List[BaseDataElement],
                    visualization: List[Optional[np.ndarray]],
                    return_datasamples: bool = False,
                    batch: Sequence[Request] = (),
                    out_dir: str = '',
                    print_result: bool = False,
                    no_save_pred: bool = False,
                    no_save_vis: bool = False) -> dict:
        """Make predictions plain, and write and print what is asked for."""
        folder, predictions = ResultFolder(out_dir), []
        for one, sample, drawing in zip(batch, preds, visualization):
            save = bool(out_dir) and not no_save_pred
            plain = None
            if save or print_result or not return_datasamples:
                plain = dict(task=one.task, img_path=one.path)
                plain.update(describe(sample, self.tasks[one.task].classes))
            if print_result:
                print(f'{one.path or one.name}\t{one.task}\t{words(plain)}')
            if out_dir and not no_save_vis:
                folder.save_drawing(one.task, one.name, drawing)
            if save:
                folder.save_prediction(one.task, one.name, plain)
            predictions.append(sample if return_datasamples else plain)
        return dict(predictions=predictions, visualization=visualization)

    # ------------------------------------------- one pipeline for each task

    def _init_pipeline(self, cfg: Config) -> None:
        """Every task reads images its own way: :class:`ServedTask`."""

    def _init_visualizer(self, cfg: ServedTask) -> Painter:
        return Painter(cfg.cfg.get('visualizer'), cfg.classes, cfg.palette)
