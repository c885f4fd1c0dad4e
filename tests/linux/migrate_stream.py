"""What a source sends, made by hand: migrate_stream.py SOCKET CASE prints what the target answers."""
import json, socket, struct, sys

def table():
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82f63b78 if n & 1 else 0)
        yield n
TABLE = list(table())

def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xff]
    return crc ^ 0xffffffff

def frame(kind, number, body=b"", flip=False):
    head = struct.pack("<III", kind, len(body), number)
    data = head + struct.pack("<I", crc32c(head + body)) + body
    return data[:-1] + bytes([data[-1] ^ 1]) if flip else data

HELLO, PAGES, ROUND, STATE, HANDOVER, GO, MISSING, RESUME, FILE, DISK, LAYER = 1, 4, 5, 7, 8, 10, 14, 17, 19, 20, 22
MAGIC = b"LODGEMV\n"
options = json.loads(sys.argv[3])
good = {"name": "hostile", "id": "0" * 32, "options": options, "vcpus": 1, "features": [], "disks": []}

def hello(**changes):
    return frame(HELLO, 0, json.dumps(dict(good, **changes)).encode())

def disk(**copy):
    return hello(options=dict(options, disk="/nowhere/disk.raw"),
                 disks=[{"size": 1 << 20, "logical-block": 512, "physical-block": 512, "copy": copy}])

def snapshots(size=4, **changes):
    return hello(snapshots={"bytes": 4, "current": "s", "files": [dict({"snapshot": "s", "file": "state", "size": size}, **changes)]})

def layer(**what):
    return frame(LAYER, 1, json.dumps(dict({"disk": 0}, **what)).encode())

start = MAGIC + struct.pack("<I", 3)
cases = {
    "magic": b"GET / HTTP/1.1\r\n\r\n",
    "format": MAGIC + struct.pack("<I", 77) + hello(),
    "bit": start + frame(HELLO, 0, json.dumps(good).encode(), flip=True),
    "long": start + struct.pack("<IIII", HELLO, 0xffffffff, 0, 0),
    "order": start + frame(GO, 0),
    "cpu": start + hello(features=["sse3", "quantum"]),
    "memory": start + hello(options=dict(options, memory="4096G")),
    "disk": start + hello(options=dict(options, disk="/nowhere/disk.raw"),
                          disks=[{"size": 512, "logical-block": 512, "physical-block": 512}]),
    "copy": start + disk(format="qcow2"),
    "image": start + hello(options=dict(options, image="debian"),
                           disks=[{"size": 512, "logical-block": 512, "physical-block": 512}]),
    "beyond": start + disk(format="raw") + frame(DISK, 1, struct.pack("<IIQQ", 0, 1, (1 << 20) - 512, 1024)),
    "extent": start + disk(format="lodge") + frame(DISK, 1, struct.pack("<IIQQ", 0, 0, 0, 4096) + b"no zstd"),
    "layer": start + disk(format="lodge") + layer(on="nothing"),
    "layer-raw": start + disk(format="raw") + layer(keep="x"),
    "layer-size": start + disk(format="lodge") + layer(size=1 << 62),
    "layer-disk": start + disk(format="lodge") + layer(disk=1),
    "snapshot-name": start + snapshots(snapshot="../../../etc"),
    "snapshot-file": start + snapshots(file="../state"),
    "snapshot-size": start + snapshots(size=1 << 60),
    "snapshot-room": start + hello(snapshots={"bytes": 1 << 62, "files": []}),
    "snapshot-beyond": start + snapshots() + frame(FILE, 1, struct.pack("<IIQQ", 0, 0, 4096, 4096) + bytes(4096)),
    "snapshot-other": start + snapshots() + frame(FILE, 1, struct.pack("<IIQQ", 1, 0, 0, 4096) + bytes(4096)),
    "snapshot-none": start + snapshots() + frame(ROUND, 1),
    "name": start + hello(name="../../etc"),
    "option": start + hello(options=dict(options, teleport="yes")),
    "pages": start + hello() + frame(PAGES, 1, struct.pack("<IIQ", 1, 0, 1 << 50) + bytes(4096)),
    "zstd": start + hello() + frame(PAGES, 1, struct.pack("<IIQ", 1, 4096, 0) + b"no zstd"),
    "state": start + hello() + frame(STATE, 1, b"no state") + frame(HANDOVER, 2, b'{"stood-ns": 1}'),
    "missing": start + hello() + frame(MISSING, 1, struct.pack("<QB", 0, 1)),
    "resume": start + frame(RESUME, 0, b'{"name": "hostile", "id": "0"}'),
    "short": start + hello() + frame(PAGES, 1, struct.pack("<IIQ", 1, 0, 0) + bytes(4096))[:50],
}
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
s.sendall(cases[sys.argv[2]])
s.shutdown(socket.SHUT_WR)
answer = b""
try:
    while piece := s.recv(65536):
        answer += piece
except ConnectionResetError:
    pass
while len(answer) >= 16:
    kind, length = struct.unpack("<II", answer[:8])
    print(kind, answer[16:16 + length].decode())
    answer = answer[16 + length:]
