"""Programs that run inside a peer's own environment, each in its own process: standard library plus that peer."""
