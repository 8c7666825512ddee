"""CIFAR-10's record files: read in every form they come in, written, and refused where they are damaged."""

import gzip
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from mbnp import datasets
from mbnp.datasets import cifar10, subset
from mbnp.errors import MbnpError


def pack(path, files):
    """A .tar.gz of the given (name in the archive, content)."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def archive(records, tmp_path_factory):
    """The records as an archive, its members in an order of their own, as in the official one."""
    names = sorted((file.name for file in records.iterdir()), reverse=True)
    files = [(f"{cifar10.FOLDER}/{name}", (records / name).read_bytes()) for name in names]
    return pack(tmp_path_factory.mktemp("archive") / cifar10.ARCHIVE, files)


@pytest.fixture
def copy(records, tmp_path):
    """The records in a folder that a test may damage."""
    return shutil.copytree(records, tmp_path / "copy")


def assert_same(split, expected):
    np.testing.assert_array_equal(split.images, expected.images)
    np.testing.assert_array_equal(split.labels, expected.labels)
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int64
    assert split.masks is None


def test_a_record_is_label_then_planes():
    """Byte by byte, as the page of CIFAR-10 describes it."""
    red, green, blue = (bytes([(value + k) % 256 for k in range(1024)]) for value in (0, 70, 140))
    images, labels = cifar10.from_records(bytes([7]) + red + green + blue)
    assert labels.tolist() == [7]
    for y, x in [(0, 0), (0, 31), (1, 0), (31, 31), (13, 6)]:
        k = 32 * y + x
        assert images[0, y, x].tolist() == [red[k], green[k], blue[k]]


def test_what_is_written_is_read(drawn):
    images, labels = cifar10.from_records(cifar10.to_records(drawn.train.images, drawn.train.labels))
    np.testing.assert_array_equal(images, drawn.train.images)
    np.testing.assert_array_equal(labels, drawn.train.labels)
    assert images.flags.c_contiguous
    assert images.flags.writeable


@pytest.mark.parametrize("wrong", [np.zeros((1, 28, 28, 3), np.uint8), np.zeros((1, 32, 32, 3))])
def test_only_32x32_bytes_are_written(wrong):
    with pytest.raises(MbnpError, match=r"\(32, 32, 3\) uint8"):
        cifar10.to_records(wrong, np.zeros(1, np.int64))


def test_a_folder_is_read(records, drawn):
    data = cifar10.read(records)
    assert_same(data.train, drawn.train)
    assert_same(data.test, drawn.test)
    assert data.classes == cifar10.CLASSES
    assert str(data) == f"cifar10, 400 training and 100 test images ({records})"
    assert data.epochs == 20


def test_an_archive_is_the_same_as_its_folder(archive, records):
    data, expected = cifar10.read(archive), cifar10.read(records)
    assert_same(data.train, expected.train)
    assert_same(data.test, expected.test)
    assert data.classes == expected.classes
    assert sorted(archive.parent.iterdir()) == [archive], "nothing is unpacked"


@pytest.mark.parametrize("inside", [cifar10.FOLDER, "my-subset"])
def test_a_folder_is_found_inside_a_folder(inside, records, tmp_path):
    shutil.copytree(records, tmp_path / inside)
    assert cifar10.read(tmp_path).source == str(tmp_path / inside)


def test_an_archive_is_found_inside_a_folder(archive):
    assert cifar10.read(archive.parent).source == str(archive)


def test_an_unfinished_folder_is_not_found(records, tmp_path):
    shutil.copytree(records, tmp_path / ".subset.123")
    assert cifar10.locate(tmp_path) is None


def test_names_are_optional_and_may_be_others(copy):
    (copy / "batches.meta.txt").unlink()
    assert cifar10.read(copy).classes == cifar10.CLASSES
    (copy / "batches.meta.txt").write_text("".join(f"sort {k}\n" for k in range(10)))
    data = cifar10.read(copy)
    assert data.classes[3] == "sort 3"
    assert data.name == "copy", "ten other classes are not CIFAR-10"


def test_training_files_are_joined_in_order(copy, drawn):
    (copy / "data_batch_1.bin").rename(copy / "data_batch_10.bin")
    np.testing.assert_array_equal(cifar10.read(copy).train.labels, np.roll(drawn.train.labels, -80))


# -- what is wrong with files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"is cut short: record \d+ has 3,072 of its 3,073 bytes"),
        (lambda content: content + b"\0", r"is cut short: record \d+ has 1 of its 3,073 bytes"),
        (lambda content: b"", "is empty"),
        (
            lambda content: content[: 5 * 3073] + b"\x0a" + content[5 * 3073 + 1 :],
            "record 5 has the label 10; labels are 0 to 9",
        ),
    ],
)
def test_damaged_files_are_named(name, damage, message, copy, tmp_path):
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    with pytest.raises(MbnpError, match=f"{name}.*{message}"):
        cifar10.read(copy)
    files = [(file.name, file.read_bytes()) for file in copy.iterdir()]
    with pytest.raises(MbnpError, match=f"damaged.tar.gz/{name}.*{message}"):
        cifar10.read(pack(tmp_path / "damaged.tar.gz", files))


def test_missing_files_are_named(copy):
    (copy / "test_batch.bin").unlink()
    with pytest.raises(MbnpError, match=r"copy has no test_batch\.bin"):
        cifar10.read(copy)
    shutil.rmtree(copy)
    copy.mkdir()
    with pytest.raises(MbnpError, match=r"copy has no data_batch\*\.bin"):
        cifar10.read(copy)


@pytest.mark.parametrize("names", ["airplane\nbird\n", "a\n" * 11, "\x1b[31m\n" * 10])
def test_names_must_be_ten(names, copy):
    (copy / "batches.meta.txt").write_text(names)
    with pytest.raises(MbnpError, match=r"batches\.meta\.txt must name 10 classes"):
        cifar10.read(copy)


def test_one_file_is_not_a_data_set(records):
    with pytest.raises(MbnpError, match="name the folder"):
        cifar10.read(records / "data_batch_1.bin")


# -- archives nobody should trust ----------------------------------------------------------------------------


def test_a_truncated_archive(archive, tmp_path):
    whole = archive.read_bytes()
    for size in (0, 10, 500, len(whole) // 2, len(whole) - 9):
        cut = tmp_path / "cut.tar.gz"
        cut.write_bytes(whole[:size])
        with pytest.raises(MbnpError, match=r"cut\.tar\.gz is no archive, or a damaged one"):
            cifar10.read(cut)


def test_a_damaged_archive(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(content)
    with pytest.raises(MbnpError, match=r"broken\.tar\.gz"):
        cifar10.read(broken)


def test_something_else_than_an_archive(tmp_path):
    (tmp_path / "image.png").write_bytes(b"\x89PNG" * 100)
    with pytest.raises(MbnpError, match=r"image\.png is no archive"):
        cifar10.read(tmp_path / "image.png")


def test_paths_in_an_archive_mean_nothing(records, tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    files = [(f"../../{file.name}", file.read_bytes()) for file in records.iterdir()]
    assert len(cifar10.read(pack(folder / "x.tar.gz", files)).train) == 400
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", folder, folder / "x.tar.gz"]


def test_links_in_an_archive_are_not_followed(records, tmp_path):
    path = tmp_path / "links.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("data_batch_1.bin", "test_batch.bin"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, str(records / name)
            archive.addfile(member)
    with pytest.raises(MbnpError, match="has no data_batch"):
        cifar10.read(path)


def test_the_same_name_twice_is_refused(archive, records, tmp_path):
    content = (records / "test_batch.bin").read_bytes()
    twice = pack(tmp_path / "twice.tar.gz", [("a/test_batch.bin", content), ("b/test_batch.bin", content)])
    with pytest.raises(MbnpError, match=r"more than one test_batch\.bin"):
        cifar10.read(twice)


def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "_MOST_BYTES", 1_000_000)
    for name in ("data_batch_1.bin", "something-else", "x" * 300):
        with pytest.raises(MbnpError, match="unpacks to more than 1,000,000 bytes"):
            cifar10.read(pack(tmp_path / "bomb.tar.gz", [(name, bytes(3_000_000))]))


class Alarm:
    def __reduce__(self):
        return os.abort, ()


def test_pickles_are_refused_and_not_opened(tmp_path):
    content = pickle.dumps(Alarm())
    names = [f"cifar-10-batches-py/{name}" for name in ("data_batch_1", "test_batch", "batches.meta")]
    archive = pack(tmp_path / "cifar-10-python.tar.gz", [(name, content) for name in names])
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in names:
        (tmp_path / name).write_bytes(content)
    for path in (archive, folder):
        with pytest.raises(MbnpError, match=r"a pickle.*not opened: `mbnp data download`"):
            cifar10.read(path)


# -- subsets -------------------------------------------------------------------------------------------------


def test_a_subset_is_balanced_and_read_like_anything_else(records, tmp_path):
    data = cifar10.read(records)
    folder = subset(data, tmp_path / "few", train=50, test=20, seed=3)
    few = cifar10.read(folder)
    assert np.bincount(few.train.labels).tolist() == [5] * 10
    assert np.bincount(few.test.labels).tolist() == [2] * 10
    assert few.train.labels.tolist() != sorted(few.train.labels)
    assert few.classes == data.classes
    known = {(image.tobytes(), label) for image, label in zip(data.train.images, data.train.labels, strict=True)}
    chosen = {(image.tobytes(), label) for image, label in zip(few.train.images, few.train.labels, strict=True)}
    assert len(chosen) == 50
    assert chosen <= known
    assert os.listdir(tmp_path) == ["few"], "no unfinished folder stays"


def test_the_seed_decides_the_subset(records, tmp_path):
    data = cifar10.read(records)
    contents = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        folder = subset(data, tmp_path / name, train=50, test=20, seed=seed)
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 55}, "55 images"),
        ({"train": 0}, "0 images"),
        ({"test": 200}, "needs 20 of 'airplane', and there are 10"),
        ({"seed": -1}, "seed"),
    ],
)
def test_an_impossible_subset_leaves_nothing(sizes, message, records, tmp_path):
    with pytest.raises(MbnpError, match=message):
        subset(cifar10.read(records), tmp_path / "few", **({"train": 50, "test": 20} | sizes))
    assert not any(tmp_path.iterdir())


def test_an_existing_folder_is_not_touched(records, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists already"):
        subset(cifar10.read(records), tmp_path / "mine", train=50, test=20)
    assert not any((tmp_path / "mine").iterdir())


def test_trouble_while_writing_leaves_nothing(records, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.rename", full)
    with pytest.raises(OSError, match="No space"):
        subset(cifar10.read(records), tmp_path / "few", train=50, test=20)
    assert not any(tmp_path.iterdir())


def test_real_images(cifar10):
    """Whatever MBNP_DATA names: as bright and as varied as CIFAR-10 is known to be."""
    images = cifar10.train.images[:2_000] / np.float32(255)
    np.testing.assert_allclose(images.mean((0, 1, 2)), cifar10.mean, atol=0.015)
    np.testing.assert_allclose(images.std((0, 1, 2)), cifar10.std, atol=0.015)
    assert set(np.unique(cifar10.test.labels)) == set(range(10))
    assert "frog" in cifar10.classes


def test_a_header_that_claims_terabytes_is_refused_at_once(tmp_path):
    header = tarfile.TarInfo("skip.txt")
    header.size = 2**45
    path = tmp_path / "huge.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(MbnpError, match=r"unpacks to more than .* \(at 'skip\.txt'\)"):
        cifar10.read(path)


# -- CIFAR-100 -------------------------------------------------------------------------------------------------


FINE = [f"fine {k}" for k in range(100)]
COARSE = [f"coarse {k}" for k in range(20)]


@pytest.fixture
def hundred(tmp_path):
    """CIFAR-100's files, smaller: each image has its fine label in every byte, and a fifth of that as coarse label."""
    folder = tmp_path / "data" / "cifar-100-binary"
    folder.mkdir(parents=True)
    fine = np.arange(100, dtype=np.uint8)
    records = np.column_stack([fine // 5, fine, np.repeat(fine[:, None], 3072, 1)])
    (folder / "train.bin").write_bytes(np.tile(records, (2, 1)).tobytes())
    (folder / "test.bin").write_bytes(records[::-1].tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_cifar100_has_two_sets_of_labels(hundred, packed, tmp_path):
    place = hundred
    if packed:
        files = [(f"{hundred.name}/{file.name}", file.read_bytes()) for file in hundred.iterdir()]
        place = pack(tmp_path / "cifar-100-binary.tar.gz", files)
    for coarse, classes, each, suffix in ((False, FINE, 1, ""), (True, COARSE, 5, ":coarse")):
        data = datasets.load(f"{place}{suffix}")
        assert (data.classes, data.name, data.source) == (classes, f"cifar100{suffix}", f"{place}{suffix}")
        assert (len(data.train), len(data.test)) == (200, 100)
        for split in (data.train, data.test):
            np.testing.assert_array_equal(split.images[:, 3, 4, 1] // each, split.labels)
            assert split.labels.dtype == np.int64
        assert datasets.absolute(data.source) == f"{place}{suffix}"
        assert coarse == (data.name != "cifar100")


def test_cifar100_by_its_name(hundred, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MBNP_DATA", raising=False)
    assert datasets.load("cifar100").classes == FINE
    assert datasets.load("cifar100:coarse").classes == COARSE
    monkeypatch.setenv("MBNP_DATA", "cifar100:coarse")
    assert datasets.load().classes == COARSE
    monkeypatch.setenv("MBNP_DATA", str(hundred))
    assert datasets.load().classes == datasets.load("cifar100").classes == FINE


def test_damaged_cifar100(hundred, records):
    with pytest.raises(MbnpError, match="is CIFAR-10, which has no coarse labels"):
        datasets.load(f"{records}:coarse")
    with pytest.raises(MbnpError, match=r"of 10 classes and 32x32x3: cifar100 has 100 classes"):
        subset(datasets.load(hundred), hundred.parent / "few")
    content = (hundred / "test.bin").read_bytes()
    for damaged, message in (
        (content[:-1], r"test\.bin is cut short: record 99 has 3,073 of its 3,074 bytes"),
        (content[:1] + b"\x64" + content[2:], "record 0 has the label 100; labels are 0 to 99"),
        (b"", "is empty"),
    ):
        (hundred / "test.bin").write_bytes(damaged)
        with pytest.raises(MbnpError, match=message):
            datasets.load(hundred)
    (hundred / "test.bin").write_bytes(b"\x14" + content[1:])
    with pytest.raises(MbnpError, match="record 0 has the label 20; labels are 0 to 19"):
        datasets.load(f"{hundred}:coarse")
    (hundred / "fine_label_names.txt").unlink()
    with pytest.raises(MbnpError, match=r"has no fine_label_names\.txt"):
        datasets.load(hundred)
    (hundred / "train.bin").unlink()
    (hundred / "fine_label_names.txt").write_text("one")
    with pytest.raises(MbnpError, match="must name 100 classes, one a line; it has 1"):
        datasets.load(hundred)


def test_others_call_their_files_so_too(tmp_path, drawn):
    """A folder of tokens, say, is not taken for CIFAR-100."""
    (tmp_path / "text").mkdir()
    for name in ("train.bin", "test.bin"):
        (tmp_path / "text" / name).write_bytes(b"tokens")
    assert cifar10.locate(tmp_path, cifar10.CIFAR100) is None
