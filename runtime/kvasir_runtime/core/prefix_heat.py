"""Which beginnings of prompts come again and again, so that another replica can compute them beforehand. Torch-free.

A tree of KV blocks: a node for each block of each prompt seen, found by the block's chained content hash, whose parent
is the block before it. A prompt that comes by warms the nodes on its path that were there already; so a node is never
warmer than its parent, and what is dropped when the tree grows too large are the coldest nodes, leaves first.

Heat halves every `HALF_LIFE_S`. Instead of cooling every node all the time, newer visits weigh more: one at time t
weighs 2^(t / half-life), and heat is read divided by that of now. Source: Cormode et al., Forward decay (ICDE 2009).
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Final

HALF_LIFE_S: Final = 600.0

MAX_NODES: Final = 16_384
"""Blocks remembered, about 6 MB with 16 tokens each."""

MAX_BLOCKS_OF_A_PROMPT: Final = 1024
"""What lies further back in a prompt is not looked at: about 0.5 ms for a prompt of 16,384 tokens or more."""

MIN_HITS: Final = 0.1
"""What is colder is not told of: one hit, 33 minutes ago."""

_REBASE_AT: Final = 2.0**40
"""A visit's weight from which all heat is divided by it: far from what a float can hold."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What, beside its tokens, decides whether a prompt's KV can be used: where its chain of hashes begins."""

    adapter: str = ""
    adapter_digest: str = ""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class HotPrefix:
    """Whole blocks from a prompt's beginning. `hits` is decayed; `block_hashes` are the chain's, in order."""

    token_ids: "array[int]"
    hits: float
    origin: Origin
    block_hashes: list[bytes]


@dataclass(eq=False, slots=True)
class _Node:
    block_hash: bytes
    parent: "_Node | None"
    token_ids: "array[int]"
    origin: Origin
    depth: int
    heat: float = 0.0
    seen_at: float = 0.0
    hottest_child: float = 0.0  # filled in by `hottest`


class PrefixHeat:
    """Remembers at most `max_nodes` blocks of prompts. Time is an argument, in seconds."""

    def __init__(self, block_size: int, max_nodes: int = MAX_NODES) -> None:
        self._block_size = block_size
        self._max_nodes = max_nodes
        self._nodes: dict[bytes, _Node] = {}
        self._epoch = 0.0

    def __len__(self) -> int:
        return len(self._nodes)

    def visit(self, token_ids: "array[int]", block_hashes: Sequence[bytes], origin: Origin, now: float) -> None:
        """A prompt came by. `block_hashes` are those of its full blocks, `token_ids` its tokens or more."""
        weight = self._weight(now)
        parent: _Node | None = None
        for depth, block_hash in enumerate(block_hashes[: min(MAX_BLOCKS_OF_A_PROMPT, self._max_nodes // 2)]):
            node = self._nodes.get(block_hash)
            if node is None:
                tokens = token_ids[depth * self._block_size : (depth + 1) * self._block_size]
                node = self._nodes[block_hash] = _Node(block_hash, parent, tokens, origin, depth)
            else:
                node.heat += weight
            node.seen_at = now
            parent = node
        if len(self._nodes) > self._max_nodes:
            self._drop_coldest()

    def hottest(self, count: int, max_tokens: int, now: float, *, salted: bool = False) -> list[HotPrefix]:
        """The prefixes that were used again most, hottest first, `max_tokens` in all; those with a salt if `salted`.

        A prefix ends where its prompts part ways: where no block that follows it is at least half as hot.
        """
        weight = self._weight(now)
        ends = [node for node in self._ends(MIN_HITS * weight) if salted or not node.origin.cache_salt]
        chosen: list[HotPrefix] = []
        for node in nlargest(count, ends, key=lambda node: (node.heat, node.depth)):
            length = (node.depth + 1) * self._block_size
            if length <= max_tokens:
                chosen.append(self._prefix(node, weight))
                max_tokens -= length
        return chosen

    def forget(self, adapter_digest: str) -> None:
        """Drop what was computed with an adapter that is gone."""
        for node in [node for node in self._nodes.values() if node.origin.adapter_digest == adapter_digest]:
            del self._nodes[node.block_hash]

    def _ends(self, coldest: float) -> Iterator[_Node]:
        for node in self._nodes.values():
            node.hottest_child = 0.0
        for node in self._nodes.values():
            if node.parent is not None:
                node.parent.hottest_child = max(node.parent.hottest_child, node.heat)
        return (node for node in self._nodes.values() if node.heat >= coldest and node.hottest_child < node.heat / 2)

    def _prefix(self, node: _Node, weight: float) -> HotPrefix:
        path: list[_Node] = []
        step: _Node | None = node
        while step is not None:
            path.append(step)
            step = step.parent
        tokens = array("i")
        for each in reversed(path):
            tokens.extend(each.token_ids)
        return HotPrefix(tokens, node.heat / weight, node.origin, [each.block_hash for each in reversed(path)])

    def _drop_coldest(self) -> None:
        """Down to three quarters, so that it is not done for every prompt."""
        keep = self._max_nodes * 3 // 4
        order = sorted(self._nodes.values(), key=lambda node: (-node.heat, -node.seen_at, node.depth))
        self._nodes = {node.block_hash: node for node in order[:keep]}

    def _weight(self, now: float) -> float:
        if not self._nodes:
            self._epoch = now
        weight = math.exp2(min((now - self._epoch) / HALF_LIFE_S, 1000.0))  # more would be no float
        if weight < _REBASE_AT:
            return weight
        for node in self._nodes.values():
            node.heat /= weight
        self._epoch = now
        return 1.0
