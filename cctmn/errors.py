"""The whole tree of failures.

In: nothing. Out: exceptions for what stops a command (each with its exit code) and the table of
codes for what stops one slice. A slice's failure becomes a row, never an exception of the job, and
its text is the fixed sentence of its code: library messages echo header values and member names,
and neither may leave the hospital.
"""

from __future__ import annotations

from typing import Final


class CctmnError(ValueError):
    """Something a user can cause and mend; the message is one line: what, where, what to do."""

    exit_code = 2


class ConfigError(CctmnError):
    """An option, preset, TOML file or --set that does not hold."""


class InputError(CctmnError):
    """INPUT does not exist, matches nothing or is a manifest that cannot be read."""


class DataError(CctmnError):
    """A labelled data set that is missing or broken, or whose splits share a patient."""


class ResumeError(CctmnError):
    """OUT belongs to another job: another fingerprint, or a writer that is still alive."""


class ModelError(CctmnError):
    """A model folder or checkpoint that is missing, damaged or of an unknown form."""

    exit_code = 4


class PreflightError(CctmnError):
    """What the job needs is not there: OUT cannot be written, Ray or a device is not to be had."""

    exit_code = 4


class StoreError(CctmnError):
    """Storage did not answer after its retries; running the same command again resumes."""

    exit_code = 4


class SliceError(ValueError):
    """One slice cannot be scored. `code` is a key of SLICE_CODES; there is no other text."""

    def __init__(self, code: str) -> None:
        assert code in SLICE_CODES, code
        super().__init__(code)
        self.code = code

    @property
    def sentence(self) -> str:
        """The fixed sentence of the code."""
        return SLICE_CODES[self.code]


SLICE_CODES: Final[dict[str, str]] = {
    # the object
    "not_found": "The object is no longer where the inventory saw it.",
    "permission_denied": "The object may not be read with the rights of this job.",
    "not_regular_file": "The entry is a link, device, socket or pipe, not a regular file.",
    "empty_file": "The object holds no bytes.",
    "unsupported_format": "The content is none of DICOM, PNG, JPEG, TIFF, zip or tar.",
    "too_large": "The object or its image exceeds the size limit.",
    "too_small": "The image is smaller than the smallest side that can be scored.",
    # the archive
    "archive_empty": "The archive holds no regular file.",
    "archive_encrypted": "The member is encrypted.",
    "archive_truncated": "The archive ends too early; members after the cut are lost.",
    "archive_bomb": "The archive claims or inflates to more than its limits allow.",
    "archive_depth": "The member is itself an archive; unpack it one level to score it.",
    "crc_error": "The member does not match its checksum.",
    "unsafe_member": "The member is a link, device or sparse file and is not followed.",
    "unsupported_compression": "The member's compression method is not supported.",
    # the container of the image
    "corrupt": "The content breaks the rules of its own format.",
    "truncated": "The content ends before the image does.",
    "decode_error": "The compressed image cannot be decoded.",
    "not_dicom": "The content is not a DICOM data set although it is marked as one.",
    "dicomdir": "The object is a DICOM media directory, not an image.",
    "no_pixel_data": "The DICOM data set holds no image.",
    "invalid_header": "A required attribute of the image is missing or contradicts another.",
    "pixel_length_mismatch": "The pixel data do not have the length that the header implies.",
    "unsupported_transfer_syntax": "No decoder is at hand for the transfer syntax.",
    "unsupported_bits": "The sample depth or type is not supported.",
    "ambiguous_depth": "An image of more than 8 bits without full range has no known scale.",
    # what the image is
    "not_ct_sop_class": "The SOP class is not a CT image.",
    "wrong_modality": "The modality is not CT.",
    "localizer": "The image is a localizer (scout).",
    "derived_map": "The image is a derived map or projection, not a CT slice.",
    "not_axial": "The image plane is not axial.",
    "color": "The image is in colour.",
    # its values
    "invalid_rescale": "The rescale slope or intercept is zero, not finite or out of range.",
    "missing_rescale": "The rescale attributes are missing, so stored values are not HU.",
    "implausible_hu": "The HU values are not those of a CT slice of a body.",
    "constant_image": "The image has fewer than 8 grey levels.",
    # the lesion mask of a labelled slice
    "mask_unreadable": "The mask is not a whole PNG of 8-bit grey values or palette indices.",
    "mask_size": "The mask does not have the size of its image.",
    "mask_value": "The mask holds a value other than 0, 1, 2 (GGO) and 3 (consolidation).",
}
