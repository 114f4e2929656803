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


def test_drops():
    assert formatting.drop(0.004, share=True) == "0.4 points" and formatting.drop(-0.0125, share=True) == "-1.2 points"
    assert formatting.drop(0.004, share=False) == "+0.004" and formatting.drop(-12.3456, share=False) == "-12.35"
    assert formatting.is_share(0.93, higher_is_better=True)
    assert not formatting.is_share(0.93, higher_is_better=False) and not formatting.is_share(25.4, higher_is_better=True)


def test_the_limit_that_is_looked_at():
    """A point of an accuracy; of a perplexity a hundredth of one would be nothing."""
    assert formatting.usual_limit(0.93, share=True) == 0.01
    assert formatting.usual_limit(24.35, share=False) == 1.2 and formatting.usual_limit(float("inf"), share=False) == 0.01
