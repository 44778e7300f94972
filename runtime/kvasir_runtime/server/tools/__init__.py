"""Calls of the client's functions: offered to the model, held to their form, and read from its text."""
