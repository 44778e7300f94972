"""`kvasir-runtime bench`: how fast a model runs on this machine, with nothing in between but the engine."""
