"""How far two texts are apart, letter by letter."""


def edit_distance(one: str, other: str) -> int:
    """The fewest letters to insert, delete or replace that make one text the other (Levenshtein)."""
    distances = list(range(len(other) + 1))  # from the first i letters of `one` to each beginning of `other`
    for i, letter in enumerate(one, start=1):
        before, distances[0] = distances[0], i
        for j, wanted in enumerate(other, start=1):
            same = before + (letter != wanted)
            before = distances[j]
            distances[j] = min(same, distances[j] + 1, distances[j - 1] + 1)
    return distances[-1]
