"""Objects by URI on local disk, on S3, and on any storage that is registered.

Callers write `from cctmn import store` and `store.read_all(uri)`. `uri.py` handles names alone,
`local.py` and `s3.py` implement the protocols of `protocols.py`, `objects.py` picks among them, and
`arrow.py` shows them to Arrow and Ray.
"""

from cctmn.store.objects import (
    arrow_filesystem,
    delete,
    find_objects,
    is_reachable,
    list_below,
    list_objects,
    look_up,
    make_folder,
    new_file,
    new_file_named_last,
    put,
    put_if_absent,
    put_if_match,
    read_all,
    read_optional,
    read_range,
    read_version,
    register,
    traits,
    unregister,
)
from cctmn.store.protocols import ObjectInfo, Sink, Source, Traits, Version
from cctmn.store.s3_client import Access as S3Access
from cctmn.store.s3_client import set_access as set_s3_access
from cctmn.store.uri import (
    below,
    display,
    is_absolute,
    join,
    parent,
    relative,
    scheme,
    to_path,
    to_uri,
)

__all__ = [
    "ObjectInfo",
    "S3Access",
    "Sink",
    "Source",
    "Traits",
    "Version",
    "arrow_filesystem",
    "below",
    "delete",
    "display",
    "find_objects",
    "is_absolute",
    "is_reachable",
    "join",
    "list_below",
    "list_objects",
    "look_up",
    "make_folder",
    "new_file",
    "new_file_named_last",
    "parent",
    "put",
    "put_if_absent",
    "put_if_match",
    "read_all",
    "read_optional",
    "read_range",
    "read_version",
    "register",
    "relative",
    "scheme",
    "set_s3_access",
    "to_path",
    "to_uri",
    "traits",
    "unregister",
]
