"""Whether the Hugging Face hub can be reached: asked once, as finding out by itself takes it a minute."""

import functools
import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

SECONDS = 3.0


@functools.cache
def hub_is_reachable() -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies() or os.environ.get("ALL_PROXY"):
        return True  # the proxy will know
    place = urlsplit(constants.ENDPOINT)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname, port), timeout=SECONDS).close()
    except OSError:
        return False
    return True
