"""The columns of every table that cctmn writes, each with its type, unit and meaning.

The inventory names objects and stays in OUT/private. Predictions hold nothing that identifies a
patient and may be handed on. The documentation of the columns is generated from this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple

import pyarrow as pa

CLASSES_KEY: Final = b"cctmn.classes"  # schema metadata: the image classes as a JSON list


class Column(NamedTuple):
    """One column of a table."""

    name: str
    type: pa.DataType
    doc: str  # unit and meaning; when it is null


def _schema(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema([(column.name, column.type) for column in columns])


INVENTORY_COLUMNS: Final = (
    Column(
        "slice_id",
        pa.string(),
        "Keyed id of the slice: HMAC-SHA256 of URI, member, occurrence and frame; 32 hex digits.",
    ),
    Column("uri", pa.string(), "The object: `file:///...` (percent-encoded) or `s3://bucket/key`."),
    Column("member", pa.string(), "Name inside the archive; empty for an object of its own."),
    Column("occurrence", pa.int32(), "0, or n for the n-th repetition of the member's name."),
    Column("frame", pa.int32(), "Frame or page, from 0."),
    Column("frames", pa.int32(), "Number of frames or pages in the object or member."),
    Column("container", pa.string(), 'Empty, or "zip", "tar", "tar.gz", "tar.bz2" or "tar.xz".'),
    Column("kind", pa.string(), 'By content: "dicom", "png", "jpeg", "tiff"; empty if none.'),
    Column(
        "offset",
        pa.int64(),
        "In a zip, where the local header begins; in a tar, where the unpacked data begin; else 0.",
    ),
    Column("packed_size", pa.int64(), "Bytes to read from the offset; 0 if unknown."),
    Column("size", pa.int64(), "Bytes of the image file itself."),
    Column("object_size", pa.int64(), "Bytes of the object; for a member, of the archive."),
    Column("method", pa.int32(), "Compression method of a zip member, else 0."),
    Column("crc32", pa.uint32(), "Checksum of a zip member, else 0."),
    Column("etag", pa.string(), "S3 ETag, or size and modification time of a local file."),
    Column("flags", pa.list_(pa.string()), "Flags that the archive alone decides."),
    Column("error_code", pa.string(), "Empty, or why no image can be reached."),
)
INVENTORY: Final = _schema(INVENTORY_COLUMNS)
# In the metadata of a file of the inventory: it holds all rows of each of its objects. A version
# that did not write this could be killed between two files with rows of one archive.
WHOLE_OBJECTS: Final = b"cctmn.whole_objects"

LESION_COLUMNS: Final = (
    Column("x0", pa.float32(), "Left edge in px of the stored image."),
    Column("y0", pa.float32(), "Top edge in px of the stored image."),
    Column("x1", pa.float32(), "Right edge in px of the stored image."),
    Column("y1", pa.float32(), "Bottom edge in px of the stored image."),
    Column("score", pa.float32(), "Confidence, 0 to 1."),
    Column("label", pa.string(), "Lesion class of the model's card."),
    Column(
        "mask_px", pa.int32(), "Area of the mask in px of the stored image; null without masks."
    ),
)
LESION: Final = pa.struct([(column.name, column.type) for column in LESION_COLUMNS])

RANKED_BOX: Final = pa.struct([(name, pa.float32()) for name in ("x0", "y0", "x1", "y1", "score")])

FLAGS: Final[dict[str, str]] = {
    "no_lung": "Hardly any lung is visible; the scores mean little.",
    "lossy": "The image was compressed with loss.",
    "small": "A side is shorter than 400 px, well below the 512 px of the training images; more "
    "and other lesions are found in such an image.",
    "orientation": "The image was turned to the standard orientation, or its own is unknown.",
    "oblique": "The plane is tilted by more than 5 degrees.",
    "monochrome1": "The header asks for an inverted display; Hounsfield units are not affected.",
    "multiframe": "The slice is one of several frames or pages of its object.",
    "trailing_data": "Bytes follow the end of the image or archive.",
    "alpha": "A transparency channel was dropped.",
    "color": "The picture was stored in colour with equal or nearly equal channels.",
    "window": "The grey values are not those of a lung window.",
    "inverted": "The grey values look inverted.",
    "not_ct_like": "The picture does not look like one upright axial CT slice.",
    "partly_blank": "A large part of the image is blank.",
    "missing_rescale": "The rescale attributes are missing; the stored values are plausible HU.",
    "derived": "The image was derived from others in a way that is not known.",
    "high_bits": "Bits above BitsStored were set; they were ignored.",
    "above_largest": "A value exceeds the largest one that the header states.",
    "padding": "The header declares padding with a value that cannot be read.",
    "saturated": "A few values were beyond the range of CT, as at metal; they were clipped.",
    "not_square": "Pixels are not square in mm; the image was resampled to square ones.",
}

# Of the DICOM header; null without one. Texts are known words only, else OTHER.
ACQUISITION_COLUMNS: Final = (
    Column("manufacturer", pa.string(), "Manufacturer of the scanner."),
    Column("scanner_model", pa.string(), "Model of the scanner."),
    Column("kernel", pa.string(), "Reconstruction kernel."),
    Column("slice_thickness_mm", pa.float32(), "Nominal thickness of the slice in mm."),
    Column("tube_voltage_kv", pa.float32(), "Peak tube voltage in kV."),
    Column("image_type", pa.string(), "Image type, its values separated by `\\`."),
    Column("transfer_syntax", pa.string(), "UID of the transfer syntax."),
    Column("instance_number", pa.int32(), "Number of the image in its series."),
)

# With one of these flags the scores are written, but the slice is outside what a model is made for.
ABSTAIN_FLAGS: Final = frozenset({"no_lung", "window", "inverted", "not_ct_like", "partly_blank"})


# The table of labels that `cctmn labels` writes. It is also the list of slices for `cctmn score`
# and the training list for `cctmn train classifier`.
LABELS_COLUMNS: Final = (
    Column("uri", pa.string(), "The slice: absolute, or relative to the root of the images."),
    Column("label", pa.string(), "Class of the image."),
    Column("patient", pa.string(), "Id of the patient; empty if unknown."),
    Column("scan", pa.string(), "Number of the scan among the patient's; empty if unknown."),
    Column("body_x0", pa.int32(), "Left edge of the body in px; null if unknown."),
    Column("body_y0", pa.int32(), "Top edge of the body in px; null if unknown."),
    Column("body_x1", pa.int32(), "Right edge of the body in px; null if unknown."),
    Column("body_y1", pa.int32(), "Bottom edge of the body in px; null if unknown."),
)
LABELS: Final = _schema(LABELS_COLUMNS)


def prediction_columns(
    classes: Sequence[str], *, ranked_boxes: bool = False, masks: bool = False
) -> list[Column]:
    """Return the columns of OUT/predictions for a model with these image classes.

    A detector has no image classes. `ranked_boxes` and `masks` add the columns of those settings.
    """
    columns = [
        Column("slice_id", pa.string(), "Keyed id of the slice, as in the inventory."),
        Column("study_key", pa.string(), "Keyed pseudonym of the study; null without a header."),
        Column("series_key", pa.string(), "Keyed pseudonym of the series; null without a header."),
        Column("patient_key", pa.string(), "Keyed pseudonym of the patient; null if unknown."),
        Column("frame", pa.int32(), "Frame or page, from 0."),
        Column("slice_z_mm", pa.float32(), "Position along the body axis in mm; null if unknown."),
        Column("rows", pa.int32(), "Height of the stored image in px."),
        Column("cols", pa.int32(), "Width of the stored image in px."),
        Column("spacing_row_mm", pa.float32(), "Distance between rows in mm; null if unknown."),
        Column("spacing_col_mm", pa.float32(), "Distance between columns in mm; null if unknown."),
        *ACQUISITION_COLUMNS,
        *(
            Column(f"p_{name}", pa.float32(), f"Score of the class {name}, 0 to 1.")
            for name in classes
        ),
        Column("pred_class", pa.string(), "Class of the largest logit; null for a detector."),
        *(Column(f"logit_{name}", pa.float32(), f"Logit of the class {name}.") for name in classes),
        Column("num_lesions", pa.int32(), "Number of lesions."),
        Column("max_lesion_score", pa.float32(), "Highest lesion score; null without a lesion."),
        Column("lesions", pa.list_(LESION), "The reported lesions by falling score."),
        Column("flags", pa.list_(pa.string()), "Flags of the slice, sorted."),
        Column("abstained", pa.bool_(), "Whether the slice is outside what the model is made for."),
        Column("error_code", pa.string(), "Empty if the slice is scored, else an error code."),
        Column("error_message", pa.string(), "The fixed sentence of the code; empty if scored."),
        Column("model_id", pa.string(), "First 12 hex digits of the SHA-256 of the weights."),
        Column("t_decode_ms", pa.float32(), "Time to decode the slice in ms, without reading it."),
        Column("t_score_ms", pa.float32(), "Time of its batch divided by the batch size, in ms."),
    ]
    if ranked_boxes:
        columns.append(
            Column(
                "ranked_boxes",
                pa.list_(RANKED_BOX),
                "All boxes that the classifier read, in the order of its features.",
            )
        )
    if masks:
        columns.append(
            Column(
                "lesion_masks",
                pa.list_(pa.binary()),
                "The mask of each lesion on the stored image: COCO's compressed run lengths.",
            )
        )
    return columns


def predictions(
    classes: Sequence[str], *, ranked_boxes: bool = False, masks: bool = False
) -> pa.Schema:
    """Return the schema of OUT/predictions; its metadata holds the image classes."""
    columns = prediction_columns(classes, ranked_boxes=ranked_boxes, masks=masks)
    return _schema(columns).with_metadata({CLASSES_KEY: json.dumps(list(classes)).encode()})


# Why a series was chosen for its study: the first of these rules that set it apart.
SERIES_REASONS: Final[dict[str, str]] = {
    "only_series": "No other series of the study has a slice with usable scores.",
    "original": "The others were derived from other images.",
    "whole_scan": "The others cover less of the body.",
    "thinnest": "Its slices are closest together; below 1.5 mm no difference is made.",
    "lung_kernel": "The others were reconstructed with a softer kernel.",
    "most_slices": "It has the most slices with usable scores.",
    "first_key": "The series are equal; its key comes first.",
}


def study_columns(classes: Sequence[str]) -> list[Column]:
    """Return the columns of OUT/studies for a model with these image classes."""
    return [
        Column("study_key", pa.string(), "Keyed pseudonym of the study."),
        Column("patient_key", pa.string(), "Keyed pseudonym of the patient; null if unknown."),
        Column("patient_studies", pa.int32(), "Studies of the patient in OUT; null if unknown."),
        Column("num_series", pa.int32(), "Series of the study, without passed-over ones."),
        Column("series_key", pa.string(), "The chosen series; null without a usable slice."),
        Column("series_reason", pa.string(), "Why this series; null without a usable slice."),
        Column("num_slices", pa.int32(), "Slices of the study, all series together."),
        Column("num_errors", pa.int32(), "Slices of the study that are errors."),
        Column("num_passed_over", pa.int32(), "Objects of the study that are rightly not scored."),
        Column("num_abstained", pa.int32(), "Scored slices of the study that abstain."),
        Column("num_used", pa.int32(), "Slices of the chosen series that the answer rests on."),
        *(
            Column(f"p_{name}", pa.float64(), f"Probability of {name}; null without an answer.")
            for name in classes
        ),
        Column("pred_class", pa.string(), "Class of the study; null without an answer."),
        Column(
            "deciding_slices",
            pa.list_(pa.string()),
            "slice_id of the slices that decide, by falling evidence of disease.",
        ),
        Column("slice_distance_mm", pa.float32(), "Median distance of the used slices; or null."),
        Column(
            "num_lesions",
            pa.int32(),
            "Lesions in the used slices; one that is on three slices counts three times.",
        ),
        Column(
            "lesion_area_mm2",
            pa.float64(),
            "Largest area of lesions on one used slice in mm2; null without masks or spacing.",
        ),
        Column(
            "lesion_volume_ml",
            pa.float64(),
            "Volume of lesions in the used slices in mL; null without masks, spacing or positions.",
        ),
        Column("flags", pa.list_(pa.string()), "Flags of the scored slices of the study, sorted."),
        Column("model_id", pa.string(), "First 12 hex digits of the SHA-256 of the weights."),
    ]


def studies(classes: Sequence[str]) -> pa.Schema:
    """Return the schema of OUT/studies; its metadata holds the image classes."""
    metadata = {CLASSES_KEY: json.dumps(list(classes)).encode()}
    return _schema(study_columns(classes)).with_metadata(metadata)


def classes_of(schema: pa.Schema) -> tuple[str, ...]:
    """Return the image classes of a predictions table, in the order of the logits.

    Files of older versions have no metadata; there the names of the logit columns decide.
    """
    metadata = schema.metadata or {}
    if CLASSES_KEY in metadata:
        return tuple(json.loads(metadata[CLASSES_KEY]))
    prefix = "logit_"
    return tuple(name.removeprefix(prefix) for name in schema.names if name.startswith(prefix))
