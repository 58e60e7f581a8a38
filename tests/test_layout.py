"""Which folders are parts and which are classes: by all top folders together, or by one line that says how to decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_archives import held, zip_bytes
from unpoison.core.errors import ParameterError, UserError
from unpoison.sources.folder import open_folder
from unpoison.sources.layout import Layout, arrange

CLASSES = ("cat", "dog")


def parted(*parts: str, classes: tuple[str, ...] = CLASSES) -> list[str]:
    return [f"{part}/{label}/0.png" for part in parts for label in classes]


def flat(*folders: str) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(2)]


def opened(tmp_path: Path, *names: str, layout: Layout = "auto") -> dict[str, list[str]]:
    """Names by part, and `classes`, of a zip with these files."""
    (tmp_path / "set.zip").write_bytes(zip_bytes({name: name.encode() for name in names}))
    source = open_folder(tmp_path / "set.zip", layout)
    return {**source.names, "classes": list(source.classes)}


# Top folders as users have them, and the part of each.
PARTED = {
    "plain": {"train": "train", "test": "test"},
    "alone": {"train": "train"},
    "capitals": {"Train": "train", "VAL": "test"},
    "kaggle": {"training_set": "train", "test_set": "test"},
    "intel": {"seg_train": "train", "seg_test": "test"},
    "images": {"train_images": "train", "val_images": "test"},
    "dev": {"train": "train", "dev": "test"},
    "years": {"train2017": "train", "val2017": "test"},
    "glued": {"trainset": "train", "testset": "test"},
    "camel": {"TrainImages": "train", "TestImages": "test"},
    "prefix": {"ILSVRC_train": "train", "ILSVRC_val": "test"},
    "four": {"train": "train", "test": "test", "reserve": "reserve", "public": "public"},
}


@pytest.mark.parametrize("name", PARTED)
@pytest.mark.parametrize("around", ["", "set/", "my test set/"])
def test_parts_by_their_names(name: str, around: str) -> None:
    found = arrange([around + each for each in parted(*PARTED[name])], "auto")
    assert found.parts == PARTED[name]
    assert not found.notes
    for top, part in PARTED[name].items():
        assert found.place(f"{around}{top}/cat/0.png") == (part, ["cat", "0.png"])


def test_parts_in_a_folder_that_is_called_like_one() -> None:
    found = arrange(parted("test/train", "test/test"), "auto")
    assert (found.depth, found.parts) == (1, {"train": "train", "test": "test"})


@pytest.mark.parametrize(
    "names",
    [
        flat("bus", "car", "train"),
        flat("valid", "invalid"),
        flat("public", "private"),
        flat("val", "test"),
        flat("toy_train", "steam_train", "bus"),
        flat("freight_train", "steam_train"),
        flat("test_tube", "toy_train"),
        flat("trainer", "testudo"),
        [*flat("train"), "bus/red/0.png", "bus/green/0.png"],
        ["n01/images/0.png", "n02/images/0.png"],
        ["train/images/0.png", "bus/images/0.png"],
    ],
)
def test_classes_that_are_called_like_parts(names: list[str]) -> None:
    found = arrange(names, "auto")
    assert found.parts == {}
    assert {found.place(name)[1][0] for name in names} == {name.split("/")[0] for name in names}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (parted("train", "test", "extra"), "train may be the training part, beside extra, test"),
        (parted("seg_train", "seg_test", "seg_other"), "seg_train may be the training part"),
        (parted("day", "night"), r"day and night have the same folders \(cat, dog\)"),
        (parted("val", "test"), "test and val have the same folders"),
        (parted("trainA", "trainB"), "trainA may be the training part, beside trainB"),
        (parted("training", "train"), "train may be the training part, beside training"),
        (
            [*parted("photos/train", "photos/test"), *flat("more")],
            "photos, beside which there are others, has the folders",
        ),
    ],
)
def test_what_cannot_be_told_is_one_line(names: list[str], reason: str) -> None:
    with pytest.raises(ParameterError, match=rf"^layout: auto given, but .*{reason}.*; allowed: parts .* or classes"):
        arrange(names, "auto")
    # A value decides it.
    assert arrange(names, "classes").parts == {}


def test_the_layout_that_is_asked_for(tmp_path: Path) -> None:
    names = [*parted("train", "test"), *flat("extra")]
    assert opened(tmp_path, *names, layout="classes")["classes"] == ["extra", "test", "train"]
    found = opened(tmp_path, *names, layout="parts")
    assert found["classes"] == ["cat", "dog"]
    assert found["test"] == ["test/cat/0.png", "test/dog/0.png"]
    assert "extra is left out: not called like a part" in held_notes(tmp_path, "parts")
    with pytest.raises(
        UserError, match=r"0 classes .*; test, train taken for parts, layout: classes takes them for classes"
    ):
        opened(tmp_path, *flat("test", "train"))
    assert opened(tmp_path, *flat("bus", "train"), layout="classes")["classes"] == ["bus", "train"]
    with pytest.raises(UserError, match="layout: parts given, but no folder is called train; found: bus, car"):
        opened(tmp_path, *flat("bus", "car"), layout="parts")


def held_notes(tmp_path: Path, layout: Layout = "auto") -> list[str]:
    return open_folder(tmp_path / "set.zip", layout).notes


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (flat("test"), "it has images in no class folder"),
        (parted("test", classes=("images",)), r"it has classes that train has not (images)"),
    ],
)
def test_a_test_folder_without_labels_is_left_out_where_val_has_them(
    test: list[str], reason: str, tmp_path: Path
) -> None:
    assert opened(tmp_path, *parted("train", "val"), *test)["test"] == ["val/cat/0.png", "val/dog/0.png"]
    assert held_notes(tmp_path) == [f"test is left out: {reason}"]
    assert open_folder(tmp_path / "set.zip").ignored == test


def test_a_second_test_folder_is_left_out_with_a_note(tmp_path: Path) -> None:
    assert opened(tmp_path, *parted("train", "val", "test"))["test"] == ["test/cat/0.png", "test/dog/0.png"]
    assert held_notes(tmp_path) == ["val is left out: test is the test part"]
    # With classes of its own and no other test folder there is nothing to take instead.
    with pytest.raises(UserError, match="test has classes that train has not: images; allowed: cat, dog"):
        opened(tmp_path, *parted("train"), *parted("test", classes=("images",)))
    opened(tmp_path, *parted("train"), *flat("val"))
    assert open_folder(tmp_path / "set.zip").problems[0] == ("val/0.png", "lies in no class folder")


def test_tiny_imagenet_as_it_is_unpacked(tmp_path: Path) -> None:
    train = [f"tiny/train/{label}/images/{label}_0.JPEG" for label in ("n01", "n02")]
    held_out = [f"tiny/{part}/images/{part}_{i}.JPEG" for part in ("test", "val") for i in range(2)]
    table = b"val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t3\t3\t9\t9\n"
    files = {**dict.fromkeys(train + held_out, b"x"), "tiny/val/val_annotations.txt": table}
    (tmp_path / "set.zip").write_bytes(zip_bytes(files))
    source = open_folder(tmp_path / "set.zip")
    assert source.classes == ("n01", "n02")
    assert source.names["test"] == held_out[2:]
    assert source.labels["test"].tolist() == [1, 0]
    assert source.notes == ["test is left out: it has classes that train has not (images)"]


def test_a_folder_of_the_same_name_is_passed_over(tmp_path: Path) -> None:
    # As Kaggle packs the scenes of Intel, with pictures to be labelled beside them.
    names = [*parted("seg_train/seg_train", "seg_test/seg_test"), *flat("seg_pred/seg_pred")]
    found = opened(tmp_path, *names)
    assert found["classes"] == ["cat", "dog"]
    assert found["test"] == parted("seg_test/seg_test")
    assert held_notes(tmp_path) == ["seg_pred is left out: it has images in no class folder"]


@pytest.mark.parametrize(
    "folder",
    ["@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", ".@__thumb", "@Recycle", "#recycle", "@tmp"],
)
def test_folders_of_file_servers_hold_no_samples(folder: str, tmp_path: Path) -> None:
    system = [f"{folder}/x.png", f"cat/{folder}/0.png/thumb.jpg"]
    assert opened(tmp_path, *flat("cat", "dog"), *system)["train"] == flat("cat", "dog")
    assert open_folder(tmp_path / "set.zip").ignored == sorted(system)


def test_a_stray_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"1 classes with images found \(photos\).*1 files cannot be used, the first: preview\.png \(lies in no class",
    ):
        opened(tmp_path, *parted("photos/train", "photos/test"), "preview.png")


def test_a_byte_and_the_text_of_its_escape_are_two_classes(tmp_path: Path) -> None:
    byte = b"\xff".decode("utf-8", "surrogateescape")
    for label, content in ((byte, b"1"), (r"\xff", b"2")):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "0.png").write_bytes(content)
    found = held(tmp_path / "set")
    assert found.samples == {r"\xff/0.png": (r"\xff", b"1"), r"\\xff/0.png": (r"\\xff", b"2")}


def test_a_class_is_not_lost_for_the_names_of_its_files(tmp_path: Path) -> None:
    files = dict.fromkeys([*flat("cat", "dog"), "notes/read.me"], b"x")
    (tmp_path / "set.zip").write_bytes(zip_bytes(files))
    assert held_notes(tmp_path) == ["notes holds no image: 1 files ignored, such as notes/read.me"]
    (tmp_path / "set.zip").write_bytes(zip_bytes(files | {"bird/img0": b"\x89PNG", "bird/img1": b"\x89PNG"}))
    with pytest.raises(
        UserError, match="bird has 2 files, such as bird/img0, an image by its content and not by its name"
    ):
        held_notes(tmp_path)
