"""What a guest gets while it moves: a TCP stream, and numbered echo requests, which its kernel answers on the spot, so that
answers come in the order in which the requests have come to it.

usage: migrate_traffic.py HOST PORT FILE: until FILE.end is there. FILE has how many bytes have been sent, then as JSON the
stream's bytes and SHA-256, how many requests were sent and answered, and the first answer out of order."""
import hashlib, json, os, random, socket, struct, sys, threading, time

host, port, path = sys.argv[1:]
ECHO = 8  # request; identifier and sum are the kernel's


def note(text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


def ended():
    return os.path.exists(path + ".end")


said = {"sent": 0, "answered": 0, "disorder": ""}
echoes = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
echoes.connect((host, 0))


def ask():
    while not ended():
        echoes.send(struct.pack("!BBHHHQ", ECHO, 0, 0, 0, 0, said["sent"]))
        said["sent"] += 1
        time.sleep(0.002)


def hear():
    last = -1
    while True:
        try:
            number = struct.unpack("!Q", echoes.recv(4096)[8:])[0]
        except OSError:  # nobody was there for a moment
            continue
        if number <= last and not said["disorder"]:
            said["disorder"] = "%d after %d" % (number, last)
        last = number
        said["answered"] += 1


for each in ask, hear:
    threading.Thread(target=each, daemon=True).start()
stream = socket.create_connection((host, int(port)))
bytes_of = random.Random(1)
sum, sent = hashlib.sha256(), 0
while not ended():
    piece = bytes_of.randbytes(1 << 16)
    stream.sendall(piece)
    sum.update(piece)
    sent += len(piece)
    note(str(sent))
stream.close()
note(json.dumps(dict(said, bytes=sent, sha256=sum.hexdigest())))
