"""What replicas have in common and pass on to each other: adapters, and the prefixes of prompts. Pure decisions."""
