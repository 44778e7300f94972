"""From nothing to tokens, in front of one's eyes."""
