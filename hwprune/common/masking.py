"""Passwords in addresses, hidden before an address is shown or stored for others."""

from __future__ import annotations

import re

HIDDEN = "***"
_USER_PART = re.compile(r"(\w[\w+.-]*://[^:/@\s]*):\S*@")
"""``scheme://user:PASSWORD@``, up to the last @: a password may hold one."""
_QUERY_PART = re.compile(r"([?&](?:password|passwd|pwd|sslpassword)=)[^&\s]*", re.IGNORECASE)


def mask_password(text: str) -> str:
    """``text`` with the password of every address in it replaced by ``***``; texts without one are unchanged."""
    return _QUERY_PART.sub(rf"\g<1>{HIDDEN}", _USER_PART.sub(rf"\g<1>:{HIDDEN}@", text))


def has_password(text: str) -> bool:
    """Does an address in ``text`` hold a password?"""
    return mask_password(text) != text
