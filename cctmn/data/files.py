"""The files of a labelled data set: its images by name, and its lists as text.

Both kinds of data set, lesions and slices, list their files through this module.

Reads: a folder or a file, local or on S3.
Returns: relative names with their objects, or the text of a list.
"""

from __future__ import annotations

from typing import Final

from cctmn import store
from cctmn.errors import DataError, InputError
from cctmn.store import ObjectInfo

IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")


def list_images(folder: str, *, suffixes: tuple[str, ...], hint: str) -> dict[str, ObjectInfo]:
    """Return the images at any depth, sorted by their name relative to the folder.

    A link, pipe or locked folder is listed with its error code, because it may hold images. Hidden
    files are left out, because editors and macOS leave copies there. Raises DataError, with `hint`
    as the advice, if there is no image.
    """
    base = store.to_uri(folder).rstrip("/")
    images = {}
    try:
        for info in store.list_objects(base, hint=hint):
            name = store.relative(info.uri, base)
            # An empty name is the folder itself.
            if not name and info.error_code:
                reason = info.error_code.replace("_", " ")
                raise DataError(f"{reason}; check the folder and its rights", folder)
            hidden = any(part.startswith(".") for part in name.split("/"))
            if name and not hidden and (info.error_code or name.lower().endswith(suffixes)):
                images[name] = info
    except InputError as error:
        raise DataError(error.text, error.where) from None
    if not images:
        raise DataError(f"holds no {' '.join(suffixes)} image; {hint}", folder)
    return images


def stem(name: str) -> str:
    """Return the file name without folders and image suffix; other dots belong to the name."""
    base = name.rpartition("/")[2]
    cut, dot, suffix = base.rpartition(".")
    return cut if dot + suffix.lower() in IMAGE_SUFFIXES else base


def read_text(place: str) -> str:
    """Read a list at a path or URI as text.

    Raises ObjectError if it cannot be read, and DataError if it is not UTF-8.
    """
    try:
        # Excel writes a BOM.
        return store.read_all(store.to_uri(place), hint="give a text file").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("not UTF-8 text; save it as UTF-8", place) from None
