"""Write a transformers SegFormer for CamVid, as transformers saves one, with statistics of its own (pixels in -1..1).

    python examples/segformer-to-smp/segformer.py fresh runs/segformer-fresh
    python examples/segformer-to-smp/segformer.py trained runs/camvid-segformer runs/segformer-trained

``fresh`` writes a SegFormer-B0 with a narrow decoder and random weights, for `segtailor train` or `distill`;
``trained`` takes the network of a run out of our file and saves it with transformers alone, so that `hf:FOLDER` reads
what transformers wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from segtailor.data.camvid import CAMVID

HALF = [0.5, 0.5, 0.5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fresh = commands.add_parser("fresh", help="random weights")
    fresh.add_argument("folder", type=Path)
    trained = commands.add_parser("trained", help="the weights of a run")
    trained.add_argument("run", type=Path)
    trained.add_argument("folder", type=Path)
    options = parser.parse_args()
    net = network() if options.command == "fresh" else network_of(options.run)
    net.save_pretrained(options.folder)
    processor().save_pretrained(options.folder)
    print(options.folder)


def network() -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    names = dict(enumerate(CAMVID.variants[0].classes))
    torch.manual_seed(0)
    numbers = {name: index for index, name in names.items()}
    config = SegformerConfig(id2label=names, label2id=numbers, decoder_hidden_size=64)
    return SegformerForSemanticSegmentation(config)


def network_of(run: Path) -> Any:
    from segtailor import load_model

    return load_model(run).net


def processor() -> Any:
    from transformers import SegformerImageProcessor

    return SegformerImageProcessor(image_mean=HALF, image_std=HALF)


if __name__ == "__main__":
    main()
