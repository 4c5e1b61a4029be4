"""Pictures of many kinds are read as other libraries read them, or refused by a sentence."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from conftest import smooth_noise

from dataset.pictures import decode, read_image
from utils.files import UserError


def jpeg_bytes() -> bytes:
    return cv2.imencode(".jpg", smooth_noise())[1].tobytes()


def test_read_image_refuses_what_it_cannot_show(tmp_path):
    jpeg = jpeg_bytes()
    path = tmp_path / "face.jpg"
    path.write_bytes(jpeg)
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))

    for damaged in (jpeg[:-2], jpeg[: len(jpeg) // 2], b"", b"no image at all"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"face\.jpg is damaged"):
            read_image(path)

    path.unlink()
    with pytest.raises(UserError, match=r"face\.jpg does not exist"):
        read_image(path)


@pytest.mark.parametrize(
    "tail", [bytes(100_000), b"sent by a telephone" * 5000, jpeg_bytes(), b"\xff\xda\0\0" * 99]
)
def test_a_jpeg_may_be_followed_by_anything(tmp_path, tail):
    jpeg = jpeg_bytes()
    path = tmp_path / "face.jpg"
    path.write_bytes(jpeg + tail)
    np.testing.assert_array_equal(read_image(path), decode(jpeg))


def test_a_jpeg_with_a_preview_whose_own_picture_is_cut_is_damaged(tmp_path):
    jpeg, preview = jpeg_bytes(), cv2.imencode(".jpg", smooth_noise(20, 30))[1].tobytes()
    segment = b"\xff\xe5" + (len(preview) + 2).to_bytes(2, "big") + preview
    (tmp_path / "face.jpg").write_bytes(jpeg[:2] + segment + jpeg[2 : len(jpeg) // 2])
    with pytest.raises(UserError, match="damaged"):
        read_image(tmp_path / "face.jpg")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_deep_pictures_keep_the_upper_bits_in_use(bits, suffix):
    plain = smooth_noise()
    plain[0, 0] = 255
    deep = plain.astype(np.uint16) << (bits - 8)
    read = decode(cv2.imencode(suffix, deep)[1].tobytes())
    assert np.abs(read.astype(int) - plain).max() <= (1 if suffix == ".tif" else 0)

    grey = deep[..., 0]
    alpha = np.dstack([grey, grey, grey, np.full_like(grey, deep.max())])
    for pixels in (grey, alpha):
        read = decode(cv2.imencode(suffix, pixels)[1].tobytes())
        assert np.abs(read.astype(int) - plain[..., :1]).max() <= (1 if suffix == ".tif" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_avif_is_upright(orientation):
    image = pytest.importorskip("PIL.Image", reason="Pillow writes the turned AVIF")
    ops = pytest.importorskip("PIL.ImageOps")
    stored = image.fromarray(smooth_noise()[..., ::-1])
    exif = image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "AVIF", exif=exif.tobytes(), quality=100)

    stored.getexif()[0x0112] = orientation
    upright = np.asarray(ops.exif_transpose(stored))[..., ::-1]
    read = decode(file.getvalue())
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 5


def test_heic_gets_a_sentence(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(UserError, match="is HEIC, which OpenCV does not read; save it as JPEG"):
        read_image(tmp_path / "a.heic")
