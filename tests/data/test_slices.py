"""Image classes from tables, split files and folders; labels and layouts that do not fit refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cctmn.classes import COVIDX_CLASSES
from cctmn.contract import InputContract
from cctmn.data.issues import DatasetIssues
from cctmn.data.slices import SliceSample, SliceSet, check_slices, open_slices, read_slice
from cctmn.errors import ConfigError, DataError
from cctmn.read.decode import open_image
from cctmn.read.preprocess import to_input
from tests.conftest import S3Server
from tests.makers import png

TWO = ("control", "covid")
CONTRACT = InputContract(size_px=64, max_size_px=128)
BOX = "9 94 512 405"


def write(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return str(folder)


def listed(folder: Path, text: str) -> str:
    (folder / "list.txt").write_text(text)
    return str(folder / "list.txt")


def rows(dataset: SliceSet) -> list[tuple[str, int, str]]:
    return [(s.name, s.label, s.patient) for s in dataset.samples]


# --- split file and folder


@pytest.mark.parametrize(
    "lines",
    [
        [f"NCP_96_1328_0032.png 2 {BOX}", f"Normal_7_8_1.png 0 {BOX}", "CP_3_4_5.png 1"],
        ["2_96_1328_0032.png", "0_7_8_1.png", "1_3_4_5.png"],
    ],
)
@pytest.mark.parametrize(
    "files",
    [
        ["Normal_7_8_1.png", "CP_3_4_5.png", "NCP_96_1328_0032.png"],
        ["0_7_8_1.png", "1_3_4_5.png", "2_96_1328_0032.png"],
        ["a/0_7_8_1.jpg", "CP_3_4_5.png", "b/c/NCP_96_1328_0032.PNG"],
    ],
)
def test_split_and_files_in_either_spelling(
    tmp_path: Path, lines: list[str], files: list[str]
) -> None:
    folder = write(tmp_path / "images", *files, "NCP_96_1328_0033.png", "other.png")
    split = listed(tmp_path, "\n".join(lines) + "\n\n")
    dataset = open_slices(folder, split=split, classes=COVIDX_CLASSES)
    names = [line.split()[0] for line in lines]
    assert rows(dataset) == [(names[0], 2, "96"), (names[1], 0, "7"), (names[2], 1, "3")]
    by_slice = {name[-6:-4]: (tmp_path / "images" / name).as_uri() for name in files}
    assert [s.image for s in dataset.samples] == [by_slice[k] for k in ("32", "_1", "_5")]
    assert dataset.issues == DatasetIssues()  # a split selects: other files are no problem


def test_split_names_that_are_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", "0_1_1_1.png")
    (tmp_path / "images" / "0_1_1_2.png").symlink_to("nowhere")
    split = listed(tmp_path, "\n".join(f"0_1_1_{i}.png" for i in range(1, 9)))
    dataset = open_slices(folder, split=split, classes=COVIDX_CLASSES)
    assert rows(dataset) == [("0_1_1_1.png", 0, "1")]
    assert dataset.issues.missing == tuple(f"0_1_1_{i}.png" for i in range(3, 9))
    assert dataset.issues.unreadable == (("0_1_1_2.png", "not_found"),)
    assert dataset.issues.lines()[0] == (
        "names of the split file without a file: 6 "
        "(0_1_1_3.png, 0_1_1_4.png, 0_1_1_5.png, 0_1_1_6.png, 0_1_1_7.png, ...)"
    )
    split = listed(tmp_path, "0_9_9_9.png")
    with pytest.raises(DataError, match=r"no slice can be used; .* \(names of the split file"):
        open_slices(folder, split=split, classes=COVIDX_CLASSES)


def test_split_classes_are_covidx_ones(tmp_path: Path) -> None:
    """In a two-class problem 2 is still COVID-19, and 1 is no class of it."""
    folder = write(tmp_path / "images", "0_1_1_1.png", "NCP_2_1_1.png", "CP_3_1_1.png", "xyz.png")
    split = listed(tmp_path, "0_1_1_1.png\n2_2_1_1.png 2\nxyz.png 2\n")
    dataset = open_slices(folder, split=split, classes=TWO)
    assert rows(dataset) == [("0_1_1_1.png", 0, "1"), ("2_2_1_1.png", 1, "2"), ("xyz.png", 1, "")]
    split = listed(tmp_path, "0_1_1_1.png\n1_3_1_1.png\n")
    with pytest.raises(
        DataError, match=r"line 2, 1_3_1_1.png: a label is none of .* \(pneumonia\)"
    ):
        open_slices(folder, split=split, classes=TWO)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no name"),
        ("scan1.png", r"line 1: a slice has no class; .* \(scan1.png\)"),
        ("NCP_1_1_1.png 0", r"listed as control; correct the line \(NCP_1_1_1.png\)"),
        ("NCP_1_1_1.png 2\n2_1_1_1.png 2", r"line 2: a slice is listed before; .* \(2_1_1_1.png\)"),
        ("7_1_1_1.png", r"a class is neither 0, 1, 2 nor a name; .* \(7_1_1_1.png\)"),
    ],
)
def test_wrong_split_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path / "images", "0_1_1_1.png")
    with pytest.raises(DataError, match=message):
        open_slices(folder, split=listed(tmp_path, text), classes=COVIDX_CLASSES)


def test_a_slice_in_both_spellings(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", "0_1_1_1.png", "Normal_1_1_1.png", "1_2_2_2.png")
    with pytest.raises(DataError, match=r"Normal_1_1_1.png: the same slice as .*0_1_1_1.png"):
        open_slices(folder, split=listed(tmp_path, "0_1_1_1.png"), classes=COVIDX_CLASSES)
    open_slices(folder, split=listed(tmp_path, "1_2_2_2.png"), classes=COVIDX_CLASSES)


# --- folders


def test_the_class_is_read_from_names(tmp_path: Path) -> None:
    names = ["0_10_1_3.png", "1_11_1_3.jpg", "x/NCP_12_1_3.png", "Normal_13_1_3.png"]
    folder = write(tmp_path, *names, "IMG-0001-00007.jpg", "readme.txt", ".hidden/0_1_1_1.png")
    dataset = open_slices(folder, classes=COVIDX_CLASSES)
    assert rows(dataset) == [
        ("0_10_1_3.png", 0, "10"),
        ("1_11_1_3.jpg", 1, "11"),
        ("Normal_13_1_3.png", 0, "13"),
        ("x/NCP_12_1_3.png", 2, "12"),
    ]
    assert dataset.issues.lines() == ["files without a class: 1 (IMG-0001-00007.jpg)"]
    with pytest.raises(
        DataError, match=r"1_11_1_3.jpg: a label is none of .* covid; .* \(pneumonia\)"
    ):
        open_slices(folder, classes=TWO)


def test_real_slices(shared: Path) -> None:
    dataset = open_slices(str(shared / "data" / "ct_slices"), classes=COVIDX_CLASSES)
    assert np.bincount([s.label for s in dataset.samples]).tolist() == [4, 4, 4]
    assert {s.patient for s in dataset.samples} == {"1000", "1001", "1002", "1003"}
    assert all(name.startswith("IMG-") for name in dataset.issues.unlabelled)


def test_the_class_is_read_from_folders(tmp_path: Path) -> None:
    folder = write(
        tmp_path, "nCT/1.jpg", "pCT/Patient 7/CT/2.jpg", "COVID/8/3.png", "control/4.dcm", "5.png"
    )
    (tmp_path / "Control").symlink_to("control")  # a linked folder is not followed, but named
    dataset = open_slices(folder, classes=TWO)
    assert rows(dataset) == [
        ("COVID/8/3.png", 1, "8"),
        ("control/4.dcm", 0, ""),
        ("nCT/1.jpg", 0, ""),
        ("pCT/Patient 7/CT/2.jpg", 1, "Patient 7"),
    ]
    assert dataset.samples[3].image.endswith("/pCT/Patient%207/CT/2.jpg")
    assert dataset.issues == DatasetIssues(
        unlabelled=("5.png",), unreadable=(("Control", "not_regular_file"),)
    )
    write(tmp_path, "NiCT/6.jpg")
    with pytest.raises(DataError, match=r"NiCT/6.jpg: a label is none of the classes.* \(NiCT\)"):
        open_slices(folder, classes=TWO)


def test_classes_of_other_names(tmp_path: Path) -> None:
    folder = write(tmp_path, "Benign/1.png", "malignant/p/2.png")
    dataset = open_slices(folder, classes=("malignant", "benign"))
    assert rows(dataset) == [("Benign/1.png", 1, ""), ("malignant/p/2.png", 0, "p")]


def test_unknown_layouts_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "sub/scan.png", "IMG_1.png")
    with pytest.raises(DataError, match=r"not recognised; give a table .*split file.*sub-folder"):
        open_slices(folder, classes=TWO)
    with pytest.raises(DataError, match=r"none: no such file.*; give a table"):
        open_slices(str(tmp_path / "none"), classes=TWO)
    with pytest.raises(DataError, match=r"holds no .*; give a table"):
        open_slices(write(tmp_path / "b", "x.txt"), classes=TWO)
    with pytest.raises(DataError, match=r"x.txt: holds no .*; give a table"):
        open_slices(str(tmp_path / "b" / "x.txt"), classes=TWO)


# --- table


def table(folder: Path, text: str) -> str:
    (folder / "labels.csv").write_text(text, encoding="utf-8-sig")
    return str(folder / "labels.csv")


def test_table(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "3.png"
    data = table(
        tmp_path,
        "patient,path,label,note\n"
        "p 1,images/1 å.png,control,x\n"
        ' ,"images/../2.png", COVID,\n'
        f"p2,{elsewhere},COVID-19,\n"
        "p2,s3://bucket/4.png,ncp,\n",
    )
    dataset = open_slices(data, classes=TWO)
    assert rows(dataset) == [
        ("images/1 å.png", 0, "p 1"),
        ("images/../2.png", 1, ""),
        (str(elsewhere), 1, "p2"),
        ("s3://bucket/4.png", 1, "p2"),
    ]
    assert [s.image for s in dataset.samples] == [
        (tmp_path / "images" / "1 å.png").as_uri(),
        (tmp_path / "2.png").as_uri(),
        elsewhere.as_uri(),
        "s3://bucket/4.png",
    ]
    assert dataset.issues == DatasetIssues()


def test_a_map_says_what_the_labels_of_a_table_mean(tmp_path: Path) -> None:
    data = table(tmp_path, "path,label\na.png,1\nb.png,0\nc.png,flu\n")
    mapped = {"0": "covid", "1": "control", "flu": "control"}
    assert rows(open_slices(data, classes=TWO, label_map=mapped)) == [
        ("a.png", 0, ""),
        ("b.png", 1, ""),
        ("c.png", 0, ""),
    ]


def test_a_map_says_what_the_folders_mean(tmp_path: Path) -> None:
    folder = write(tmp_path, "0/a.png", "1/b.png")
    mapped = {"0": "covid", "1": "control"}
    assert [s.label for s in open_slices(folder, classes=TWO, label_map=mapped).samples] == [1, 0]


def test_a_map_merges_the_classes_of_a_split(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", "0_1_1_1.png", "CP_3_1_1.png")
    split = listed(tmp_path, "0_1_1_1.png\n1_3_1_1.png\n")
    mapped = {"pneumonia": "covid"}
    opened = open_slices(folder, split=split, classes=TWO, label_map=mapped)
    assert [s.label for s in opened.samples] == [0, 1]
    with pytest.raises(ConfigError, match="maps numbers, but in a split file 0 is control"):
        open_slices(folder, split=split, classes=TWO, label_map={"1": "covid"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\na.png,0\n", "no column label; add it .present: path, class."),
        ("", "no column uri, path or name"),
        ("path,label\n", "no row; write one row per slice"),
        (
            "path,label\na.png,covid\nb.png,2\n",
            r"line 3: a label is a number.*--label-map 0=CLASS.*\(2\)",
        ),
        ("path,label\na.png,lymphoma\n", r"line 2: a label is none of the classes.*\(lymphoma\)"),
        ("path,label\na.png,²\n", r"label is none .*\(²\)"),
        ("path,label\na.png,\n", "line 2: no label"),
        ("path,label\na,b.png,0\n", "a row has 3 cells, the header 2"),
        ("path,label,patient\na.png,0\n", "a row has 2 cells, the header 3"),
        (
            "path,label\na.png,covid\n./a.png,covid\n",
            r"line 3: a slice is listed before; .* \(./a.png\)",
        ),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_slices(table(tmp_path, text), classes=TWO)


def test_table_and_split_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"selects its slices itself; leave out the split \(list\.txt\)"
    ):
        open_slices(table(tmp_path, "path,label\na.png,0\n"), split="list.txt", classes=TWO)


# --- reading


def test_check_names_what_cannot_be_read(tmp_path: Path) -> None:
    data = table(tmp_path, "path,label\na.png,nCT\nb.png,nCT\nc.png,pCT\nd.png,pCT\n")
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "c.png").write_bytes(png(2)[:-9])
    (tmp_path / "d.png").write_bytes(b"")
    dataset = check_slices(open_slices(data, classes=TWO), contract=CONTRACT, threads=2)
    assert rows(dataset) == [("a.png", 0, "")]
    assert dataset.issues.unreadable == (
        ("b.png", "not_found"),
        ("c.png", "truncated"),
        ("d.png", "empty_file"),
    )
    pixels = read_slice(dataset.samples[0].image, contract=CONTRACT)
    np.testing.assert_array_equal(pixels, to_input(open_image(png(1)).frame(0), CONTRACT).pixels)
    assert pixels.dtype == np.uint8
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"no slice can be used; .* \(unreadable slices: 4 "):
        check_slices(dataset, contract=CONTRACT, threads=1)


def test_on_s3(s3: S3Server) -> None:
    s3.bucket("slices")
    s3.upload("slices", "set/images/NCP_1_2_3 +.png", png(1))
    s3.upload("slices", "set/images/0_2_2_3.png", png(2))
    s3.upload("slices", "set/lists/labels.csv", b"path,label\n../images/0_2_2_3.png,control\n")
    s3.upload("slices", "set/lists/split.txt", b"0_2_2_3.png\n2_9_9_9.png\n")
    one = SliceSample("NCP_1_2_3 +.png", "s3://slices/set/images/NCP_1_2_3 +.png", 2, "1")
    other = SliceSample("0_2_2_3.png", "s3://slices/set/images/0_2_2_3.png", 0, "2")
    folder = "s3://slices/set/images"
    dataset = open_slices(folder, classes=COVIDX_CLASSES)
    assert check_slices(dataset, contract=CONTRACT, threads=2).samples == (other, one)
    dataset = open_slices(folder, split="s3://slices/set/lists/split.txt", classes=COVIDX_CLASSES)
    assert dataset == SliceSet((other,), DatasetIssues(missing=("2_9_9_9.png",)))
    dataset = open_slices("s3://slices/set/lists/labels.csv", classes=COVIDX_CLASSES)
    assert dataset.samples == (SliceSample("../images/0_2_2_3.png", other.image, 0, ""),)
