"""The environment variables that Kubernetes adds to a pod for every Service in its namespace.

For a Service called ``omi-rt`` their names begin as our settings do: ``OMI_RT_SERVICE_HOST``,
``OMI_RT_PORT=tcp://10.0.0.1:8080``, ``OMI_RT_PORT_8080_TCP_ADDR`` and so on; for one called
``omi-rt-web`` it is ``OMI_RT_WEB_SERVICE_HOST``. They are no settings, and nobody's mistake.
"""

from __future__ import annotations

import re

_NAME = re.compile(
    r"[A-Z0-9_]+_"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)


def is_service_variable(name: str, value: str) -> bool:
    """Whether Kubernetes has made this variable, which shows in its name or in an address with a protocol."""
    if name.endswith(("_PORT", "_HOST")) and _ADDRESS.fullmatch(value.strip()):
        return True
    return _NAME.fullmatch(name) is not None
