"""Cut what is long into bands, so that what is made of it on the way needs no room for all of it."""


def cut(length: int, most: int) -> list[slice]:
    """0 to `length` in slices of `most` at the most, one after the other; none of 0."""
    return [slice(start, min(start + most, length)) for start in range(0, length, most)]


def cut_rows(shape: tuple[int, ...], most_px: int) -> list[slice]:
    """The rows of an image of (H, W) likewise, `most_px` pixels at the most, but at least one row."""
    return cut(shape[0], max(1, most_px // max(shape[1], 1)))
