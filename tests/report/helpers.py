"""What several test files of this folder need."""

from __future__ import annotations

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}}"
