"""CNCB's layout: pairs by name, classes by value, lesions by component, nothing lost unnamed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cctmn.classes import LESION_MODES
from cctmn.contract import InputContract
from cctmn.data.issues import DatasetIssues
from cctmn.data.lesions import (
    LesionSample,
    LesionSlice,
    check_lesions,
    open_lesions,
    read_lesions,
)
from cctmn.errors import DataError, ObjectError, SliceError, StoreError
from cctmn.read.decode import open_image
from cctmn.read.preprocess import to_input
from tests.conftest import S3Server
from tests.makers import png

STORED = InputContract(size_px=64, max_size_px=128)  # of the test images: nothing is resized
BOTH = LESION_MODES["both"]
# row, column, height, width and value of rectangles
Rect = tuple[int, int, int, int, int]
GGO: Rect = (5, 5, 11, 11, 2)
C: Rect = (30, 30, 12, 12, 3)
LUNG: Rect = (0, 0, 50, 50, 1)


def values(*rects: Rect, side: int = 64) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    for row, col, height, width, value in rects:
        mask[row : row + height, col : col + width] = value
    return mask


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, kind, **options)
    return out.getvalue()


def palette(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask).convert("P")
    image.putdata(list(mask.ravel()))
    image.putpalette([0, 0, 0, 90, 90, 90, 255, 0, 0, 0, 255, 0])  # colours that are no values
    return image


def write(folder: Path, slices: dict[str, bytes | np.ndarray | None]) -> str:
    """Images of makers.png, each with the mask given; None: no mask."""
    for part in ("imgs", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for seed, (name, mask) in enumerate(slices.items()):
        (folder / "imgs" / f"{name}.png").write_bytes(png(seed))
        if mask is not None:
            data = mask if isinstance(mask, bytes) else encoded(mask)
            (folder / "masks" / f"{name}.png").write_bytes(data)
    return str(folder)


def read(
    folder: Path,
    mask: bytes | np.ndarray,
    *,
    mode: str = "both",
    contract: InputContract = STORED,
) -> LesionSlice:
    dataset = open_lesions(write(folder, {"1_1": mask}))
    return read_lesions(dataset.samples[0], lesion_classes=LESION_MODES[mode], contract=contract)


def code_of(folder: Path, mask: bytes | np.ndarray) -> str:
    with pytest.raises(SliceError) as caught:
        read(folder, mask)
    return caught.value.code


# --- pairs


def test_pairs_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path, {"10_2": values(GGO), "9_11": values(GGO), "a_b_3": values(GGO)})
    (tmp_path / "imgs" / "lone.jpg").write_bytes(encoded(np.zeros((64, 64), np.uint8), "JPEG"))
    (tmp_path / "masks" / "lone.png").write_bytes(encoded(values(GGO)))
    (tmp_path / "imgs" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "imgs" / "._10_2.png").write_bytes(b"x")
    dataset = open_lesions(folder)
    assert [(s.name, s.patient) for s in dataset.samples] == [
        ("10_2", "10"),
        ("9_11", "9"),
        ("a_b_3", "a_b"),
        ("lone", "lone"),
    ]
    for sample in dataset.samples:
        assert sample.image.rpartition("/")[2].startswith(sample.name + ".")
        assert sample.mask == (tmp_path / "masks" / f"{sample.name}.png").as_uri()
    assert dataset.issues == DatasetIssues()
    assert dataset.issues.lines() == []


def test_orphans_are_named(tmp_path: Path) -> None:
    """Sorted listings would pair all of these with a neighbour's mask."""
    folder = write(tmp_path, {"1_1": None, "1_2": values(GGO), "1_3": values(GGO)})
    (tmp_path / "imgs" / "1_3.png").unlink()
    dataset = open_lesions(folder)
    assert [s.name for s in dataset.samples] == ["1_2"]
    assert dataset.issues == DatasetIssues(no_mask=("1_1",), no_image=("1_3",))
    assert dataset.issues.lines() == [
        "images without a mask: 1 (1_1)",
        "masks without an image: 1 (1_3)",
    ]


def test_split_file(tmp_path: Path) -> None:
    folder = write(tmp_path, {f"1_{i}": values(GGO) for i in range(6)} | {"2_0": None, "2_1": None})
    (tmp_path / "imgs" / "1_4.png").unlink()
    names = tmp_path / "train.txt"
    names.write_text("\ufeff1_3.jpg\n1_1\r\n\n 1_4.jpg \n2_0.jpg\n7_7.jpg\n", encoding="utf-8")
    dataset = open_lesions(folder, names=str(names))
    assert [s.name for s in dataset.samples] == ["1_1", "1_3"]
    # 2_1 is an orphan too, but not of this split
    assert dataset.issues == DatasetIssues(no_mask=("2_0",), no_image=("1_4",), missing=("7_7",))
    assert "names of the split file without a file: 1 (7_7)" in dataset.issues.lines()


def test_lines_name_the_first_five() -> None:
    names = tuple("abcdefg")
    issues = DatasetIssues(empty=names, unreadable=tuple((name, "corrupt") for name in names[:2]))
    assert issues.lines() == [
        "slices without a lesion: 7 (a, b, c, d, e, ...)",
        "unreadable slices: 2 (a (corrupt), b (corrupt))",
    ]


def test_folders_that_are_no_lesion_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imgs: no such .*; a lesion set is DIR/imgs"):
        open_lesions(str(tmp_path))
    folder = write(tmp_path, {})
    (tmp_path / "imgs" / "1_1.dcm").write_bytes(b"")
    with pytest.raises(DataError, match=r"imgs: holds no .jpg .jpeg .png image"):
        open_lesions(folder)
    write(tmp_path, {"1_1": None, "1_2": values(GGO)})
    (tmp_path / "imgs" / "1_2.png").unlink()
    with pytest.raises(
        DataError, match=rf"{tmp_path}: no slice can be used; .* \(images without a mask: 1 \(1_1"
    ):
        open_lesions(folder)
    write(tmp_path, {"1_2": values(GGO)})
    for text, message in (("", "holds no name"), ("1_2\n1_2.jpg\n", r"twice; .* \(1_2\)")):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            open_lesions(folder, names=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        open_lesions(folder, names=str(tmp_path / "names.txt"))
    with pytest.raises(ObjectError, match="nowhere: not found; give a text file"):
        open_lesions(folder, names=str(tmp_path / "nowhere"))
    (tmp_path / "imgs" / "1_2.jpg").write_bytes(b"another of this name")
    with pytest.raises(DataError, match="2 images of one name; keep one"):
        open_lesions(folder)


# --- lesions of a mask


def test_image_is_what_scoring_sees(tmp_path: Path) -> None:
    for contract in (STORED, InputContract()):
        pixels = read(tmp_path, values(GGO), contract=contract).pixels
        np.testing.assert_array_equal(
            pixels, to_input(open_image(png(0)).frame(0), contract).pixels
        )
        assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("rects", "mode", "labels"),
    [
        ([GGO, C], "both", [1, 2]),
        ([C], "both", [2]),  # by position among those present it would be 1
        ([LUNG, C], "both", [2]),
        ([LUNG, GGO], "both", [1]),
        ([GGO], "both", [1]),  # without lung, too
        ([GGO, C], "ggo", [1]),
        ([C], "ggo", []),
        ([GGO, C], "merge", [1, 1]),
        ([C], "merge", [1]),
        ([LUNG], "both", []),
        ([LUNG], "merge", []),
        ([], "both", []),
    ],
)
def test_class_by_value(tmp_path: Path, rects: list[Rect], mode: str, labels: list[int]) -> None:
    slice_ = read(tmp_path, values(*rects), mode=mode)
    assert slice_.labels_M.tolist() == labels
    assert slice_.labels_M.dtype == np.int64
    assert slice_.masks_MHW.shape == (len(labels), 64, 64)
    assert slice_.masks_MHW.dtype == np.uint8


def test_masks_are_the_components(tmp_path: Path) -> None:
    slice_ = read(tmp_path, values(LUNG, GGO, C))
    np.testing.assert_array_equal(slice_.masks_MHW[0], values((5, 5, 11, 11, 1)))
    np.testing.assert_array_equal(slice_.masks_MHW[1], values((30, 30, 12, 12, 1)))


def test_lesions_that_touch(tmp_path: Path) -> None:
    beside = values((5, 5, 20, 10, 2), (5, 15, 20, 10, 3))
    assert read(tmp_path, beside).labels_M.tolist() == [1, 2]
    assert read(tmp_path, beside, mode="merge").masks_MHW.sum() == 400
    assert read(tmp_path, beside, mode="merge").labels_M.tolist() == [1]
    by_a_corner = values((5, 5, 8, 8, 2), (13, 13, 8, 8, 2))  # 64 px each: only together a lesion
    assert read(tmp_path, by_a_corner).masks_MHW.sum(axis=(1, 2)).tolist() == [128]


def test_100_px_are_dropped_and_101_kept(tmp_path: Path) -> None:
    hundred = values((5, 5, 10, 10, 2))
    assert len(read(tmp_path, hundred).labels_M) == 0
    hundred[15, 5] = 2
    assert len(read(tmp_path, hundred).labels_M) == 1
    # counted as stored: 400 px at the input's size do not make up for it
    twice = InputContract(size_px=128, max_size_px=128)
    assert len(read(tmp_path, values((5, 5, 10, 10, 2)), contract=twice).labels_M) == 0
    assert read(tmp_path, hundred, contract=twice).masks_MHW.sum() == 404


@pytest.mark.parametrize("size_px", [96, 128, 512])
def test_masks_at_the_inputs_size(tmp_path: Path, size_px: int) -> None:
    mask = values(LUNG, GGO, C)
    slice_ = read(tmp_path, mask, contract=InputContract(size_px=size_px, max_size_px=1024))
    assert slice_.pixels.shape == (size_px, size_px)
    expected = np.asarray(
        Image.fromarray(mask).resize((size_px, size_px), Image.Resampling.NEAREST)
    )
    assert slice_.masks_MHW.shape == (2, size_px, size_px)
    np.testing.assert_array_equal(slice_.masks_MHW[0] == 1, expected == 2)
    np.testing.assert_array_equal(slice_.masks_MHW[1] == 1, expected == 3)


def test_a_lesion_lost_by_shrinking_is_no_lesion(tmp_path: Path) -> None:
    image = png(0, side=512)
    folder = write(tmp_path, {"1_1": values((3, 0, 1, 512, 2), (100, 100, 60, 60, 3), side=512)})
    (tmp_path / "imgs" / "1_1.png").write_bytes(image)
    small = InputContract(size_px=64, max_size_px=64)
    slice_ = read_lesions(open_lesions(folder).samples[0], lesion_classes=BOTH, contract=small)
    assert slice_.labels_M.tolist() == [2]
    assert len(slice_.masks_MHW) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_turns_with_its_image(tmp_path: Path, orientation: int) -> None:
    """The image is bright where the lesion is, so the turned ones must agree."""
    mask = np.zeros((64, 96), np.uint8)
    mask[4:20, 60:90] = 2
    grey = np.where(mask == 2, 250, np.arange(96, dtype=np.uint8)[None, :])
    exif = Image.Exif()
    exif[274] = orientation
    folder = write(tmp_path, {"1_1": mask})
    (tmp_path / "imgs" / "1_1.png").write_bytes(encoded(grey.astype(np.uint8), exif=exif))
    slice_ = read_lesions(open_lesions(folder).samples[0], lesion_classes=BOTH, contract=STORED)
    assert slice_.pixels.shape == ((96, 64) if orientation > 4 else (64, 96))
    np.testing.assert_array_equal(slice_.masks_MHW[0] == 1, slice_.pixels == 250)


def test_palette_masks_are_indices(tmp_path: Path) -> None:
    mask = values(LUNG, GGO, C)
    for bits in (2, 8):
        slice_ = read(tmp_path, encoded(palette(mask), bits=bits))
        assert slice_.labels_M.tolist() == [1, 2]
        np.testing.assert_array_equal(slice_.masks_MHW[1] == 1, mask == 3)


def test_broken_masks(tmp_path: Path) -> None:
    mask = values(GGO, C)
    assert code_of(tmp_path, values(GGO, (40, 40, 1, 1, 4))) == "mask_value"
    assert code_of(tmp_path, mask * 85) == "mask_value"  # stretched to grey
    assert code_of(tmp_path, mask[:, :-1]) == "mask_size"
    assert code_of(tmp_path, values(GGO, side=128)) == "mask_size"
    for image in (
        Image.fromarray(mask).convert("RGB"),
        Image.fromarray(mask).convert("LA"),
        Image.fromarray(mask).convert("1"),
        Image.fromarray(mask.astype(np.uint16)),
    ):
        assert code_of(tmp_path, encoded(image)) == "mask_unreadable"
    whole = encoded(mask)
    flipped = whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]
    for data in (b"", b"no image", whole[:-20], whole[:60], flipped, encoded(mask, "JPEG")):
        assert code_of(tmp_path, data) == "mask_unreadable"


def test_size_of_the_stored_image(tmp_path: Path) -> None:
    """The mask is compared with the image as stored, not as turned or resized."""
    folder = write(tmp_path, {"1_1": np.zeros((96, 64), np.uint8)})
    exif = Image.Exif()
    exif[274] = 6  # a turn by 90 degrees
    grey = np.tile(np.arange(96, dtype=np.uint8), (64, 1))
    (tmp_path / "imgs" / "1_1.png").write_bytes(encoded(grey, exif=exif))
    with pytest.raises(SliceError, match="mask_size"):
        read_lesions(open_lesions(folder).samples[0], lesion_classes=BOTH, contract=STORED)


# --- the check


def test_check_names_empty_and_unreadable(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "1_1": values(GGO),
            "1_2": values(LUNG),
            "2_1": values(C),
            "2_2": values((5, 5, 10, 10, 2)),
            "3_1": values((0, 0, 9, 9, 7)),
            "3_2": values(GGO, side=65),
            "3_3": values(GGO),
            "4_1": None,
            "5_1": values(GGO),
        },
    )
    (tmp_path / "imgs" / "3_3.png").write_bytes(png(3)[:-9])
    (tmp_path / "masks" / "5_1.png").unlink()
    (tmp_path / "masks" / "5_1.png").symlink_to("nowhere")
    dataset = open_lesions(folder)
    assert dataset.issues.unreadable == (("5_1", "mask_unreadable"),)
    checked = check_lesions(dataset, lesion_classes=BOTH, contract=STORED, threads=2)
    assert [s.name for s in checked.samples] == ["1_1", "2_1"]
    assert checked.issues == DatasetIssues(
        no_mask=("4_1",),
        empty=("1_2", "2_2"),
        unreadable=(
            ("5_1", "mask_unreadable"),
            ("3_1", "mask_value"),
            ("3_2", "mask_size"),
            ("3_3", "truncated"),
        ),
    )
    ggo = check_lesions(dataset, lesion_classes=("ggo",), contract=STORED, threads=1)
    assert [s.name for s in ggo.samples] == ["1_1"]
    assert "2_1" in ggo.issues.empty


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    dataset = open_lesions(write(tmp_path, {"1_1": values(C)}))
    with pytest.raises(DataError, match=r"slices without a lesion: 1 \(1_1\)"):
        check_lesions(dataset, lesion_classes=("ggo",), contract=STORED, threads=1)
    with pytest.raises(DataError, match="are not known; use"):
        check_lesions(dataset, lesion_classes=("c",), contract=STORED, threads=1)


def test_storage_that_fails_stops_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_lesions(write(tmp_path, {"1_1": values(GGO)}))

    def fails(uri: str) -> bytes:
        if "masks" in uri:
            raise StoreError("the disk did not answer")
        return png(0)

    monkeypatch.setattr("cctmn.store.read_all", fails)
    with pytest.raises(StoreError):
        check_lesions(dataset, lesion_classes=BOTH, contract=STORED, threads=1)


def test_on_s3(s3: S3Server) -> None:
    s3.bucket("cncb")
    for name in ("1_1", "1_2"):
        s3.upload("cncb", f"set/imgs/{name}.png", png(1))
    s3.upload("cncb", "set/masks/1_1.png", encoded(values(C)))
    s3.upload("cncb", "set/masks/3 å_2.png", encoded(values(C)))
    s3.upload("cncb", "set/imgs2/9_9.png", png(1))
    s3.upload("cncb", "names.txt", b"1_1.jpg\n1_2.jpg\n3 \xc3\xa5_2.jpg\n")
    dataset = open_lesions("s3://cncb/set/", names="s3://cncb/names.txt")
    dataset = check_lesions(dataset, lesion_classes=BOTH, contract=STORED, threads=2)
    image, mask = "s3://cncb/set/imgs/1_1.png", "s3://cncb/set/masks/1_1.png"
    assert dataset.samples == (LesionSample("1_1", image, mask, "1", (2,)),)
    assert dataset.issues == DatasetIssues(no_mask=("1_2",), no_image=("3 å_2",))
    with pytest.raises(DataError, match="s3://cncb/none/imgs: no such"):
        open_lesions("s3://cncb/none")


def test_no_torch_and_no_ray() -> None:
    code = (
        "import sys\n"
        "import cctmn.data.lesions, cctmn.data.slices, cctmn.data.splits\n"
        "assert not {'torch', 'ray'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
