"""Every kind of image becomes RGB uint8 (3, H, W), or an error that names it."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from livt_hf.data import decode_image, decoding


def photo(height=20, width=30):
    """A smooth color image (H, W, 3), which JPEG keeps nearly unchanged."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 8, x * 8, 255 - (x + y) * 5], axis=-1).clip(0, 255).astype(np.uint8)


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def as_array(tensor):
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "TIFF"])
def test_lossless_formats_come_back_exactly(format):
    data = encode(PIL.Image.fromarray(photo()), format, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(as_array(decode_image(data)), photo())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_equals_pil(options):
    data = encode(PIL.Image.fromarray(photo()), "JPEG", quality=95, **options)
    ours, theirs = as_array(decode_image(data)), np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_bytes_path_and_row_are_the_same(tmp_path):
    data = encode(PIL.Image.fromarray(photo()), "PNG")
    (tmp_path / "wrong_extension.jpg").write_bytes(data)
    for image in (data, tmp_path / "wrong_extension.jpg", {"bytes": data, "path": "elsewhere.png"}):
        assert np.array_equal(as_array(decode_image(image)), photo())
    assert np.array_equal(
        as_array(decode_image({"bytes": None, "path": str(tmp_path / "wrong_extension.jpg")})), photo()
    )


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_grayscale_becomes_three_equal_channels(format):
    gray = PIL.Image.fromarray(photo()[..., 0])
    decoded = as_array(decode_image(encode(gray, format)))
    assert decoded.shape == (20, 30, 3)
    assert (decoded == decoded[..., :1]).all()
    assert np.abs(decoded[..., 0].astype(int) - photo()[..., 0]).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_and_colors_kept(mode):
    image = PIL.Image.fromarray(photo()).convert(mode)
    image.putalpha(7)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(as_array(decode_image(encode(image, "PNG"))), expected)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 2))])
def test_palettes_with_and_without_transparency(transparency):
    image = PIL.Image.fromarray(photo()).quantize(128)
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(as_array(decode_image(encode(image, "PNG", **options))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(format):
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    decoded = as_array(decode_image(encode(PIL.Image.fromarray(values), format)))
    assert np.array_equal(decoded[..., 1], np.rint(values / 257).astype(np.uint8))


def test_cmyk_jpeg_equals_pil():
    image = PIL.Image.fromarray(photo()).convert("CMYK")
    data = encode(image, "JPEG", quality=95)
    assert np.array_equal(as_array(decode_image(data)), np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(as_array(decode_image(data)).astype(int) - photo()).mean() < 5


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encode(PIL.Image.fromarray(photo()), format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == ((20, 30, 3) if orientation <= 4 else (30, 20, 3))
    assert np.abs(as_array(decode_image(data)).astype(int) - expected).max() <= 2


def test_an_animation_gives_its_first_frame():
    frames = [PIL.Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert as_array(decode_image(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_one_pixel_image(format):
    assert decode_image(encode(PIL.Image.new("RGB", (1, 1), "white"), format)).tolist() == [[[255]]] * 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "not an image"),
        (encode(PIL.Image.fromarray(photo(200, 300)), "JPEG")[:2000], r"cannot be decoded \(.*truncated"),
        (encode(PIL.Image.fromarray(photo()), "JPEG")[:10], "cannot be decoded"),
        (encode(PIL.Image.fromarray(photo(200, 300)), "PNG")[:500], r"cannot be decoded \(.*truncated"),
        (b"\xff\xd8\xff\xe0" + b"\xff" * 40, "cannot be decoded"),
    ],
)
def test_broken_images_are_named(tmp_path, data, reason):
    file = tmp_path / "broken.jpg"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{file}: {reason}") as caught:
        decode_image(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^row 12: {reason}"):
        decode_image({"bytes": data, "path": None}, name="row 12")


def test_missing_files_and_missing_images_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jpg: no such file"):
        decode_image(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match="row 3: contains neither an image nor a path"):
        decode_image({"bytes": None, "path": None}, name="row 3")
    with pytest.raises(ValueError, match="row 3: "):
        decode_image(None, name="row 3")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(format, monkeypatch):
    data = encode(PIL.Image.new("L", (400, 300)), format)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(ValueError, match="bomb: cannot be decoded .*(120000 pixels|400 x 300 pixels)"):
        decode_image(data, name="bomb")


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    """Simulated, because root can read every file."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(decoding, "read_image", refuse)
    with pytest.raises(ValueError, match=r"secret\.jpg: no permission to read it"):
        decode_image(tmp_path / "secret.jpg")
