"""Rows sorted into groups, each with a matrix of its own, and the tiles of rows that programs take from them."""

import triton
import triton.language as tl


@triton.jit
def group_of_tile(starts_ptr, num_groups, tile, ROWS: tl.constexpr):
    """The group of a tile of at most ROWS rows, its first row, and where its group ends.

    Group g has the rows `starts[g]` to `starts[g + 1]`, in tiles that begin at its first row. Tiles are numbered so
    that group g's are from `starts[g] // ROWS + g` on: a tile whose first row is not before the end has no rows.
    `starts[-1] // ROWS + num_groups` tiles are enough, whatever lies in the groups.
    """
    group = tl.full((), 0, tl.int32)
    beyond = num_groups
    while beyond - group > 1:
        middle = (group + beyond) // 2
        before = tl.load(starts_ptr + middle) // ROWS + middle <= tile
        group = tl.where(before, middle, group)
        beyond = tl.where(before, beyond, middle)
    start = tl.load(starts_ptr + group)
    end = tl.load(starts_ptr + group + 1)
    return group, start + (tile - start // ROWS - group) * ROWS, end
