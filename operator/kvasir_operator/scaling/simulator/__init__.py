"""Replays request traces against a model of replicas, with any policy: what scaling would have done, and at what cost.

    python -m kvasir_operator.scaling.simulator run --trace FILE

`traces` (requests) → `fleet` (router, replicas that start and drain, a policy that looks at them) of `replica`s
(an engine's steps) → `report` (tables) and `plots`.
"""
