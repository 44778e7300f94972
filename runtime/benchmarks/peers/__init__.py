"""Kvasir beside vLLM, transformers and llama.cpp on this machine's CPU: `python -m benchmarks.peers`."""
