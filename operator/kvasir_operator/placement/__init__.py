"""What a replica needs, what the nodes have, and who waits for it. Pure: asked with values, never with the network."""
