"""All errors of the package, their exit codes, and the codes of slices that cannot be scored.

Exception
|-- CctmnError            a command stops; the user can fix the cause
|   |-- ConfigError       exit code 2: an option, preset, settings file or --set is not valid
|   |-- InputError        exit code 2: INPUT does not exist, or it is a manifest that is not valid
|   |-- DataError         exit code 2: a labelled data set is missing or broken
|   |-- ResumeError       exit code 2: OUT belongs to another job
|   |-- ObjectError       exit code 2: one stored object cannot be read; has a code
|   |-- ModelError        exit code 4: a model folder or checkpoint is missing or damaged
|   |-- PreflightError    exit code 4: OUT, Ray or a device is not available
|   `-- StoreError        exit code 4: storage did not answer after its retries
`-- SliceError            one slice cannot be scored; has a code, and becomes a row
"""

from __future__ import annotations

import json
import re
from os import PathLike
from typing import Final

# Exit codes of every command and of every job.
EXIT_OK: Final = 0
EXIT_BUG: Final = 1
EXIT_USAGE: Final = 2
EXIT_ERROR_RATE: Final = 3
EXIT_REFUSED: Final = 4
# Results of `cctmn accept` other than passed, which is EXIT_OK.
EXIT_NOT_ACCEPTED: Final = 5
EXIT_TOO_FEW: Final = 6
EXIT_STOPPED: Final = 130


class CctmnError(Exception):
    """A cause that the user can fix. The message is one line: "where: what; what to do (names)".

    `where` is the file or folder, `names` holds further names of files, patients and the like.
    They are apart from the text because a log, which is kept and shared, gets the text alone.
    """

    exit_code: int = EXIT_USAGE

    def __init__(self, text: str, where: str | PathLike[str] = "", names: str = "") -> None:
        super().__init__(text, str(where), names)
        self.text, self.where, self.names = text, str(where), names
        self._add_wire()

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return place + self.text + (f" ({self.names})" if self.names else "")

    def _add_wire(self) -> None:
        """End the traceback with the line of to_wire: a traceback is all that Ray hands on."""
        self.__notes__ = [to_wire(self)]


class ConfigError(CctmnError):
    """An option, preset, settings file or --set is not valid."""


class InputError(CctmnError):
    """INPUT does not exist, matches nothing, or is a manifest that cannot be read."""


class DataError(CctmnError):
    """A labelled data set is missing or broken, or its splits share a patient."""


class ResumeError(CctmnError):
    """OUT belongs to another job: its settings differ, or its writer is still alive."""


class ObjectError(CctmnError):
    """One stored object cannot be read.

    `code` is a key of OBJECT_CODES, and a key of SLICE_CODES too, so that the reader of slices can
    turn it into a row. `where` is the path or URI. `hint` says what to do; without one the code's
    own hint is used.
    """

    def __init__(self, code: str, where: str, hint: str = "") -> None:
        assert code in OBJECT_CODES, code
        self.reason, usual_hint = OBJECT_CODES[code]
        super().__init__(f"{self.reason}; {hint or usual_hint}", where)
        self.code, self.args = code, (code, where, hint)
        self._add_wire()


class ModelError(CctmnError):
    """A model folder or checkpoint is missing, damaged or of an unknown form."""

    exit_code = EXIT_REFUSED


class PreflightError(CctmnError):
    """Something that the job needs is not available: a writable OUT, Ray or a device."""

    exit_code = EXIT_REFUSED


class StoreError(CctmnError):
    """Storage did not answer after its retries; running the same command again resumes the job."""

    exit_code = EXIT_REFUSED


class SliceError(Exception):
    """One slice cannot be scored.

    `code` is a key of SLICE_CODES. There is no other text: messages of libraries repeat header
    values and member names, and neither may leave the hospital.
    """

    def __init__(self, code: str) -> None:
        assert code in SLICE_CODES, code
        super().__init__(code)
        self.code = code

    @property
    def sentence(self) -> str:
        """The fixed sentence of the code."""
        return SLICE_CODES[self.code]


_WIRE: Final = re.compile(r"^cctmn error (\[.*\])$", re.MULTILINE)


def to_wire(error: CctmnError) -> str:
    """Return the error as one line of text, for another process to read with from_wire."""
    return f"cctmn error {json.dumps([type(error).__name__, *error.args])}"


def from_wire(text: str) -> CctmnError | None:
    """Return the first CctmnError in a text, a line of to_wire or a traceback; None without one."""
    for line in _WIRE.findall(text):
        name, *args = json.loads(line)
        kind = globals().get(name)
        if isinstance(kind, type) and issubclass(kind, CctmnError):
            error: CctmnError = kind(*args)
            return error
    return None


# Why one object cannot be read, and the usual hint.
OBJECT_CODES: Final[dict[str, tuple[str, str]]] = {
    "not_found": ("not found", "check the name"),
    "permission_denied": ("permission denied", "ask for the right to read it"),
    "not_regular_file": ("not a regular file", "give a file"),
    "truncated": ("shorter than expected", "copy it again"),
    "archived": ("in archive storage", "restore it first"),
    "storage_refused": ("refused by the storage", "check its encryption and its rights"),
    "storage_failed": ("not read from the storage", "run the same command again"),
    "changed": ("replaced after it was listed", "run the same command again"),
}

# Why one slice cannot be scored.
SLICE_CODES: Final[dict[str, str]] = {
    # --- The object
    "not_found": "The object is no longer where the inventory saw it.",
    "permission_denied": "The object may not be read with the rights of this job.",
    "not_regular_file": "The entry is a link, device, socket or pipe, not a regular file.",
    "archived": "The object is in archive storage, such as Glacier, and must be restored first.",
    "storage_refused": "The storage refuses the object: other encryption, or blocked by its owner.",
    "storage_failed": "The storage fails for this object, each time; the next run tries again.",
    "changed": "The object was replaced after it was listed; the next run reads the new one.",
    "empty_file": "The object holds no bytes.",
    "unsupported_format": "The content is none of DICOM, PNG, JPEG, TIFF, zip or tar.",
    "not_an_image": "The content is a text, program, document or table, not an image.",
    "system_file": "The file belongs to an operating system, a storage device or cctmn itself.",
    "too_large": "The object or its image exceeds the size limit.",
    "too_small": "The image is smaller than the smallest side that can be scored.",
    # --- The archive
    "archive_empty": "The archive holds no regular file.",
    "archive_encrypted": "The member is encrypted.",
    "archive_split": "The archive is split over several files; join them to score it.",
    "archive_truncated": "The archive ends too early; members after the cut are lost.",
    "archive_bomb": "The archive claims or inflates to more than its limits allow.",
    "archive_depth": "The member is itself an archive; unpack it one level to score it.",
    "crc_error": "The member does not match its checksum.",
    "unsafe_member": "The member is a link, device or sparse file and is not followed.",
    "unsupported_compression": "The member's compression method is not supported.",
    # --- The file format of the image
    "corrupt": "The content breaks the rules of its own format.",
    "truncated": "The content ends before the image does.",
    "decode_error": "The compressed image cannot be decoded.",
    "decoder_died": "The decoder crashed, hung, or asked for more memory than its limit.",
    "not_dicom": "The content is not a DICOM data set although it is marked as one.",
    "dicomdir": "The object is a DICOM media directory, not an image.",
    "no_pixel_data": "The DICOM data set holds no image.",
    "invalid_header": "A required attribute of the image is missing or contradicts another.",
    "pixel_length_mismatch": "The pixel data do not have the length that the header implies.",
    "unsupported_transfer_syntax": "There is no decoder for the transfer syntax.",
    "unsupported_bits": "The sample depth or type is not supported.",
    "ambiguous_depth": "An image of more than 8 bits without full range has no known scale.",
    # --- The kind of image
    "not_ct_sop_class": "The SOP class is not a CT image.",
    "wrong_modality": "The modality is not CT.",
    "localizer": "The image is a localizer (scout).",
    "derived_map": "The image is a derived map or projection, not a CT slice.",
    "not_axial": "The image plane is not axial.",
    "color": "The image is in colour.",
    # --- The values of the image
    "invalid_rescale": "The rescale slope or intercept is zero, not finite or out of range.",
    "missing_rescale": "The rescale attributes are missing, so stored values are not HU.",
    "no_air": "The slice shows neither lung nor air, as in a field of view aimed at the spine.",
    "implausible_hu": "The HU values are not those of a CT slice of a body.",
    "constant_image": "The image has fewer than 8 grey levels.",
    # --- The lesion mask of a labelled slice
    "mask_unreadable": "The mask is not a whole PNG of 8-bit grey values or palette indices.",
    "mask_size": "The mask does not have the size of its image.",
    "mask_value": "The mask holds a value other than 0, 1, 2 (GGO) and 3 (consolidation).",
}

# The codes of what is rightly no slice to score. All other codes are errors: a slice is missing.
PASSED_OVER: Final = frozenset(
    {
        "not_an_image",
        "system_file",
        "dicomdir",
        "not_ct_sop_class",
        "wrong_modality",
        "localizer",
        "derived_map",
        "not_axial",
    }
)

# The codes that say nothing about the slice. Its row is withdrawn and the slice is read again.
TRANSIENT: Final = frozenset({"storage_failed", "changed"})


def state_of(code: str) -> str:
    """Return the state of a row with this error code: "ok", "passed_over" or "error"."""
    if not code:
        return "ok"
    return "passed_over" if code in PASSED_OVER else "error"
