"""An HTTP server for tests that stays silent when a client hangs up.

The server of the standard library writes a traceback to stderr then, which a later test of the same
process may be reading.
"""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from typing import Any


class QuietServer(ThreadingHTTPServer):
    """Reports the errors of a handler, but not that a client is gone."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless the connection was closed by the other end."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
