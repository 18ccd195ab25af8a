"""Keyed pseudonyms: equal names give equal pseudonyms, which only the holder of the key can link.

The key stays in OUT/private. Without it a pseudonym cannot be checked against a guessed name.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

# 128 of the 256 bits of HMAC-SHA256 are kept: enough for no two slices to meet
KEPT_BYTES: Final = 16


def pseudonym(key: bytes, domain: str, *parts: str) -> str:
    """Return 32 hex digits: HMAC-SHA256 over the domain and the parts, cut to 128 bits.

    `domain` ("slice", "study", ...) keeps equal names of different things apart.
    """
    text = "|".join([domain, *(part.replace("|", "||") for part in parts)])
    digest = hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()
    return digest[:KEPT_BYTES].hex()
