# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, Optional

from mmengine.dist import barrier, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import Dataset

from vim_mm.datasets import Views, views_of
from vim_mm.features.shards import StoreError, StoreWriter, float_type
from vim_mm.features.source import source_of
from vim_mm.features.store import FeatureStore
from vim_mm.models.distillers import TDMRDistiller
from vim_mm.registry import HOOKS
from vim_mm.utils.arguments import check_number, check_width
from vim_mm.utils.wrappers import unwrap
from ..divided import ELSEWHERE
from ..loaded import spared
from ..model_parts import restart_averages
from ..proxy_training import Indexed, InMemory, Stored, batches, train_proxy
from ..rates import check_optimizer
from ..stopping import stop_if_asked


@HOOKS.register_module()
class ProxyHook(Hook):
    """Train the proxy space of a TDMRDistiller before the student.

    With a ``store`` the foundation models run once for each view of an image
    and never again: the store is filled with what it lacks, the proxy space
    learns from it, and the student's batches look their views up in it. The
    training set is a :class:`vim_mm.Views` then. Without a store the
    foundation models run once for the proxy space and again in each step.

    Args:
        epochs (int): Epochs of the proxy space; 0 leaves it as it is, for
            losses on the features themselves. Defaults to 50.
        batch_size (int): Images a step; it may be larger than the student's.
            Defaults to 256.
        optimizer (dict): Config of its optimizer. Defaults to AdamW with
            learning rate 1e-3, which falls as a cosine.
        store (str, optional): Folder of stored features, one folder inside
            for each foundation model; other runs may share it. Defaults to
            None.
        dtype (str): Number format of stored features. Defaults to 'float32'.
        domain (float): Weight of a loss between the proxy space and the
            features of the student as it starts, so that it can get there.
            Defaults to 0.
        domain_loss (dict): Config of that loss: vim_mm.LinearCKA, or
            vim_mm.MMD where the proxy space has the student's width.
        keep_loaded (bool): Whether a last layer of the student that was
            loaded from ``load_from`` stays as it is, rather than start as
            the proxy classifier. Defaults to True.
    """

    priority = 'NORMAL'
    needs_whole = ELSEWHERE

    def __init__(
            self,
            epochs: int = 50,
            batch_size: int = 256,
            optimizer: dict = dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
            store: Optional[str] = None,
            dtype: str = 'float32',
            domain: float = 0.,
            domain_loss: dict = dict(type='vim_mm.LinearCKA'),
            keep_loaded: bool = True) -> None:
        check_optimizer(optimizer, 'ProxyHook.optimizer')
        check_number(epochs, 'ProxyHook.epochs')
        check_width(batch_size, 'ProxyHook.batch_size')
        check_number(domain, 'ProxyHook.domain')
        float_type(dtype, 'ProxyHook.dtype')
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.store = store
        self.dtype = dtype
        self.domain = domain
        self.domain_loss = domain_loss
        self.keep_loaded = keep_loaded

    def before_train(self, runner: Runner) -> None:
        """Fill the store, and train the proxy space unless resumed.

        Raises:
            ValueError: If the model has no proxy space, or the training set
                no views that could be stored.
            StoreError: If the store does not fit, or is full.
        """
        model = unwrap(runner.model)
        if not isinstance(model, TDMRDistiller):
            raise ValueError(
                f'ProxyHook is for a TDMRDistiller, and the model is a '
                f'{type(model).__name__}; take it out of `custom_hooks`.')
        dataset = runner.train_dataloader.dataset
        features: Indexed
        if self.store is not None:
            stores = self._open(model, dataset)
            start = time.perf_counter()
            fill(runner, model, dataset, stores)
            stop_if_asked()
            runner.logger.info(
                f"ProxyHook: the store '{self.store}' holds "
                f'{len(dataset)} views, after '
                f'{time.perf_counter() - start:.1f} s')
            model.recall = lambda samples: {
                name: store.read(views_of(samples))
                for name, store in stores.items()
            }
            features = Stored(dataset, stores)
        if runner.iter > 0:  # resumed: the proxy space was loaded
            return
        if not self.epochs and model.logits_loss is not None:
            runner.logger.warning(
                'ProxyHook has 0 epochs, and the student follows the logits '
                'of the proxy space, which have learned nothing; give it '
                'some, or set `schedule.logits=0`.')
        if self.store is None:
            features = InMemory(runner, model, dataset)
        report = train_proxy(runner, model, features, self.epochs,
                             self.batch_size, self.optimizer, self.domain,
                             self.domain_loss)
        runner.message_hub.update_info('proxy', report)
        if not spared(runner, 'ProxyHook', model.classifier.parameters(),
                      self.keep_loaded):
            model.start_sharing()
        restart_averages(runner)

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Tell the schedule how far the training is."""
        unwrap(runner.model).progress = runner.iter / runner.max_iters

    def _open(self, model: TDMRDistiller,
              dataset: Dataset) -> Dict[str, FeatureStore]:
        if not isinstance(dataset, Views):
            raise ValueError(
                'Stored features belong to views of images, and the training '
                f'set is a {type(dataset).__name__}; wrap it: '
                "`dataset=dict(type='vim_mm.Views', dataset=..., views=4)`.")
        if getattr(model.data_preprocessor, 'batch_augments', None):
            raise ValueError(
                "The student's data_preprocessor mixes images of a batch "
                '(`batch_augments`), and no store has features of mixtures; '
                'leave it out, or set `store=None`.')
        return {
            name: FeatureStore(
                Path(self.store, name),
                source_of(model.foundations[name], outside, dataset,
                          self.dtype))
            for name, outside in model.outside.items()
        }


def fill(runner: Runner, model: TDMRDistiller, dataset: Views,
         stores: Dict[str, FeatureStore]) -> None:
    """Compute what stores lack, each process its share, in one pass.

    Raises:
        StoreError: If a store cannot be written, or images are padded.
    """
    # the same image may be listed twice
    indices = {key: index for index, key in enumerate(dataset.keys())}
    missing = [
        index for key, index in indices.items()
        if any(key not in store for store in stores.values())
    ][get_rank()::get_world_size()]
    if missing:
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(store.writer())
                for name, store in stores.items()
            }
            for _, data in batches(runner, model, dataset, missing):
                _add(model, data, stores, writers)
    barrier()
    for store in stores.values():
        store.refresh()


def _add(model: TDMRDistiller, data: dict, stores: Dict[str, FeatureStore],
         writers: Dict[str, StoreWriter]) -> None:
    inputs, samples = data['inputs'], data['data_samples']
    views, size = views_of(samples), tuple(inputs.shape[-2:])
    for view, sample in zip(views, samples):
        if tuple(sample.metainfo.get('img_shape', size)[:2]) != size:
            raise StoreError(
                f"View {view.view} of '{view.sample}' is padded to the size "
                'of its batch, on which its features would depend; let the '
                'pipeline bring all images to one size.')
    for name, store in stores.items():
        new = [i for i, view in enumerate(views) if view[:2] not in store]
        if new:
            features = model.look(inputs[new], [samples[i] for i in new],
                                  [name])
            writers[name].add([views[i] for i in new], features[name])
