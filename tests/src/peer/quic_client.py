"""A QUIC client: quic_client.py ADDRESS PORT CERTIFICATE COUNT

Asks for COUNT bytes from the server that has CERTIFICATE, and prints its own port, the number of
bytes that came, and their SHA-256.
"""

import asyncio
import hashlib
import sys

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration


async def main():
    address, port, certificate, count = sys.argv[1:]
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["bytes"], server_name="quic.test", idle_timeout=10
    )
    configuration.load_verify_locations(certificate)
    async with connect(address, int(port), configuration=configuration) as client:
        own_port = client._transport.get_extra_info("sockname")[1]
        reader, writer = await client.create_stream()
        writer.write(count.encode())
        writer.write_eof()
        content = await reader.read()
    print(own_port, len(content), hashlib.sha256(content).hexdigest())


asyncio.run(main())
