"""Fine-tune a hybrid reasoning model (Qwen3) so that it keeps both of its modes, and measure that it did.

The modules in the order of the story: ``sources`` → ``conversations`` → ``chat_format`` → ``mix`` → ``train`` →
``evaluate`` → ``report``; ``run`` plays them all, ``course`` executes the notebooks. Importing the package loads
neither torch nor unsloth.
"""

import os

# Threads of torch that have nothing to do sleep instead of spinning, which on a shared machine costs five to forty times
# the time (GNU's OpenMP reads this when torch is loaded).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
