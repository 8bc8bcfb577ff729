# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""LoRA modules as PEFT's adapter directories, and back.

    python tools/model_converters/peft_adapter.py export zoo flowers \\
        adapters/flowers --layout clip
    python tools/model_converters/peft_adapter.py import adapters/flowers \\
        zoo flowers-2 --trunk configs/_base_/trunks/clip_vit-b16.py
"""

import argparse

import vim_mm  # noqa: F401
from vim_mm.interchange import LAYOUTS, export_adapter, import_adapter
from vim_mm.models.backbones import build_trunk
from vim_mm.utils.cli import run_cli
from vim_mm.utils.config import config_of
from vim_mm.zoo import ZooError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="LoRA modules as PEFT's adapter directories, and back")
    commands = parser.add_subparsers(dest='command', required=True)
    out = commands.add_parser('export', help='a module to an adapter')
    out.add_argument('zoo', help='directory of the zoo')
    out.add_argument('name', help='the module, of the kind LoRA')
    out.add_argument('adapter', help='directory to make')
    out.add_argument(
        '--layout',
        choices=LAYOUTS,
        required=True,
        help='; '.join(f'{key}: {v.models}' for key, v in LAYOUTS.items()))
    out.add_argument(
        '--prefix',
        default='',
        help='what the model puts before these names, such as vit for '
        'ViTForImageClassification')
    out.add_argument('--base-model', help='name or path of the model')
    into = commands.add_parser('import', help='an adapter to a module')
    into.add_argument('adapter', help='directory that PEFT wrote')
    into.add_argument('zoo', help='directory of the zoo')
    into.add_argument('name', help='name of the new module')
    into.add_argument(
        '--trunk',
        required=True,
        help="config with the `trunk` that is the adapter's base model")
    into.add_argument('--dataset', help='what it was trained on')
    into.add_argument('--task', choices=('cls', 'det', 'seg'))
    into.add_argument('--licence', help='licence of the adapter')
    return parser.parse_args()


def trunk_of(path: str) -> dict:
    """The config of the trunk in a trunk's or a model's config."""
    cfg = config_of(path)
    backbone = cfg.get('model', {}).get('backbone', {})
    trunk = cfg.get('trunk') or backbone.get('trunk')
    if trunk is None:
        raise ZooError(f"'{path}' holds neither `trunk` nor "
                       '`model.backbone.trunk`: name a config of '
                       'configs/_base_/trunks, or of a model.')
    return trunk


def main() -> None:
    """Convert what the command line names."""
    args = parse_args()
    if args.command == 'export':
        path = export_adapter(args.zoo, args.name, args.adapter, args.layout,
                              args.prefix, args.base_model)
        print(f"'{args.name}' is written to {path}")
        return
    trunk = trunk_of(args.trunk)
    weights = (trunk.get('init_cfg') or {}).get('checkpoint')
    card = import_adapter(
        args.adapter,
        args.zoo,
        args.name,
        build_trunk(trunk),
        trunk_card=dict(weights=weights) if weights else None,
        dataset=args.dataset,
        task=args.task,
        licence=args.licence)
    print(f"'{card.name}': {len(card.slots)} layers, rank "
          f'{card.adapter["rank"]}, {card.num_params:,} parameters')


if __name__ == '__main__':
    run_cli(main)
