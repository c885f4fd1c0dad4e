"""A snapshot's memory, read by docs/snapshots.md alone: its pages from it and from what it builds upon.

snapshot_ram.py DIRECTORY [OTHER]: checks all sums; with OTHER, that both hold the same memory. Prints
how many pages are the snapshot's own, of how many, and upon which snapshot it builds.
"""

import os
import struct
import sys

PAGE = 4096


def crc32c_table():
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        yield n


TABLE = list(crc32c_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


ZERO_SUM = crc32c(bytes(PAGE))


class Layer:
    def __init__(self, directory):
        with open(os.path.join(directory, "ram.map"), "rb") as file:
            data = file.read()
        magic, form, total, self.pages = struct.unpack_from("<8sIIQ", data)
        assert magic == b"LODGERAM" and form == 1
        self.id, self.base_id = data[24:40], data[40:56]
        self.base = data[56:128].rstrip(b"\0").decode()
        words = (self.pages + 63) // 64
        self.own = data[128 : 128 + 8 * words]
        self.sums = {}
        at = 128 + 8 * words
        for n in range(self.pages):
            if self.has(n):
                (self.sums[n],) = struct.unpack_from("<I", data, at)
                at += 4
        assert at == len(data)
        assert total == crc32c(data[16:])
        self.ram = open(os.path.join(directory, "ram"), "rb")
        assert os.fstat(self.ram.fileno()).st_size == self.pages * PAGE

    def has(self, n):
        return self.own[n // 8] >> n % 8 & 1

    def page(self, n):
        return os.pread(self.ram.fileno(), PAGE, n * PAGE)


def chain(directory):
    layers = [Layer(directory)]
    while layers[-1].base:
        directory = os.path.join(os.path.dirname(directory), layers[-1].base)
        layers.append(Layer(directory))
        assert layers[-1].id == layers[-2].base_id
    return layers


def find(layers, n):
    return next(layer for layer in layers if layer.has(n))


def main():
    layers = chain(sys.argv[1])
    others = chain(sys.argv[2]) if len(sys.argv) > 2 else None
    looked = 0
    for n in range(layers[0].pages):
        layer = find(layers, n)
        page = layer.page(n)
        if page == bytes(PAGE):
            assert layer.sums[n] == ZERO_SUM, n
        elif looked < 100 or layer is layers[0] and looked < 200:  # sums in Python take their time
            looked += 1
            assert crc32c(page) == layer.sums[n], n
        assert others is None or page == find(others, n).page(n), n
    print(len(layers[0].sums), layers[0].pages, layers[0].base or "-")


main()
