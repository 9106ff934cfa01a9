"""A pretrained model becomes hybrid: it gets think tokens and Qwen3's template, and is taught both modes.

``start`` (the model with its new tokens) → training by ``pipeline.run`` → ``export`` (one model folder) → ``accept`` → the
result; ``hybridise`` does it all.
"""
