from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.fakes import TinyModel
from segtailor.errors import SegtailorError
from segtailor.evaluation import predict_logits
from segtailor.evaluation.render import colorize
from segtailor.jobs.predict import predict
from segtailor.models import create_model, save_model
from segtailor.models.adapters.python_module import adapt

PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def _photo(path, size=(10, 12), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return noise


def _read(path):
    return np.asarray(Image.open(path))


def test_one_image_gives_indices_colours_and_overlay_at_its_own_size(tmp_path):
    photo, model = _photo(tmp_path / "a.png"), TinyModel()
    (mask,) = predict(model, tmp_path / "a.png", tmp_path / "out", palette=PALETTE)
    assert mask == tmp_path / "out/index/a.png"
    assert Image.open(mask).mode == "L"
    with torch.no_grad():
        labels = predict_logits(model, torch.from_numpy(photo).permute(2, 0, 1)[None], (10, 12))[0].argmax(0).numpy()
    assert (_read(mask) == labels).all()
    assert (_read(tmp_path / "out/color/a.png") == colorize(labels, PALETTE)).all()
    assert _read(tmp_path / "out/overlay/a.png").shape == (10, 12, 3)


def test_a_folder_is_read_with_its_folders_and_other_files_are_named(tmp_path):
    _photo(tmp_path / "in/a.png")
    _photo(tmp_path / "in/deep/a.png", seed=1)
    _photo(tmp_path / "in/deep/b.JPG", size=(7, 9))
    (tmp_path / "in/list.txt").write_text("x")
    noted = []
    written = predict(TinyModel(), tmp_path / "in", tmp_path / "in/out", note=noted.append)
    names = sorted(path.relative_to(tmp_path / "in/out/index").as_posix() for path in written)
    assert names == ["a.png", "deep/a.png", "deep/b.png"]
    assert noted == ["skipped, not an image: list.txt"]
    again = predict(TinyModel(), tmp_path / "in", tmp_path / "in/out", note=noted.append)
    assert again == written  # files in the output folder are not taken for input


def test_images_that_differ_in_their_suffix_alone_both_get_a_mask(tmp_path):
    _photo(tmp_path / "in/a.png")
    _photo(tmp_path / "in/a.bmp")
    written = predict(TinyModel(), tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in written) == ["a.bmp.png", "a.png.png"]


def test_an_unreadable_image_is_named_and_the_others_are_kept(tmp_path):
    _photo(tmp_path / "in/a.png")
    _photo(tmp_path / "in/c.png")
    (tmp_path / "in/b.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(SegtailorError, match=r"1 of 3 images cannot be read: .*b\.png .*; the other 2 are in") as error:
        predict(TinyModel(), tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (tmp_path / "out/index").iterdir()) == ["a.png", "c.png"]


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(SegtailorError, match="no such file or folder"):
        predict(TinyModel(), tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SegtailorError, match="no images in"):
        predict(TinyModel(), tmp_path, tmp_path / "out")


def test_images_are_resized_for_the_network_and_masks_back(tmp_path):
    _photo(tmp_path / "a.png", size=(20, 30))
    model = TinyModel()
    (mask,) = predict(model, tmp_path / "a.png", tmp_path / "out", size=(8, 10))
    assert model.seen == [(1, 3, 8, 10)]
    assert _read(mask).shape == (20, 30)


def test_a_sliding_window_is_used(tmp_path):
    _photo(tmp_path / "a.png", size=(8, 12))
    model = TinyModel()
    predict(model, tmp_path / "a.png", tmp_path / "out", mode="slide", window=(8, 8), stride=(8, 4))
    assert model.seen == [(1, 3, 8, 8)] * 2


def test_size_and_colours_come_from_the_card(tmp_path):
    model = create_model("deeplabv3plus-lcnet_035", 3)
    card = {"palette": PALETTE, "recipe": {"data": {"size": [32, 48]}}}
    save_model(model, tmp_path / "student.safetensors", card)
    _photo(tmp_path / "a.png", size=(20, 30))
    predict(tmp_path, tmp_path / "a.png", tmp_path / "out", device="cpu")
    colors = {tuple(pixel) for pixel in _read(tmp_path / "out/color/a.png").reshape(-1, 3).tolist()}
    assert colors <= set(PALETTE)


def test_the_models_mode_is_put_back_and_a_wrong_device_is_named(tmp_path):
    _photo(tmp_path / "a.png")
    model = TinyModel().train()
    predict(model, tmp_path / "a.png", tmp_path / "out")
    assert model.training
    with pytest.raises(SegtailorError, match="device 'gpu'"):
        predict(model, tmp_path / "a.png", tmp_path / "out", device="gpu")


def test_images_in_memory_give_labels_at_their_own_size(tmp_path):
    save_model(create_model("deeplabv3plus-lcnet_035", 3), tmp_path / "student.safetensors", SIZED)
    photo = _photo(tmp_path / "a.png", size=(20, 30))
    (mask,) = predict(tmp_path, tmp_path / "a.png", tmp_path / "out")
    expected = _read(mask)
    picture, tensor = Image.fromarray(photo), torch.from_numpy(photo).permute(2, 0, 1)
    for image in (photo, picture, tensor, tensor / 255, tmp_path / "a.png"):
        labels = predict(tmp_path, image)
        assert (labels.dtype, labels.shape) == (np.uint8, (20, 30))
        assert (labels == expected).all()
    several = predict(tmp_path, [photo, photo[:10]], size=(16, 16))
    assert [labels.shape for labels in several] == [(20, 30), (10, 30)]


SIZED = {"palette": PALETTE, "recipe": {"data": {"size": [32, 48]}}}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"the image has the shape \(3, 8, 8\), not \(height, width, 3\)"),
        (torch.full((3, 8, 8), -1.5), "the image is float32 from -1.5 to -1.5; give bytes of 0 to 255"),
        (7, "the image is a int"),
        ([np.zeros((8, 8, 3), np.uint8), None], "image 1 is a NoneType"),
    ],
)
def test_what_is_no_image_is_named(image, message):
    with pytest.raises(SegtailorError, match=message) as error:
        predict(TinyModel(), image)
    assert "\n" not in str(error.value)


def test_files_need_a_place_for_their_masks_and_images_do_not(tmp_path):
    with pytest.raises(SegtailorError, match="is a folder; add out"):
        predict(TinyModel(), tmp_path)
    with pytest.raises(SegtailorError, match="is no file"):
        predict(TinyModel(), tmp_path / "nowhere.png")
    with pytest.raises(SegtailorError, match="leave it out"):
        predict(TinyModel(), np.zeros((8, 8, 3), np.uint8), tmp_path)


def test_an_output_folder_spelled_otherwise_is_not_read(tmp_path, monkeypatch):
    _photo(tmp_path / "in/a.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        written = predict(TinyModel(), "in", tmp_path / "in/out")
        assert len(written) == 1


@pytest.mark.parametrize("out", [".", "in", "in/.", "in/../in"])
def test_an_output_folder_that_holds_the_images_is_refused(tmp_path, monkeypatch, out):
    _photo(tmp_path / "in/a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SegtailorError, match=r"^in is in .*, the folder for masks"):
        predict(TinyModel(), "in", out)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.png"]


@pytest.mark.parametrize("wrap", [lambda logits: logits, lambda logits: {"out": logits}, lambda logits: (logits, None)])
def test_a_plain_module_gets_raw_pixels_as_floats(wrap):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 3, 2, stride=2)
            self.upsample = nn.Upsample(scale_factor=2)  # no way to enlarge logits

        def forward(self, images):
            seen.append((images.dtype, images.max().item()))
            return wrap(self.head(images))

    photo = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    net, seen = Plain(), []
    labels = predict(net, photo)
    assert seen == [(torch.float32, photo.max())]
    raw = adapt(net, 3, preprocess={"mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1.0})
    assert labels.shape == (10, 12)
    assert (labels == predict(raw, photo)).all()


def test_what_predict_does_not_take_is_named():
    photo = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(SegtailorError, match="'sise'; nearest: size"):
        predict(TinyModel(), photo, sise=(8, 8))
    for name in ("size", "window", "stride"):
        for value in ("64x", "64", 64, (64,), (64, 0), (64.5, 64), (8, 8, 8)):
            with pytest.raises(SegtailorError, match=rf"^{name} is \(height, width\) in pixels"):
                predict(TinyModel(), photo, **{name: value})
    with pytest.raises(SegtailorError, match="mode is 'whole' or 'slide', not 'slid'"):
        predict(TinyModel(), photo, mode="slid")
    with pytest.raises(SegtailorError, match=r"a torch.nn.Module, not NoneType"):
        predict(None, photo)
