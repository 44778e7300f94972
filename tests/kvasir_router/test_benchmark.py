"""The benchmark's simulation, on a trace made by hand."""

import json

from benchmarks.router import hashes, read_trace, simulate
from kvasir_router.policies import PrefixAffinity, RoundRobin


def test_conversations_find_their_blocks(tmp_path):
    """Twenty conversations of ten turns on four replicas: affinity finds nearly all that one cache would."""
    lines = []
    for turn in range(10):
        for number in range(20):
            blocks = [0, *(1000 * (number + 1) + block for block in range(4 * (turn + 1)))]
            fields = {"timestamp": 60_000 * turn + 1000 * number, "hash_ids": blocks}
            lines.append(json.dumps(fields | {"input_length": 512 * len(blocks), "output_length": 10}))
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(lines))
    trace = read_trace(file)
    ideal = simulate(trace, RoundRobin, 1, 10**9).hit_share
    affinity = simulate(trace, PrefixAffinity, 4, 10**9).hit_share
    assert 0.7 < ideal < 0.9
    assert affinity > ideal - 0.05
    assert simulate(trace, RoundRobin, 4, 10**9).hit_share < affinity
    assert simulate(trace, PrefixAffinity, 4, 10, routers=2).hit_share < affinity


def test_hashes_share_a_common_beginning():
    one, other = hashes((1, 2, 3, 4)), hashes((1, 2, 9, 9))
    common = sum(a == b for a, b in zip(one, other, strict=True))
    assert 0 < common < len(one)
