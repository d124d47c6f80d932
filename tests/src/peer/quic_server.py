"""A QUIC server: quic_server.py ADDRESS PORT CERTIFICATE KEY

Each stream asks for a number of bytes and gets them. For each it prints the client's address and
port, the number, and the SHA-256 of what it sent.
"""

import asyncio
import hashlib
import os
import sys

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamDataReceived


class Sender(QuicConnectionProtocol):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.client = None
        self.requests = {}

    def datagram_received(self, data, addr):
        self.client = addr
        super().datagram_received(data, addr)

    def quic_event_received(self, event):
        if not isinstance(event, StreamDataReceived):
            return
        request = self.requests.setdefault(event.stream_id, bytearray())
        request += event.data
        if not event.end_stream:
            return
        count = int(request)
        content = os.urandom(count)
        self._quic.send_stream_data(event.stream_id, content, end_stream=True)
        self.transmit()
        digest = hashlib.sha256(content).hexdigest()
        print(self.client[0], self.client[1], count, digest, flush=True)


async def main():
    address, port, certificate, key = sys.argv[1:]
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["bytes"])
    configuration.load_cert_chain(certificate, key)
    await serve(address, int(port), configuration=configuration, create_protocol=Sender)
    print("ready", flush=True)
    await asyncio.Future()


asyncio.run(main())
