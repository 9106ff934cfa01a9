"""Where the hubs are, and whether they can be reached: asked before a library would retry for half a minute.

In: ``huggingface`` or ``modelscope``. Out: host and port, a yes or no within seconds, or a ``UserError``. Standard library
alone, so that ``doctor`` works before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import urllib.request
from urllib.parse import urlsplit

from pipeline.core.errors import UserError

HUBS = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
_ENDPOINTS = {
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co"),
    "modelscope": ("MODELSCOPE_DOMAIN", "https://www.modelscope.cn"),
}


def hub_url(hub: str) -> str:
    """The hub's address; HF_ENDPOINT and MODELSCOPE_DOMAIN are honoured."""
    variable, default = _ENDPOINTS[hub]
    url = os.environ.get(variable) or default
    return url if "://" in url else f"https://{url}"


def hub_address(hub: str) -> tuple[str, int]:
    """Host and port of the hub; port 0 where the address names none that can exist."""
    parts = urlsplit(hub_url(hub))
    try:
        port = parts.port
    except ValueError:  # not a number, or out of range: nothing will answer there
        return parts.hostname or "", 0
    return parts.hostname or "", (80 if parts.scheme == "http" else 443) if port is None else port


def offline(hub: str) -> bool:
    """Whether the user has asked not to go to this hub (HF_HUB_OFFLINE)."""
    return hub == "huggingface" and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def reachable(address: str, seconds: float = 2.0) -> bool:
    """Whether a TCP connection to the address, or to the proxy in force for it, opens within ``seconds``.

    The lookup of the name is limited too: at most twice ``seconds`` pass.
    """
    parts = urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", port), timeout=seconds):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # resolving a name has no time limit of its own
    thread.start()
    thread.join(2 * seconds)
    return connected.is_set()


def require_hub(hub: str, what: str, instead: str) -> None:
    """Fail now where the hub cannot be reached.

    Args:
        what: what would come from there. instead: what to do offline; both go into the message.

    Raises:
        UserError: within five seconds.
    """
    if offline(hub):
        raise UserError(f"{what} would come from {HUBS[hub]}, but HF_HUB_OFFLINE is set. {instead}")
    if not reachable(hub_url(hub)):
        raise UserError(
            f"{what} would come from {HUBS[hub]}, which cannot be reached from here. To go on offline: {instead}"
        )
