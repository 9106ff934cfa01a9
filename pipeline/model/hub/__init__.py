"""Pretrained models by name: known ones, how one is fetched and checked, and what a model's folder is good for.

``known`` → ``package`` or ``online`` → ``convert`` (of a GGUF file) → ``fetch``, which does it all; ``check`` looks at any
folder, ``compare`` says how far apart two folders of one model are.
"""
