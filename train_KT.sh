#!/usr/bin/env bash
# Knowledge Tailoring on Cityscapes, DeepLabV3-ResNet101 to DeepLabV3-ResNet18, with the published settings.
# Needs data/cityscapes (leftImg8bit, gtFine), weights/deeplabv3_resnet101_citys_best_model.pth and
# weights/resnet18-imagenet.pth. Any field of the recipe can be set, as in: ./train_KT.sh --train.devices 4
set -euo pipefail
cd "$(dirname "$0")"
segtailor=segtailor
[ -x .venv/bin/segtailor ] && segtailor=.venv/bin/segtailor
exec "$segtailor" distill published-kt-cityscapes-deeplabv3-r101-r18 "$@"
