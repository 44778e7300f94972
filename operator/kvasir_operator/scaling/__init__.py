"""How many replicas demand asks for. Pure. Nothing is here yet: `replicas` decides, within the bounds of `scaling`."""
