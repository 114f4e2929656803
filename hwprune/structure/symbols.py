"""Stand-ins for sizes that are known only at run time."""

from __future__ import annotations

from collections.abc import Iterable

PRIMES = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099, 1_000_117, 1_000_121)
"""Large primes, so that a batch dim is never mistaken for a factor of another."""


def factors(number: int, primes: Iterable[int]) -> tuple[int, list[int]]:
    """``number`` as (rest, the primes in it, with repetition)."""
    divisors = []
    if 0 < number < 2**62:  # larger ones are "to the end" of a slice
        for prime in primes:
            while number % prime == 0:
                number //= prime
                divisors.append(prime)
    return number, divisors
