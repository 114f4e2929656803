"""Numbers as text."""

from __future__ import annotations

from hwprune.common import formatting


def test_units():
    assert formatting.seconds(0.00123) == "1.23 ms"
    assert formatting.seconds(4.56e-5) == "45.6 us"
    assert formatting.count(669_000) == "669 k"
    assert formatting.size(2_680_000) == "2.68 MB"
    assert formatting.duration(3723) == "1:02:03"
    assert formatting.speedup(1.5, 1.48, 1.52) == "1.50x [1.48, 1.52]"
