"""Fine-tune a hybrid reasoning model (Qwen3) so that it keeps both of its modes, and measure that it did.

The story in order, and where each step stands:

1. settings of a run                          ``settings.profile``, ``settings.load``
2. rows of a source become conversations      ``data.sources``, ``data.formats``, ``data.conversations``
3. conversations become tokens and loss mask  ``data.chat_format``
4. cleaning; what rows have in common         ``data.prepare``, ``data.pools``, ``data.screen``
5. a mix at a share                           ``data.mix``
6. a base is loaded, a method put on it       ``model.load``, ``model.methods``
7. training                                   ``training.train``
8. replies, and their form                    ``model.decode``, ``model.form``
9. both modes with EvalScope, and the report  ``evaluation.evaluate``, ``evaluation.report``
10. all of it in one directory                ``run``

Around it: a hybrid made of a pretrained model (``model.hub``, ``hybrid``), many runs compared (``studies``), training that
goes on from a run (``second``), what was trained used elsewhere (``export``), the same training in other frameworks
(``handover``), the notebooks (``course``), the commands (``cli``), and what all of them stand on (``core``).

**The import rule**: core ← settings ← model ← data ← training ← evaluation ← run ← hybrid ← studies ← second ← export ←
handover ← course ← cli. A wing imports from those before it, never from those behind, and no modules import each other in a
circle; ``make lint`` checks it. A function imports from the package only what loads a heavy library. Importing the package loads
neither torch nor unsloth.
"""

import os

from pipeline.core.place import cache_dir

# Threads of torch that have nothing to do spin for some microseconds, then sleep. GNU's OpenMP by itself spins on, which a shared
# machine pays for many times over; asleep at once, a second thread costs more than it gains. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# torch keeps what it compiles; by itself in a folder of the system's temp that nobody clears, made on `import unsloth`.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "torchinductor"))

__version__ = "0.1.0"
