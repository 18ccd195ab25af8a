"""Columns of the tables that cctmn writes, one line of documentation each.

In: nothing (for predictions: the model's class names). Out: pyarrow schemas and the flags that a
scored row may carry. The inventory names objects and stays in OUT/private; predictions carry
nothing that identifies a patient and may be handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

COVIDX_CLASSES: Final = ("control", "pneumonia", "covid")  # in the order of the logits

INVENTORY: Final = pa.schema(
    [
        (
            "slice_id",
            pa.string(),
        ),  # HMAC-SHA256 of uri, member, occurrence and frame; 32 hex digits
        ("uri", pa.string()),  # file:///... (percent-encoded) or s3://bucket/key of the object
        ("member", pa.string()),  # name inside the archive, "" for a loose object
        ("occurrence", pa.int32()),  # 0, or n for the n-th repetition of the member's name
        ("frame", pa.int32()),  # frame or page, from 0
        ("frames", pa.int32()),  # frames or pages that the object or member holds
        ("container", pa.string()),  # "", "zip", "tar", "tar.gz", "tar.bz2" or "tar.xz"
        ("kind", pa.string()),  # by content: "dicom", "png", "jpeg", "tiff" or "" if none of them
        ("offset", pa.int64()),  # zip: of the local header; tar: of the data (unpacked); else 0
        ("packed_size", pa.int64()),  # bytes to fetch from offset; 0 if not known
        ("size", pa.int64()),  # bytes of the image file itself
        ("object_size", pa.int64()),  # bytes of the object: the archive's, for a member
        ("method", pa.int32()),  # zip compression method, else 0
        ("crc32", pa.uint32()),  # zip checksum, else 0
        ("etag", pa.string()),  # S3 ETag, or local size and modification time
        ("flags", pa.list_(pa.string())),  # what the archive alone can tell ("trailing_data")
        ("error_code", pa.string()),  # "" or why no image can be reached
    ]
)

LESION: Final = pa.struct(
    [
        ("x0", pa.float32()),  # px of the original image, as stored
        ("y0", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
        ("score", pa.float32()),  # 0..1
        ("label", pa.string()),  # a lesion class of the card
        ("mask_px", pa.int32()),  # area in px of the original image; null without a mask head
    ]
)

RANKED_BOX: Final = pa.struct(
    [(name, pa.float32()) for name in ("x0", "y0", "x1", "y1", "score")]  # px, px, px, px, 0..1
)

FLAGS: Final[dict[str, str]] = {
    "no_lung": "Hardly any lung is seen; the score means little.",
    "lossy": "The image was compressed with loss.",
    "small": "A side is below 256 px, under the trained resolution.",
    "orientation": "The image was turned to the standard orientation, or its own is unknown.",
    "oblique": "The plane is tilted by more than 5 degrees.",
    "monochrome1": "The display is inverted in the header; HU are not.",
    "multiframe": "The slice is one of several frames or pages of its object.",
    "trailing_data": "Bytes follow the end of the image or archive.",
    "alpha": "A transparency channel was dropped.",
    "color": "The picture was stored in colour with equal or nearly equal channels.",
    "window": "The grey values are not those of a lung window.",
    "inverted": "The grey values look inverted.",
    "not_ct_like": "The picture does not look like a CT slice.",
    "partly_blank": "A large part of the image is blank.",
    "missing_rescale": "The rescale attributes are missing; the stored values are plausible HU.",
}

# With one of these flags the scores are given, but the slice is outside what a model is made for.
ABSTAIN_FLAGS: Final = frozenset({"no_lung", "window", "inverted", "not_ct_like", "partly_blank"})


# A table of labels that cctmn writes; `cctmn score` takes it as a manifest. Tables from elsewhere
# need `label` and one of `uri` (or `path`), `name` and `slice_id`; further columns make cohorts.
LABELS: Final = pa.schema(
    [
        ("uri", pa.string()),  # where the slice is: absolute, or relative to the root of the images
        ("label", pa.string()),  # class of the image
        ("patient", pa.string()),  # "" if unknown; slices of one patient are drawn together
        ("scan", pa.string()),  # number of the scan among the patient's, "" if unknown
        ("body_x0", pa.int32()),  # px, box of the body; null if unknown
        ("body_y0", pa.int32()),
        ("body_x1", pa.int32()),
        ("body_y1", pa.int32()),
    ]
)


def predictions(
    classes: Sequence[str], *, ranked_boxes: bool = False, masks: bool = False
) -> pa.Schema:
    """Schema of OUT/predictions for a model with these image classes (none for a detector)."""
    fields: list[tuple[str, pa.DataType]] = [
        ("slice_id", pa.string()),  # key to the inventory
        ("study_key", pa.string()),  # keyed pseudonyms, 32 hex digits; null if the header has none
        ("series_key", pa.string()),
        ("patient_key", pa.string()),
        ("frame", pa.int32()),  # frame or page, from 0
        ("slice_z_mm", pa.float32()),  # position along the body axis, null if unknown
        ("rows", pa.int32()),  # px, of the original image
        ("cols", pa.int32()),
        ("spacing_row_mm", pa.float32()),  # distance between rows, null if unknown
        ("spacing_col_mm", pa.float32()),
        *[(f"p_{name}", pa.float32()) for name in classes],  # 0..1, by the card's activation
        ("pred_class", pa.string()),  # class of the largest logit, null for a detector
        *[(f"logit_{name}", pa.float32()) for name in classes],
        ("num_lesions", pa.int32()),  # length of lesions
        ("max_lesion_score", pa.float32()),  # null without a lesion
        ("lesions", pa.list_(LESION)),  # falling score
        ("flags", pa.list_(pa.string())),  # keys of FLAGS, sorted
        ("abstained", pa.bool_()),  # the slice is outside what the model is made for
        ("error_code", pa.string()),  # "" = scored
        ("error_message", pa.string()),  # the code's fixed sentence, "" = scored
        ("model_id", pa.string()),  # first 12 hex digits of the weights' sha256
        ("t_decode_ms", pa.float32()),  # fetch excluded
        ("t_score_ms", pa.float32()),  # share of its batch
    ]
    if ranked_boxes:
        fields.append(("ranked_boxes", pa.list_(RANKED_BOX)))  # all N, in the order of the features
    if masks:
        # of each of the lesions, on the stored image: the counts of COCO's compressed run lengths
        fields.append(("lesion_masks", pa.list_(pa.binary())))
    return pa.schema(fields)
