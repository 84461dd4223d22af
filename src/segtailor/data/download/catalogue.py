"""The data sets that anyone may fetch, with addresses, lengths and checksums; and finding a data set's entry.

Lengths and checksums are those that the publishers (Zenodo) or independent projects that fetch the same files state:
torchvision (VOC, SBD), TensorFlow Datasets (VOC, ADE20K, COCO) and TorchGeo (LoveDA). For COCO-Stuff's own two archives
nobody states one.
"""

from __future__ import annotations

from segtailor.data.ade20k import ADE20K
from segtailor.data.coco_stuff import COCO_STUFF, ROOT_10K
from segtailor.data.download.archive import Archive
from segtailor.data.download.entry import Download, Entry
from segtailor.data.download.manual import MANUAL, OWN
from segtailor.data.download.matlab import SCRATCH, convert_stuff, merge_boundaries
from segtailor.data.loveda import LOVEDA
from segtailor.data.voc import VOC
from segtailor.errors import SegtailorError, unknown

GB = 10**9
STUFF = "calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
BOUNDARIES = "eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
VOC_FILE = "VOCtrainval_11-May-2012.tar"


def _zenodo(file: str, length: int, md5: str) -> Archive:
    folder = file.removesuffix(".zip") + "/"
    url = f"https://zenodo.org/records/5706578/files/{file}?download=1"
    return Archive(file, (url,), length, f"md5:{md5}", {folder: folder}, length)


def _coco(file: str, length: int, sha256: str) -> Archive:
    folder = file.removesuffix(".zip") + "/"
    url = f"http://images.cocodataset.org/zips/{file}"
    return Archive(file, (url,), length, f"sha256:{sha256}", {folder: f"images/{folder}"}, length)


DOWNLOADS = (
    Download(
        VOC,
        f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and https://www2.{BOUNDARIES}/",
        (
            Archive(
                VOC_FILE,
                (
                    f"https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC_FILE}",
                    f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC_FILE}",
                ),
                1_999_639_040,
                "sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                {"VOCdevkit/VOC2012/": ""},
                2 * GB,
            ),
            Archive(
                "benchmark.tgz",
                (f"https://www2.{BOUNDARIES}/benchmark.tgz", f"http://www.{BOUNDARIES}/benchmark.tgz"),
                1_419_539_633,
                "md5:82b4d87ceb2ed10f6038a1cba92111cb",
                {"benchmark_RELEASE/dataset/cls/": f"{SCRATCH}/cls/"},
                GB // 2,
            ),
        ),
        convert=merge_boundaries,
    ),
    Download(
        ADE20K,
        "https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/",
        (
            Archive(
                "ADEChallengeData2016.zip",
                (
                    "https://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                ),
                967_382_037,
                "sha256:7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
                {"ADEChallengeData2016/": ""},
                GB,
            ),
        ),
    ),
    Download(
        COCO_STUFF,
        "https://github.com/nightrome/cocostuff and https://cocodataset.org/#termsofuse",
        (
            Archive(
                "stuffthingmaps_trainval2017.zip",
                (f"http://{STUFF}/stuffthingmaps_trainval2017.zip", f"https://{STUFF}/stuffthingmaps_trainval2017.zip"),
                659 * 2**20,
                None,
                {"train2017/": "annotations/train2017/", "val2017/": "annotations/val2017/"},
                GB,
            ),
            _coco("val2017.zip", 815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
            _coco("train2017.zip", 19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
        ),
    ),
    Download(
        COCO_STUFF,
        "https://github.com/nightrome/cocostuff10k and https://cocodataset.org/#termsofuse",
        (
            Archive(
                "cocostuff-10k-v1.1.zip",
                (f"http://{STUFF}/cocostuff-10k-v1.1.zip", f"https://{STUFF}/cocostuff-10k-v1.1.zip"),
                2 * GB,
                None,
                {"images/": "images/", "imageLists/": "imageLists/", "annotations/": f"{SCRATCH}/annotations/"},
                3 * GB,
            ),
        ),
        convert=convert_stuff,
        variant="10k",
        default_root=ROOT_10K,
    ),
    Download(
        LOVEDA,
        "https://zenodo.org/records/5706578",
        (
            _zenodo("Train.zip", 4_021_669_263, "de2b196043ed9b4af1690b3f9a7d558f"),
            _zenodo("Val.zip", 2_425_958_254, "84cae2577468ff0b5386758bb386d31d"),
        ),
    ),
)


def find_entry(name: str, variant: str | None = None) -> Entry:
    """Return what is known of the data set ``name``, of its ``variant`` where its forms are different downloads.

    Raises ``SegtailorError`` for a name or variant that there is not.
    """
    plain = name.replace("_", "-")
    found = [entry for entry in (*DOWNLOADS, *MANUAL) if entry.known.name == plain]
    if not found and plain in OWN:
        return OWN[plain]
    if not found:
        raise unknown("data set", name, [*(entry.known.name for entry in (*DOWNLOADS, *MANUAL)), *OWN])
    if variant is None:
        return found[0]
    names = [form.name for form in found[0].known.variants]
    if variant not in names:
        if len(names) == 1:
            raise SegtailorError(f"{plain} has no variants; leave --variant out")
        raise unknown(f"variant of {plain}", variant, names)
    only = [entry for entry in found if isinstance(entry, Download) and entry.variant]
    return next((entry for entry in only if variant.startswith(str(entry.variant))), found[0])
