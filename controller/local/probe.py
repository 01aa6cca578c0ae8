"""Is a program ready? One HTTP question on loopback; and free ports to run it on.

What does not live here: whose answer matters when (process, cluster).
"""

import http.client
import socket
import ssl
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"


def ready(url: str, seconds: float = 2.0) -> bool:
    """Whether ``url`` (http or https, on this machine) answers 200. An empty url is always ready.

    Certificates are not checked: the scheduler's and the controller-manager's are made up in memory
    at each start, and nothing secret is asked or told.
    """
    if not url:
        return True
    parts = urlsplit(url)
    connection = _connection(parts.scheme, parts.hostname or LOOPBACK, parts.port or 0, seconds)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    """``count`` different TCP ports of loopback that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def is_free(port: int) -> bool:
    """Whether a program could listen on this port of loopback now."""
    with socket.socket() as attempt:
        # as servers do: the leftovers of closed connections are no hindrance
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _connection(scheme: str, host: str, port: int, seconds: float) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=seconds)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
