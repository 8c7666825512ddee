"""A folder of images as a data set: its structures, what is skipped, what is kept, what a second start costs."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mbnp import datasets, runs, storage
from mbnp.datasets import folder
from mbnp.datasets.images import read_image
from mbnp.errors import MbnpError

pytestmark = pytest.mark.usefixtures("nowhere")


def put(path, level=100, size=(9, 12)):
    """An image file of one colour."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level // 2, 0)).save(path)
    return path


@pytest.fixture
def photos():
    """Ten images of each of three classes, told apart by their colour."""
    for label, name in enumerate(("ant", "bee", "cow")):
        for i in range(10):
            put(f"photos/{name}/{i}.png", level=60 * label + 2 * i)
    return Path("photos")


def test_classes_are_the_folders_and_a_fifth_is_set_aside(photos):
    data = datasets.load("photos")
    assert data.classes == ["ant", "bee", "cow"]
    assert data.train.images.shape == (24, 32, 32, 3)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int64
    assert np.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert str(data) == "photos, 24 training and 6 test images (photos)"
    assert data.notes[0] == "a fifth of each class, 6 images, is set aside to test on"
    assert data.notes[1] == "files of 9x12 pixels, shown to the network as 32x32"
    for split in (data.train, data.test):
        np.testing.assert_array_equal(split.images[:, 5, 5, 0] // 60, split.labels)
    seen = np.concatenate([data.train.images, data.test.images])[:, 0, 0, 0]
    assert sorted(seen.tolist()) == sorted(60 * label + 2 * i for label in range(3) for i in range(10))


def test_mean_and_spread_are_the_training_images_own(photos):
    data = datasets.load(photos)
    expected = data.train.images / 255
    np.testing.assert_allclose(data.mean, expected.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(data.std[:2], expected.std((0, 1, 2))[:2], atol=1e-12)
    assert data.std[2] == 1 / 255, "blue is 0 everywhere: there is nothing to divide by"


def test_of_many_images_some_are_enough_for_mean_and_spread(monkeypatch):
    """In each run of files that are decoded together, the first that can be read and every so many after it."""
    monkeypatch.setattr(folder, "_ENOUGH", 8)
    for name in "ab":
        for i in range(20):
            put(f"own/{name}/{i:02}.png", 100 if i == 1 else 50)
            Path(f"own/{name}/{i:02}.txt").write_text("a description of the image beside it")
    data = datasets.load("own")
    assert (len(data.train) + len(data.test), len(data.damaged)) == (40, 40)
    assert 50 / 255 <= data.mean[0] < 60 / 255


def test_parts_in_folders_of_their_own(photos):
    for name in ("val", "Test"):
        put(f"parts/{name}/cow/x.png", 120)
        put(f"parts/{name}/ant/x.png", 0)
    shutil.copytree(photos, "parts/train")
    data = datasets.load("parts")
    assert (len(data.train), data.test.labels.tolist()) == (30, [0, 2])
    assert data.notes[0] == f"tested on {Path('parts/Test')}; not used: {Path('parts/val')}"
    shutil.rmtree("parts/Test")
    assert datasets.load("parts").test.labels.tolist() == [0, 2]
    shutil.rmtree("parts/val")
    data = datasets.load("parts")
    assert (len(data.train), len(data.test)) == (24, 6)
    assert "a fifth" in data.notes[0]


def test_train_may_be_a_class(photos):
    put("vehicles/train/1.png"), put("vehicles/train/2.png"), put("vehicles/car/1.png"), put("vehicles/car/2.png")
    assert datasets.load("vehicles").classes == ["car", "train"]


def test_images_are_those_that_predict_reads(photos):
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(40, 60, 3), (90, 30, 3), (7, 7, 3)]):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(f"photos/ant/{i}.png")
    for channels in (1, 3):
        data = datasets.load("photos", 24, channels)
        assert data.train.images.shape[1:] == (24, 24, channels)
        assert len(data.mean) == len(data.std) == channels
        kept = {image.tobytes() for split in (data.train, data.test) for image in split.images}
        assert kept == {read_image(path, 24, channels).tobytes() for path in photos.glob("*/*.png")}


def test_damaged_files_are_listed_and_nothing_else_is_left_out(photos):
    whole = datasets.load("photos")
    damaged = [photos / "ant" / "half.jpg", photos / "bee" / "none.png", photos / "cow" / "text.txt"]
    Image.effect_noise((64, 64), 90).save(damaged[0])
    damaged[0].write_bytes(damaged[0].read_bytes()[:700])
    damaged[1].touch()
    damaged[2].write_text("about cows")
    os.mkfifo(photos / "cow" / "pipe.png")
    (photos / "bee" / "gone.png").symlink_to("nowhere")
    (photos / "bee" / "up").symlink_to("..")  # would make bees of all the others
    (photos / "ant" / ".DS_Store").write_text("of the system")
    put(photos / "ant" / "deep" / "er" / "more.png", 3), put(photos / "bee" / "NO-SUFFIX.png").rename(photos / "bee/x")
    data = datasets.load("photos")
    found = "\n".join(data.damaged)
    assert len(data.damaged) == 5
    assert all(name in found for name in ("half.jpg", "none.png", "text.txt", "pipe.png is no file", "gone.png"))
    assert len(data.train) + len(data.test) == 30 + 2
    for split in (data.train, data.test):
        assert len(split.images) == len(split.labels)
        inner = split.images[:, 5, 5, 0].astype(int)
        np.testing.assert_array_equal(np.where(inner == 100, 1, inner // 60), split.labels)
    assert data.sha256 != whole.sha256


@pytest.mark.parametrize("broken", [[0], [9], [0, 1, 2, 3], [6, 7, 8, 9], [0, 9], [0, 2, 4, 6, 8], range(9)])
def test_gaps_are_closed_wherever_they_are(broken):
    for name in ("a", "b"):
        for i in range(10):
            put(f"parts/train/{name}/{i}.png", 10 * i + 1), put(f"parts/test/{name}/{i}.png", 10 * i + 2)
    for i in broken:
        Path(f"parts/train/a/{i}.png").write_bytes(b"")
        Path(f"parts/test/b/{i}.png").write_bytes(b"")
    data = datasets.load("parts")
    for split, label, last in ((data.train, 0, 1), (data.test, 1, 2)):
        left = split.images[split.labels == label][:, 0, 0, 0]
        assert sorted(left.tolist()) == [10 * i + last for i in range(10) if i not in broken]
        assert np.count_nonzero(split.labels != label) == 10


def test_the_second_start_reads_no_image(photos, monkeypatch):
    first = datasets.load("photos")
    monkeypatch.setattr(folder.images, "decode", None)
    again = datasets.load("photos")
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert (first.sha256, first.mean, first.notes) == (again.sha256, again.mean, again.notes)
    assert isinstance(again.train.images, np.memmap)
    assert runs.describe(again)["sha256"] == first.sha256
    shutil.move("photos", "elsewhere")
    assert datasets.load("elsewhere").sha256 == first.sha256
    monkeypatch.chdir("elsewhere")
    assert datasets.load(Path()).sha256 == first.sha256


def test_what_changes_is_prepared_again(photos, nowhere):
    seen = [datasets.load("photos").sha256]
    for change in (
        lambda: put("photos/ant/0.png", 7),  # of the same size, at another time
        lambda: Path("photos/ant/1.png").unlink(),
        lambda: shutil.move("photos/ant/2.png", "photos/bee/20.png"),
        lambda: put("photos/ant/new.png", 7),
    ):
        time.sleep(0.01)
        change()
        seen.append(datasets.load("photos").sha256)
    seen += [datasets.load("photos", 16).sha256, datasets.load("photos", 16, 1).sha256]
    assert len(set(seen)) == 7
    entries = [path for path in (nowhere / "cache" / "mbnp" / "images").iterdir() if path.is_dir()]
    assert len(entries) == 3, "of each resolution and number of channels the last"


def test_progress_counts_to_the_end(photos):
    seen = []
    datasets.load("photos", progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 30)
    assert seen[-1] == (30, 30)
    datasets.load("photos", progress=lambda *_: pytest.fail("all of it is in the cache"))


def test_an_interruption_leaves_nothing_that_is_used(photos, nowhere):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        datasets.load("photos", progress=stop)
    kept = nowhere / "cache" / "mbnp" / "images"
    assert not [path for path in kept.iterdir() if path.is_dir()]
    # A process that was killed could not clean up: what it left is begun again.
    entry = folder._key(photos, folder._plan(photos), 32, 3)
    for state in (entry, "another"):
        name = storage.unfinished(Path(state)).replace(f"-{os.getpid()}.", f"-{2**22 + 1}.")  # more than any number
        (kept / f"{name}abcd_123").mkdir()
        (kept / f"{name}abcd_123" / "images.npy").write_bytes(b"half")
    assert len(datasets.load("photos").train) == 24
    assert [path.name for path in kept.iterdir() if path.is_dir()] == [entry]


@pytest.mark.parametrize("name", ["about.json", "images.npy", "labels.npy"])
@pytest.mark.parametrize("damage", ["", "half", None])
def test_what_is_kept_and_damaged_is_prepared_again(photos, nowhere, name, damage):
    sha256 = datasets.load("photos").sha256
    file = nowhere / "cache" / "mbnp" / "images" / folder._key(photos, folder._plan(photos), 32, 3) / name
    whole = file.read_bytes()
    file.unlink() if damage is None else file.write_bytes(whole[: len(whole) // 2 if damage else 0])
    assert datasets.load("photos").sha256 == sha256
    assert file.read_bytes() == whole


def test_an_image_that_becomes_readable_is_taken(photos, monkeypatch):
    decode = folder.images.decode
    denied = photos / "ant" / "3.png"

    def refuse(path, *options):
        if path == str(denied):
            raise MbnpError(f"{path} is no image that can be read: permission denied")
        return decode(path, *options)

    with monkeypatch.context() as patch:
        patch.setattr(folder.images, "decode", refuse)
        assert len(datasets.load("photos").damaged) == 1
    time.sleep(0.01)
    denied.chmod(0o640)
    assert datasets.load("photos").damaged == ()


def test_two_at_once(photos):
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(datasets.load("photos").sha256)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(seen) == 4
    assert len(set(seen)) == 1


def test_a_disk_that_is_too_small(photos, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match=r"0 MB free and needs 0 MB for 30 images of 32x32: take a lower"):
        datasets.load("photos")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: put("own/1.png"), r"own has no folders: a data set has a folder of images for each class"),
        (lambda: put("own/cat/1.png"), r"own has only the folder cat"),
        (lambda: (put("own/a/1.png"), Path("own/b").mkdir()), r"b has no images: remove the folder"),
        (lambda: (put("own/a/1.png"), put("own/b/1.png")), r"no class has a second image"),
        (
            lambda: (put("own/a/1.png"), put("own/b\n/1.png")),
            r"'b..?n' in own cannot be the name of a class",
        ),
        (lambda: [put(f"own/{c}/1.png") for c in ("train/a", "train/b", "val/c")], r"a class 'c' that .*train has not"),
        (lambda: [Path(put(f"own/{c}/{i}.png")).write_bytes(b"") for c in "ab" for i in (1, 2)], "no image of 'a' can"),
    ],
    ids=["no classes", "one class", "an empty class", "no test images", "a name", "an unknown class", "all damaged"],
)
def test_a_folder_of_another_structure(make, message):
    make()
    with pytest.raises(MbnpError, match=message):
        datasets.load("own")


def test_what_lies_beside_the_classes_is_said(photos):
    (photos / "labels.csv").write_text("1,2")
    assert f"in no class: 'labels.csv' in {photos}" in datasets.load("photos").notes


@pytest.mark.parametrize(("resolution", "channels"), [(0, 3), (5000, 3), (8.5, 3), (32, 2), (32, 4)])
def test_sizes_that_no_image_can_have(photos, resolution, channels):
    with pytest.raises(MbnpError, match=r"resolution must be|3 channels, or 1"):
        datasets.load("photos", resolution, channels)


def test_what_is_kept_is_plain(photos, nowhere):
    datasets.load("photos")
    (entry,) = (path for path in (nowhere / "cache" / "mbnp" / "images").iterdir() if path.is_dir())
    assert sorted(path.name for path in entry.iterdir()) == ["about.json", "images.npy", "labels.npy"]
    about = json.loads((entry / "about.json").read_text())
    assert (about["train"], about["test"]) == (24, 6)
