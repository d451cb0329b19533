"""Random choices without a random stream: a uniform number and a permutation that are functions of a string alone.

Nothing here has a state, so a run goes on anywhere by knowing which number comes next.
"""

import hashlib


def hash_uniform(key: str) -> float:
    """A number in [0, 1), uniform over keys."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64


def feistel_permutation(place: int, length: int, key: str) -> int:
    """Where `place` of 0 .. length - 1 goes in the permutation named by `key`; needs no memory, however long.

    A Feistel network of four rounds on the next even power of two, applied again until the result is below `length`
    (cycle walking).
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for round_ in range(4):
            digest = hashlib.blake2b(f"{key}/{round_}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & mask)
        place = left << half | right
        if place < length:
            return place


def lap_shift(lap: int, rows: int) -> int:
    """By how many places the records of a lap are handed on among rows (`DocumentSource.index`): another number in each
    lap, and 0 in the first."""
    return (lap * 0x9E3779B97F4A7C15 % (1 << 64) >> 32) % rows
