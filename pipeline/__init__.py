"""Fine-tune a hybrid reasoning model (Qwen3) so that it keeps both of its modes, and measure that it did.

The modules in the order of the story: ``sources`` → ``conversations`` → ``chat_format`` → ``mix`` → ``train`` →
``evaluate`` → ``report``; ``run`` plays them all, ``course`` executes the notebooks. Importing the package loads
neither torch nor unsloth.
"""

__version__ = "0.1.0"
