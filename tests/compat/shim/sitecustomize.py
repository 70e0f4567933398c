"""For suites that take Redis' port for granted: whoever connects to 6379 of this machine is led to $COMPAT_PORT."""

import os
import socket

PORT = os.environ.get("COMPAT_PORT")


def led(address):
    is_redis = isinstance(address, tuple) and address[0] in ("localhost", "127.0.0.1") and address[1] == 6379
    return ("127.0.0.1", int(PORT)) if is_redis else address


if PORT:
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    socket.socket.connect = lambda self, address: connect(self, led(address))
    socket.socket.connect_ex = lambda self, address: connect_ex(self, led(address))
