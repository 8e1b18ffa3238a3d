import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_poison.shell.image_files import find_images, read_images


@pytest.fixture
def folder(tmp_path):
    """Return a factory of a folder of images: `add("cat/0.png", image)`."""

    def add(name, image, **options):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        return path

    add.root = tmp_path / "images"
    return add


def read(folder, **settings):
    files, left_out = find_images(folder.root)
    images, more = read_images(files, **settings)
    return images, [*left_out, *more]


def gray(value=128, size=(8, 8)):
    return Image.new("L", size, value)


def test_images_of_one_size_are_read_as_they_are(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    folder("dog/b.png", Image.fromarray(pixels))
    folder("cat/deep/a.png", gray(size=(7, 9)))
    images, left_out = read(folder)
    assert (images.classes, images.targets, left_out) == (["cat", "dog"], [0, 1], [])
    assert [Path(path).name for path, _ in images.samples] == ["a.png", "b.png"]
    found, label = images[1]
    assert label == 1
    assert torch.equal(found, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    assert images[0][0].unique().tolist() == [pytest.approx(128 / 255)]


def test_gray_images_have_one_channel(folder):
    for number, mode in enumerate(("L", "1", "LA")):
        folder(f"a/{number}.png", gray().convert(mode))
    assert read(folder)[0].pixels.shape == (3, 1, 8, 8)


def test_images_of_several_sizes_are_scaled_without_cropping(folder):
    corner = gray(0, (200, 100))
    corner.paste(255, (160, 80, 200, 100))
    folder("a/0.png", corner)
    folder("a/1.png", gray(size=(20, 20)))
    images, _ = read(folder)
    assert images.pixels.shape == (2, 1, 96, 96)
    assert images.pixels[0, 0, -3:, -3:].min() > 250
    assert read(folder, image_size=16)[0].pixels.shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGB", (8, 8), (10, 200, 30)).convert("P"), None),
        (Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)), (128, 128, 128)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
    ],
    ids=["transparent", "opaque", "palette", "16 bits", "CMYK"],
)
def test_modes_look_as_a_person_sees_them(folder, image, expected):
    folder("a/0.tiff" if image.mode == "CMYK" else "a/0.png", image)
    folder("a/1.png", Image.new("RGB", (8, 8)))
    images, left_out = read(folder)
    assert not left_out
    found = tuple(images.pixels[0, :, 4, 4].tolist())
    assert found == (expected or tuple(image.convert("RGB").getpixel((4, 4))))


def test_images_of_16_bits_have_one_scale(folder):
    for number, brightest in enumerate((255, 256, 60_000)):
        values = np.zeros((8, 8), dtype=np.uint16)
        values[0] = brightest
        folder(f"a/{number}.png", Image.fromarray(values))
    assert read(folder)[0].pixels[:, 0, 0, 0].tolist() == [1, 1, 233]


def test_images_are_turned_as_their_exif_data_say(folder):
    image = gray(0, (8, 12))
    image.paste(255, (0, 0, 8, 2))  # a bright top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the top becomes the right side
    folder("a/0.jpg", image, exif=exif, quality=100)
    pixels = read(folder)[0].pixels
    assert pixels.shape == (1, 1, 8, 12)
    assert pixels[0, 0, :, -1].min() > 200
    assert pixels[0, 0, :, :8].max() < 60


def test_first_frame_of_an_animation(folder):
    folder("a/0.gif", gray(10), save_all=True, append_images=[gray(200)])
    assert int(read(folder)[0].pixels.max()) == 10


def test_files_that_cannot_be_read_are_listed_and_the_others_read(folder):
    folder("a/good.png", gray())
    truncated = folder("a/truncated.png", Image.effect_noise((64, 64), 50))
    truncated.write_bytes(truncated.read_bytes()[:300])
    (folder.root / "a" / "text.jpg").write_text("no image")
    (folder.root / "a" / "notes.txt").write_text("ignored")
    images, left_out = read(folder)
    assert len(images) == 1
    assert sorted(Path(each.name).name for each in left_out) == ["text.jpg", "truncated.png"]
    assert all(each.reason for each in left_out)


@pytest.mark.skipif(os.name == "nt", reason="links need rights of their own")
def test_links_out_of_the_folder_and_in_circles(folder, tmp_path):
    folder("a/good.png", gray())
    gray().save(tmp_path / "outside.png")
    (folder.root / "a" / "out.png").symlink_to(tmp_path / "outside.png")
    (folder.root / "a" / "circle").symlink_to(folder.root)
    (folder.root / "b").symlink_to(tmp_path)
    files, left_out = find_images(folder.root)
    assert [Path(path).name for path, _ in files] == ["good.png"]
    reasons = {Path(each.name).name: each.reason for each in left_out}
    assert "points outside the folder" in reasons["out.png"]
    assert "points outside the folder" in reasons["b"]


@pytest.mark.parametrize("loose", [False, True])
def test_refuses_a_folder_without_classes(tmp_path, loose):
    if loose:
        gray().save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"Put the images of each class into a separate folder"):
        find_images(tmp_path)


def test_refuses_if_nothing_can_be_read(folder):
    folder("a/0.png", gray()).write_bytes(b"")
    files, _ = find_images(folder.root)
    with pytest.raises(ValueError, match=r"1 that cannot, such as .*0\.png"):
        read_images(files)


def test_many_pixels_are_in_a_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_poison.shell.image_files._IN_MEMORY", 10)
    folder("a/0.png", gray(7))
    images, _ = read(folder, store=tmp_path / "cache" / "pixels")
    assert int(images.pixels.max()) == 7
    assert not list((tmp_path / "cache").iterdir())  # its space is free when the process ends


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_disk_without_space_for_the_pixels_is_an_error(folder, tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("lightning_poison.shell.image_files._IN_MEMORY", 10)
    monkeypatch.setattr(os, "posix_fallocate", full)
    folder("a/0.png", gray(7))
    with pytest.raises(OSError, match=os.strerror(number)):
        read(folder, store=tmp_path / "pixels")


def test_file_systems_that_reserve_no_space(folder, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("lightning_poison.shell.image_files._IN_MEMORY", 10)
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    folder("a/0.png", gray(7))
    assert int(read(folder, store=tmp_path / "pixels")[0].pixels.max()) == 7
