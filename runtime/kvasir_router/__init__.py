"""The entry point of a service: finds the replica that has a prompt's prefix, holds requests while none is there."""
