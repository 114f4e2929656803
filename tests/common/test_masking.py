"""Passwords of storages never leave job.toml."""

from __future__ import annotations

import pytest

from hwprune.common.masking import has_password, mask_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:geheim@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql+psycopg://me:ge:h@im@host/db", "postgresql+psycopg://me:***@host/db"),
        ("mysql://:geheim@host/db", "mysql://:***@host/db"),
        ("postgresql://me@host/db?password=geheim&sslmode=require", "postgresql://me@host/db?password=***&sslmode=require"),
        ("can't connect to postgresql://me:geheim@host/db now", "can't connect to postgresql://me:***@host/db now"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("sqlite:////home/me/run/study.db", "sqlite:////home/me/run/study.db"),
        ("journal:/shared/study.log", "journal:/shared/study.log"),
        ("ssh://me@host:22/usr/bin/hwprune", "ssh://me@host:22/usr/bin/hwprune"),
        ("", ""),
    ],
)
def test_passwords_are_hidden_and_nothing_else(text, shown):
    assert mask_password(text) == shown
    assert has_password(text) is (text != shown)
    assert "geheim" not in mask_password(text)
