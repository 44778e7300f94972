"""Manifests of what the operator makes, from typed specs. Pure."""
