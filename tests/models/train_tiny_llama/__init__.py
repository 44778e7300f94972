"""Trains the tiny Llama model and the two LoRA adapters that tests, samples and the demo serve.

Everything is made from text found on a CPython installation: the docstrings of the standard library, the language
reference in `pydoc_data.topics`, and the licence text. `make model` runs it, or by hand:

    cd tests/models && python -m train_tiny_llama --out .

It needs torch, transformers, tokenizers, safetensors and peft. `--help` lists the knobs; `MODEL.md` beside this folder
says what came out.
"""
