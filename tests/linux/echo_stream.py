"""A TCP stream to a guest that sends back what it gets: echo_stream.py HOST PORT FILE. Numbered lines go out, and have to
come back all, once, in order; FILE has how many came, or what was wrong."""
import os, select, socket, sys

host, port, path = sys.argv[1:]


def note(text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


connection = socket.create_connection((host, int(port)))
sent = received = 0
rest = b""
try:
    while True:
        if sent < received + 2000:
            connection.sendall(b"".join(b"line %d\n" % n for n in range(sent, sent + 20)))
            sent += 20
        if not select.select([connection], [], [], 0.02)[0]:
            continue
        piece = connection.recv(65536)
        if not piece:
            raise Exception("the connection has ended after %d lines" % received)
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line != b"line %d" % received:
                raise Exception("%r instead of line %d" % (line, received))
            received += 1
        note(str(received))
except Exception as error:
    note("wrong: %s" % error)
