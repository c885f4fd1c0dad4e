"""A peer that keeps to no rule of vfio-user.

usage: vfio_user.py client SOCKET   many connections to a server, each ends badly; then one that is served
       vfio_user.py server SOCKET   answers whoever connects with what is no protocol, a way each time
"""
import array
import os
import random
import socket
import struct
import sys

VERSION, DMA_MAP, GET_REGION_INFO, SET_IRQS, REGION_READ = 1, 2, 5, 8, 9
GREETING = b'\0\0\1\0{"capabilities": {"max_msg_fds": 8, "twin_socket": {"supported": true}}}\0'


def message(command, payload, size=None, flags=0):
    return struct.pack("<HHIII", 1, command, 16 + len(payload) if size is None else size, flags, 0) + payload


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
    return s


def receive(s):
    header = s.recv(16, socket.MSG_WAITALL)
    if len(header) < 16:
        return None
    size, flags, error = struct.unpack("<III", header[4:])
    payload = s.recv(size - 16, socket.MSG_WAITALL) if size > 16 else b""
    return error if flags & 0x20 else payload


def greeted(path):
    s = connect(path)
    s.sendall(message(VERSION, GREETING))
    assert isinstance(receive(s), bytes), "the server refuses a client"
    return s


def send_fds(s, data, fds):
    s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def client(path):
    rng = random.Random(5)
    for n in range(60):
        s = connect(path) if n % 2 else greeted(path)
        s.settimeout(2)
        for _ in range(rng.randrange(1, 20)):
            command, size = rng.randrange(0, 24), rng.choice([None, None, None, 0, 17, 4000, 2**32 - 1])
            payload = bytes(rng.choice([0, 0, 1, 7, 255]) for _ in range(rng.randrange(0, 80)))
            try:
                s.sendall(message(command, payload, size, rng.choice([0, 0, 0, 1, 16])))
                s.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError:
                break
        s.close()
    # Descriptors of all kinds where memory and eventfds belong.
    null, (read, write) = os.open("/dev/null", os.O_RDWR), os.pipe()
    s = greeted(path)
    for fd in (null, read, write, s.fileno()):
        send_fds(s, message(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, 4096)), [fd])
        assert receive(s) == 22
        send_fds(s, message(SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, 0, 1)), [fd])
        assert receive(s) == 22
    s.close()
    # A client that asks and asks, and never reads an answer.
    s = greeted(path)
    ask = message(REGION_READ, struct.pack("<QII", 0, 7, 4096))
    try:
        while True:
            s.sendall(ask)
    except OSError:
        s.close()
    # After all that one is served.
    s = greeted(path)
    s.sendall(message(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0)))
    assert struct.unpack("<Q", receive(s)[16:24])[0] == 0x4000
    print("served")


def server(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    reply = message(VERSION, GREETING, flags=1)
    answers = [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        message(VERSION, b"\1\0\0\0", flags=1),
        message(VERSION, b'\0\0\1\0{"capabilities": {"twin_socket": {"supported": true, "fd_index": 3}}}\0', flags=1),
        message(VERSION, b"", size=2**31, flags=1),
        message(VERSION, b"", flags=0x21),
        reply.replace(b"true", b"null"),
    ]
    for answer in answers:
        s, _ = listener.accept()
        asked = s.recv(4096)
        s.sendall(asked[:2] + answer[2:] if answer[2:4] == b"\1\0" else answer)
        s.recv(4096) if answer is answers[-1] else None
        s.close()


if __name__ == "__main__":
    {"client": client, "server": server}[sys.argv[1]](sys.argv[2])
