"""Image files as people have them: of every depth, with junk in their metadata, too large, of no kind that is read."""

import io
import os
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mbnp.datasets import images
from mbnp.datasets.images import files_in, read_image
from mbnp.errors import MbnpError

NIGHTLY = bool(os.environ.get("MBNP_NIGHTLY"))
RAMP = np.tile(np.arange(8), (8, 1))
LEVELS = [0, 36, 73, 109, 146, 182, 219, 255]  # of the ramp, scaled to 0..255


def tiff(values, **tags):
    """An uncompressed grey TIFF of any dtype; a tag is t281=(type, value)."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    (height, width), bits = values.shape, 8 * values.dtype.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    known = {256: (4, width), 257: (4, height), 258: (3, bits), 259: (3, 1), 262: (3, 1), 273: (4, 8), 277: (3, 1)}
    known |= {278: (4, height), 279: (4, len(data)), 339: (3, kind)}
    known |= {int(name[1:]): value for name, value in tags.items()}
    entries = [
        struct.pack("<HHI", tag, kind, 1) + struct.pack({9: "<i", 11: "<f"}.get(kind, "<I"), value)
        for tag, (kind, value) in sorted(known.items())
    ]
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def png16(values, kind):
    """A PNG of 16 bits a channel: kind 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def channels(values, count, alpha=False):
    bands = [values] * count + ([np.full_like(values, 65535)] if alpha else [])
    return np.stack(bands, axis=2)


def grey(content, tmp_path):
    """A row of the image as levels of grey, and the notes."""
    (tmp_path / "image").write_bytes(content)
    notes = []
    found = read_image(tmp_path / "image", 8, 1, notes.append)
    assert found.shape == (8, 8, 1)
    return found[3, :, 0].tolist(), notes


U16, U12, F = (RAMP * 9362).astype("u2"), (RAMP * 585).astype("u2"), (RAMP / 7).astype("f4")
SAID = {
    "16 bits": tiff(U16),
    "16 bits, PNG": png16(channels(U16, 1), 0),
    "16 bits, RGB": png16(channels(U16, 3), 2),
    "16 bits, with alpha": png16(channels(U16, 1, alpha=True), 4),
    "12 bits in 16, as the file says": tiff(U12, t281=(3, 4095)),
    "12 bits in 16, PGM": b"P5 8 8 4095\n" + U12.astype(">u2").tobytes(),
    "32 bits": tiff((RAMP * 613566756).astype("u4")),
    "signed, as the file says": tiff((RAMP * 300 - 1000).astype("i2"), t340=(9, -1000), t341=(9, 1100)),
    "float": tiff(F),
    "float, as the file says": tiff(F * 700, t340=(11, 0.0), t341=(11, 700.0)),
    "float, PFM": b"Pf 8 8 -1.0\n" + F.astype("<f4").tobytes(),
}
GUESSED = {
    "12 bits in 16": tiff(U12),
    "12 bits in 16, PNG": png16(channels(U12, 1), 0),
    "8 bits in 32": tiff((RAMP * 36).astype("u4")),
    "16 bits in 32": tiff(U16.astype("u4")),
    "signed 8": tiff((RAMP * 30 - 100).astype("i1")),
    "signed 16": tiff((RAMP * 300 - 1024).astype("i2")),
    "signed 16, from 0": tiff((RAMP * 300).astype("i2")),
    "signed 32": tiff((RAMP * 300 - 1000).astype("i4")),
    "float to 255": tiff(F * 255),
    "float from -1": tiff(2 * F - 1),
    "float to a thousandth": tiff(F / 1000),
}


@pytest.mark.parametrize("kind", SAID)
def test_the_range_that_the_file_says(kind, tmp_path):
    assert grey(SAID[kind], tmp_path) == (LEVELS, [])


@pytest.mark.parametrize("kind", GUESSED)
def test_a_range_of_its_own_with_a_note(kind, tmp_path):
    levels, (note,) = grey(GUESSED[kind], tmp_path)
    assert levels == LEVELS
    assert note.startswith(f"{tmp_path / 'image'}: the file does not say the range of its values: scaled by their own")


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_twelve_bits_in_colour_are_brightened(kind, tmp_path):
    levels, (note,) = grey(png16(channels(U12, 1 if kind == 4 else 3, alpha=kind > 2), kind), tmp_path)
    assert "brightened, with coarse steps" in note
    np.testing.assert_allclose(levels, LEVELS, atol=9)  # of Pillow's upper 8 bits, 4 are used


def test_deep_images_at_their_edges(tmp_path):
    assert grey(tiff(np.zeros((8, 8), "u2")), tmp_path) == ([0] * 8, [])  # what is black is black
    levels, notes = grey(tiff(np.full((8, 8), 3000, "u2")), tmp_path)
    assert (levels, len(notes)) == ([255] * 8, 1)
    assert grey(tiff(U16, t262=(3, 0)), tmp_path) == (LEVELS[::-1], [])  # white is zero
    for hole in (np.nan, np.inf):
        assert grey(tiff(np.where(RAMP == 3, np.float32(hole), F)), tmp_path) == ([*LEVELS[:3], 0, *LEVELS[4:]], [])
    levels, (note,) = grey(tiff(np.full((8, 8), np.nan, "f4")), tmp_path)
    assert levels == [0] * 8
    assert "none of its values is a number" in note
    with pytest.raises(MbnpError, match="a kind that Pillow does not read, as those of 64 bits are"):
        grey(tiff(F.astype("f8")), tmp_path)


# -- metadata ------------------------------------------------------------------------------------------------


def photographed(kind):
    """A file with much metadata, the places of that, and its pixels: turned by the camera, dark on top."""
    pixels = np.repeat(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8), 8, 0), 8, 1) * 4
    exif = Image.Exif()
    exif[images.ORIENTATION], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    exif.get_ifd(0x8825)[1] = "N"
    info = PngInfo()
    info.add_text("text", "more of it" * 5)
    info.add_itxt("text", "packed", zip=True)
    options = {"jpeg": {"comment": b"hello", "quality": 95}, "png": {"pnginfo": info}, "webp": {"lossless": True}}
    options["mpo"] = {"save_all": True, "append_images": [Image.new("L", (64, 64))], "quality": 95}
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, exif=exif.tobytes(), **options[kind])
    content, places, at = out.getvalue(), [], {"png": 8, "webp": 12}.get(kind, 2)
    while at < len(content):
        if kind == "png":
            (size,), first = struct.unpack(">I", content[at : at + 4]), content[at + 4]
            places += [(at + 8, at + 12 + size)] if first & 32 else []
            at += 12 + size
        elif kind == "webp":
            (size,) = struct.unpack("<I", content[at + 4 : at + 8])
            places += [(at + 8, at + 8 + size)] if content[at : at + 4] == b"EXIF" else []
            at += 8 + size + size % 2
        else:
            (size,), marker = struct.unpack(">H", content[at + 2 : at + 4]), content[at + 1]
            places += [(at + 4, at + 2 + size)] if marker == 0xFE or 0xE1 <= marker <= 0xEF else []
            at = len(content) if marker == 0xDA else at + 2 + size
    return content, places, pixels


@pytest.mark.parametrize("kind", ["jpeg", "mpo", "png", "webp"])
def test_junk_in_metadata_refuses_no_image(kind, tmp_path):
    content, places, pixels = photographed(kind)
    rng = np.random.default_rng(0)
    upright = 0
    turns = [np.rot90(pixels, k) for k in range(4)] + [np.rot90(pixels.T, k) for k in range(4)]
    for _ in range(2000 if NIGHTLY else 150):
        junk = bytearray(content)
        for _ in range(rng.integers(1, 12)):
            junk[rng.integers(*places[rng.integers(len(places))])] = rng.choice([0, 255, rng.integers(256)])
        (tmp_path / "junk").write_bytes(junk)
        found = read_image(tmp_path / "junk", 64, 1)[..., 0].astype(int)
        near = [abs(found - turned).mean() < 3 for turned in turns]
        assert any(near), "another image"
        upright += near[3]  # clockwise, as the orientation asked for
    assert upright > 20 or kind == "png"  # which goes without metadata when any of them is broken


def test_a_tiff_whose_metadata_lead_nowhere(tmp_path):
    for tag in (34665, 34853, 700, 33723, 42113):  # of EXIF, GPS, XMP, IPTC
        for value in (0, 7, 10**6, 2**32 - 1):
            assert grey(tiff(U16, **{f"t{tag}": (4, value)}), tmp_path) == (LEVELS, [])
    for value in (0, 9, 60000):
        assert grey(tiff(U16, t274=(3, value)), tmp_path) == (LEVELS, [])  # no orientation that there is
    assert grey(tiff(U16, t274=(3, 2)), tmp_path) == (LEVELS[::-1], [])  # turned once, and not twice


# -- what is refused, and files in folders ---------------------------------------------------------------------


def test_heic_names_its_plugin(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not there
    for brand in (b"heic", b"heix", b"mif1", b"hevc"):
        (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
        with pytest.raises(MbnpError, match=r"the plugin pillow-heif reads \(pip install pillow-heif\)"):
            read_image(tmp_path / "photo.heic", 8)


def test_heic_is_read_where_the_plugin_is(tmp_path, monkeypatch):
    """With a plugin that reads a PPM behind the head: what matters is that it is asked."""

    def register():
        from PIL import ImageFile

        class File(ImageFile.ImageFile):
            format = "TESTHEIF"

            def _open(self):
                self._size, self._mode = (8, 8), "L"
                self.tile = [ImageFile._Tile("raw", (0, 0, 8, 8), 12, ("L", 0, 1))]

        Image.register_open("TESTHEIF", File, lambda head: head[4:12] == b"ftypheic")

    before = dict(Image.OPEN), list(Image.ID)
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes([77] * 64))
    try:
        assert set(read_image(tmp_path / "photo.heic", 8).ravel()) == {77}
    finally:
        Image.OPEN.clear()
        Image.OPEN.update(before[0])
        Image.ID[:] = before[1]


def test_too_many_pixels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side, ok in ((31, True), (32, False), (46, False)):  # from 1000 on a warning of Pillow's, from 2000 an error
        Image.new("L", (side, side), 9).save(tmp_path / "large.png")
        if ok:
            assert read_image(tmp_path / "large.png", 8).max() == 9
        else:
            with pytest.raises(MbnpError, match=rf"large.png is too large: Image size \({side**2} pixels\).*smaller"):
                read_image(tmp_path / "large.png", 8)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 18, 3), dtype=np.uint8))
    small.resize((900, 600), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=98)
    with Image.open(tmp_path / "a.jpg") as image:
        image.convert("RGB").save(tmp_path / "a.png")
    jpeg, png = (read_image(tmp_path / name, 64).astype(int) for name in ("a.jpg", "a.png"))
    assert abs(jpeg - png).mean() < 2
    assert abs(jpeg - png).max() < 12


def test_only_grey_and_colour(tmp_path):
    with pytest.raises(MbnpError, match="2 were asked for"):
        read_image(tmp_path / "none.png", 8, 2)


def test_files_of_a_folder(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/deep/er/3.png", "0.png", ".hidden.png", "b/.DS_Store", ".git/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "round").symlink_to(tmp_path)  # a circle
    expected = ["0.png", "a/deep/er/3.png", "b/1.png", "b/2.png"]
    assert sorted(os.path.relpath(path, tmp_path) for path in files_in(tmp_path)) == expected
