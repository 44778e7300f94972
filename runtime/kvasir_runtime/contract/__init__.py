"""What the operator, the router and the runtime agree on. Torch-free; the only part of the runtime others may import.

- `engine_args`: every setting of an engine, as a flag, an environment variable and a field
- `memory`: how many bytes a model and its KV cache take
- `admin_api`: what the operator port answers
- `failures`: why a process ended, written where the kubelet finds it
- `metric_names`: series that dashboards and scalers rely on
- `quantities`: byte counts as Kubernetes writes them
"""
