# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images generated for teachers of every kind."""

from contextlib import ExitStack
from functools import lru_cache, partial
from typing import List, Tuple

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from _tiny import (KINDS, TRUNKS, Pictures, add_modules, build_model, fill,
                   fusion_neck, same, snapshot, vit)
from vim_mm.models.generators import GuidedGenerator
from vim_mm.models.pixels import to_images

#: Three blocks of 4 x 4 patches and a class token.
TIMM = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_tiny_patch16_224',
    features_only=True,
    out_indices=[0, 1, 2],
    img_size=56,
    patch_size=14,
    embed_dim=32,
    depth=3,
    num_heads=2)
TEACHERS = ['bn', 'vit']
STEPS = 6


def teacher(kind: str, name: str = 'vit') -> BaseModel:
    return _teacher(kind, name)


@lru_cache(maxsize=None)
def _teacher(kind: str, name: str) -> BaseModel:
    torch.manual_seed(0)
    neck = None
    backbone = dict(trunk=vit())
    if name == 'timm':
        backbone = dict(trunk=TIMM)
    if name in ('bn', 'swin'):
        trunk = TRUNKS[dict(bn='resnet').get(name, name)]
        backbone = dict(trunk=trunk, probe_size=64)
        neck = dict(fusion_neck(kind), in_channels='auto', sources=[[3]])
    model = build_model(kind, backbone, neck)
    if name == 'modules':
        add_modules(model.backbone, 'a')
    for head in ('head', 'decode_head', 'bbox_head'):
        if hasattr(model, head):
            fill(getattr(model, head), .1)
    return model.eval()


def guides(kind: str, num: int = 3) -> Tuple[Tensor, List[BaseDataElement]]:
    batch = Pictures(kind, num).batch()
    return torch.stack(list(map(to_images, batch['inputs']))), \
        batch['data_samples']


def generator(kind: str, name: str = 'vit', **kwargs) -> GuidedGenerator:
    made = GuidedGenerator(**dict(dict(iterations=STEPS), **kwargs))
    made.set_teacher(teacher(kind, name))
    made.collect([guides(kind)])
    return made


# ------------------------------------------------- papers' notes, section 7


@pytest.mark.parametrize('name', TEACHERS)
@pytest.mark.parametrize('kind', KINDS)
def test_zero_iterations_return_the_guide(kind, name):
    x, samples = guides(kind)
    made = generator(kind, name, iterations=0, noise=.1).generate(x, samples)
    assert torch.equal(made.images, x) and made.images is not x


@pytest.mark.parametrize('name', [*TEACHERS, 'modules'])
@pytest.mark.parametrize('kind', KINDS)
def test_loss_falls_and_the_teacher_is_unchanged(kind, name):
    before = snapshot(teacher(kind, name))
    x, samples = guides(kind)
    made = generator(
        kind, name, weights=dict(statistics=.001)).generate(x, samples)
    for own in made.losses:
        assert own['loss'] < own['start']
        assert {'task', 'statistics', 'tv', 'l2'} <= set(own)
    assert not torch.equal(made.images, x)
    assert len(made.history) == STEPS and made.history[-1] < made.history[0]
    assert same(before, snapshot(teacher(kind, name)))
    assert not teacher(kind, name).training
    assert 'extract_feat' not in vars(teacher(kind, name))


@pytest.mark.parametrize('name', TEACHERS)
@pytest.mark.parametrize('kind', KINDS)
def test_teachers_run_without_labels(kind, name):
    x, samples = guides(kind)
    for sample in samples:
        for field in ('gt_label', 'gt_sem_seg', 'gt_instances'):
            sample.pop(field, None)
    made = generator(kind, name, noise=.05).generate(x, samples)
    for own in made.losses:
        assert own['loss'] < own['start']
    # as if there were labels that nobody looks at
    x, samples = guides(kind)
    again = generator(kind, name, noise=.05, imitate=True).generate(x, samples)
    assert torch.allclose(made.images, again.images)


# --------------------------------------------------------------- each image


@pytest.mark.parametrize('settings', [
    dict(),
    dict(noise=.05),
    dict(layers=r'backbone\.trunk\.layers\.1', noise=.05),
    dict(motion=dict(flip=True)),
    dict(tokens=dict(share=.5)),
    dict(tokens=dict(share=.5, order='saliency')),
    dict(imitate=True, noise=.05),
    dict(canvas=dict(type='vim_mm.PyramidCanvas')),
])
@pytest.mark.parametrize('kind', KINDS)
def test_an_image_does_not_depend_on_its_batch(kind, settings):
    """But for the statistics of layers, which are left out here."""
    # Adam divides by what is almost nothing where a gradient is none
    made = generator(
        kind, weights=dict(statistics=0), iterations=3, **settings)
    x, samples = guides(kind)
    whole = made.generate(x, samples, [(0, ), (1, ), (2, )])
    alone = made.generate(x[1:2], samples[1:2], [(1, )])
    apart = (whole.images[1] - alone.images[0]).abs()
    assert apart.mean() < 1e-5
    assert whole.losses[1]['loss'] == pytest.approx(
        alone.losses[0]['loss'], rel=1e-3)
    assert (whole.images[1] - x[1]).abs().mean() > 1e-3


@pytest.mark.parametrize('kind', KINDS)
def test_losses_are_those_of_the_model_on_each_image(kind):
    model, (x, samples) = teacher(kind), guides(kind)
    made = generator(kind)
    seen = made.objective.teacher.see(x, samples)
    losses = made.objective.teacher.losses(seen)
    batch = Pictures(kind, 3).batch()
    for index in range(3):
        one = {key: value[index:index + 1] for key, value in batch.items()}
        data = model.data_preprocessor(one, training=True)
        wanted, _ = model.parse_losses(
            model.loss(data['inputs'], data['data_samples']))
        assert torch.allclose(losses[index], wanted, rtol=1e-4)


def annotations(sample: BaseDataElement) -> List[Tensor]:
    if 'gt_instances' in sample:
        return [sample.gt_instances.bboxes, sample.gt_instances.labels]
    return [
        sample.gt_sem_seg.data if 'gt_sem_seg' in sample else sample.gt_label
    ]


def test_annotations_of_the_guides_are_left_as_they_are():
    for kind in KINDS:
        x, samples = guides(kind)
        generator(
            kind, motion=dict(flip=True), iterations=3).generate(x, samples)
        for sample, other in zip(samples, guides(kind)[1]):
            assert sample.metainfo == other.metainfo
            for own, fresh in zip(annotations(sample), annotations(other)):
                assert torch.equal(own, fresh)


# ------------------------------------------------------------------- terms


def test_guidance_is_the_squared_difference_per_number():
    made = generator('cls', layers=r'backbone\.trunk\.layers\.[01]')
    x, samples = guides('cls')
    objective = made.objective
    guide = objective.read_guide(x, samples)
    other = (x + .1 * torch.randn_like(x)).clamp(0, 1)
    found = objective(other, samples, guide)[1]['guidance']
    wanted = torch.zeros(3)
    seen = objective.teacher.see(other, samples)
    for name, (features, ) in seen.guidance.items():
        for index in range(3):
            apart = features[index] - guide.guidance[name][0][index]
            wanted[index] += apart.square().sum() / apart.numel()
    assert torch.allclose(found, wanted) and found.min() > 0


def test_a_strong_guidance_keeps_features_at_the_guide():
    x, samples = guides('cls')
    kept = {}
    for weight in (0, 100):
        made = generator(
            'cls',
            weights=dict(guidance=weight, statistics=0),
            layers=r'backbone\.trunk\.layers\.2',
            iterations=15)
        images = made.generate(x, samples).images
        see = made.objective.teacher.see
        (a, ), (b, ) = (
            next(iter(see(i, samples).guidance.values())) for i in (images, x))
        kept[weight] = float((a - b).square().mean())
    assert kept[100] < kept[0] / 2


def test_a_student_that_disagrees_is_looked_for():
    x, samples = guides('cls')
    made = GuidedGenerator(
        iterations=15,
        weights=dict(task=0, agreement=5., statistics=0),
        noise=.02)
    torch.manual_seed(3)
    student = build_model('cls', dict(trunk=vit()))
    fill(student.head, 1.)
    made.set_teacher(teacher('cls'), student)
    before = made.objective(x, samples, made.objective.read_guide(x, samples))
    after = made.generate(x, samples)
    for index, own in enumerate(after.losses):
        assert own['agreement'] < float(before[1]['agreement'][index])


@pytest.mark.parametrize(('settings', 'sentence'), [
    (dict(weights=dict(tvv=1)), 'weights` has tvv'),
    (dict(iterations=-1), '`iterations` is -1'),
    (dict(warmup=1.), '`warmup` is 1.0'),
    (dict(motion=dict(shake=1)), 'takes no shake'),
    (dict(statistics=dict(model=1)), 'takes no model'),
    (dict(tokens=dict(share=1.)), '`tokens.share` is 1.0'),
    (dict(tokens=dict(order='worst')), "`tokens.order` is 'worst'"),
])
def test_settings_without_meaning_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        GuidedGenerator(**settings)


@pytest.mark.parametrize(('kind', 'name', 'settings', 'sentence'), [
    ('cls', 'vit', dict(weights=dict(agreement=1)), 'with a student, and'),
    ('cls', 'vit', dict(layers='nothing'), 'matches no submodule'),
    ('cls', 'bn', dict(tokens=dict()), 'token dropping is for vision'),
    ('det', 'vit', dict(motion=dict(jitter=2)), 'jitter=0 for detection'),
    ('cls', 'vit', dict(layers='head'), 'does not run in the backbone'),
    ('cls', 'modules', dict(tokens=dict()), 'cannot leave tokens out'),
    ('cls', 'swin', dict(tokens=dict()), 'cannot leave tokens out'),
])
def test_what_a_teacher_cannot_do_is_said(kind, name, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        made = GuidedGenerator(iterations=1, **settings)
        made.set_teacher(teacher(kind, name))
        made.generate(*guides(kind))


def test_a_teacher_without_normaliser_is_refused():
    model = build_model('cls', dict(trunk=vit()))
    model.data_preprocessor._enable_normalize = False
    with pytest.raises(ValueError, match='how its images are normalised'):
        GuidedGenerator().set_teacher(model)


# ------------------------------------------------------------------ tokens


def test_dropped_tokens_are_the_guides_and_the_rest_is_computed():
    made = generator('cls', tokens=dict(share=.5))
    x, samples = guides('cls')
    objective, stream = made.objective, made.objective.stream
    guide = objective.read_guide(x, samples)
    other = (x + .1 * torch.randn_like(x)).clamp(0, 1)
    stream.draw(other, [torch.Generator().manual_seed(i) for i in range(3)])
    assert stream.kept.shape == (3, 1 + 8)  # the class token and 8 of 16
    assert (stream.kept[:, 0] == 0).all()
    lengths = []
    hook = teacher('cls').backbone.trunk.layers[1].ffn.register_forward_hook(
        lambda module, args, out: lengths.append(out.shape[1]))
    inputs = objective.teacher.see(other, samples).inputs
    lengths.clear()
    before = dict(stream.last)
    with stream.dropping_tokens():
        seen = teacher('cls').backbone(inputs)
    hook.remove()
    assert lengths == [9]
    own = before['trunk.layers.2'][:, 1:].transpose(1, 2)
    kept = torch.zeros(3, 16, dtype=torch.bool)
    kept.scatter_(1, stream.kept[:, 1:] - 1, True)
    found = seen[2].flatten(2)
    for index in range(3):
        left_out = ~kept[index]
        assert torch.equal(found[index][:, left_out], own[index][:, left_out])
        apart = (found[index] - own[index])[:, kept[index]]
        assert apart.abs().min(0).values.max() > 0
    assert guide.outputs == []
    # from now on these are what was last computed
    assert torch.equal(stream.last['trunk.layers.2'][:, 1:].transpose(1, 2),
                       found)


def look(made: GuidedGenerator, x: Tensor, samples: list,
         drop: bool) -> Tuple[Tensor, Tensor]:
    """The loss of each image, and its gradient."""
    x = x.clone().requires_grad_()
    guide = made.objective.read_guide(x, samples)
    loss, _ = made.objective(x, samples, guide, drop)
    loss.sum().backward()
    return loss.detach(), x.grad


@pytest.mark.parametrize('name', ['vit', 'timm'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_step_without_some_tokens_sees_what_all_see(kind, name):
    """As long as nothing has moved; without statistics the gradient, too."""
    x, samples = guides(kind)
    x = (x + .1 * torch.randn_like(x)).clamp(0, 1)
    for weight in (.01, 0):
        made = generator(kind, name, tokens=dict(share=.5),
                         weights=dict(statistics=weight, tv=0, l2=0))
        stream = made.objective.stream
        loss, _ = look(made, x, samples, False)
        stream.draw(x, [torch.Generator().manual_seed(i) for i in range(3)])
        part, grad = look(made, x, samples, True)
        assert torch.allclose(part, loss, rtol=1e-4)
    # the slow way: all tokens are computed, those left out have no gradient
    with ExitStack() as stack:
        for block in stream.modules.values():
            hook = block.register_forward_hook(partial(held, stream.kept))
            stack.callback(hook.remove)
        _, slow = look(made, x, samples, False)
    side = x.shape[-1] // 4  # 4 x 4 patches
    kept = torch.zeros(3, 16).scatter_(1, stream.kept[:, 1:] - 1, 1.)
    seen = kept.view(3, 1, 4, 4).repeat_interleave(side, 2).repeat_interleave(
        side, 3).expand_as(x).bool()
    assert grad[seen].abs().max() > 0 and (grad[~seen] == 0).all()
    assert torch.allclose(grad[seen], slow[seen], rtol=1e-3, atol=1e-8)


def held(kept: Tensor, _: nn.Module, args: tuple, output: Tensor) -> Tensor:
    index = kept[..., None].expand(-1, -1, output.shape[2])
    return output.detach().scatter(1, index, output.gather(1, index))


def test_dropping_no_token_changes_nothing():
    x, samples = guides('cls')
    plain = generator('cls').generate(x, samples)
    none = generator('cls', tokens=dict(share=0.)).generate(x, samples)
    assert plain.history == pytest.approx(none.history, rel=1e-4)


def test_tokens_without_gradient_are_dropped_rather():
    made = generator('cls', tokens=dict(share=.5, order='saliency'))
    x, samples = guides('cls')
    stream = made.objective.stream
    made.objective.read_guide(x, samples)
    grad = torch.zeros_like(x)
    grad[..., :28] = 1  # the left half
    draws = [torch.Generator().manual_seed(i) for i in range(3)]
    counts = torch.zeros(16)
    for _ in range(60):
        stream.draw(x, draws)
        stream.learn(grad)
        counts += torch.bincount(
            (stream.kept[:, 1:] - 1).flatten(), minlength=16)
    left = counts.view(4, 4)[:, :2]
    assert left.sum() > 1.5 * counts.view(4, 4)[:, 2:].sum()
    assert counts.min() > 0  # none is dropped for good
