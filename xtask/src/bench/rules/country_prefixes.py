"""Prints the networks of the country database in geoip2fast's source archive, one CIDR a line."""

import gzip
import ipaddress
import itertools
import pickle
import sys
import tarfile


class PlainData(pickle.Unpickler):
    """Lists and numbers only: a database has no business with classes and functions."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name} in a database")


with tarfile.open(sys.argv[1]) as archive:
    database = next(member for member in archive if member.name.endswith("/geoip2fast-ipv6.dat.gz"))
    _version, _source, _total, tables = PlainData(gzip.open(archive.extractfile(database))).load()
_index, _countries, addresses, _codes, lengths = tables
networks = zip(itertools.chain.from_iterable(addresses), itertools.chain.from_iterable(lengths))
for address, length in networks:
    family = ipaddress.IPv4Address if address < 1 << 32 else ipaddress.IPv6Address
    print(f"{family(address)}/{length}")
