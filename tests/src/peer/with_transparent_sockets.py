"""Opens transparent listeners and hands them to nginx: with_transparent_sockets.py PORT COMMAND...

nginx takes over the sockets whose numbers are in its environment variable NGINX, as it does from
its predecessor when its program is replaced.
"""

import os
import socket
import sys

# <linux/in.h>, <linux/in6.h>
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75

port = int(sys.argv[1])
numbers = []
for family, level, option, address in (
    (socket.AF_INET, socket.IPPROTO_IP, IP_TRANSPARENT, "0.0.0.0"),
    (socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_TRANSPARENT, "::"),
):
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(level, option, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, port))
    listener.listen(511)
    numbers.append(listener.detach())
    os.set_inheritable(numbers[-1], True)
os.environ["NGINX"] = "".join(f"{number};" for number in numbers)
os.execvp(sys.argv[2], sys.argv[2:])
