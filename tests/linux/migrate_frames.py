"""A connection on which VMs move, looked at frame by frame (docs/migration.md): relayed, cut, or stopped at."""
import socket, struct, threading

TYPES = ("HELLO WELCOME REFUSED PAGES ROUND ROUND_DONE STATE HANDOVER READY GO RUNNING QUERY ANSWER MISSING WANT WHOLE "
         "RESUME IMAGE FILE DISK").split()
PREAMBLE, HEADER = 12, 16


def take(end, length):
    """That many bytes; None: there are no more."""
    got = b""
    while len(got) < length:
        try:
            piece = end.recv(length - len(got))
        except OSError:
            return None
        if not piece:
            return None
        got += piece
    return got


class Proxy:
    """
    Listens at a Unix socket and connects to another for each that comes. at(name, nth) is asked before a frame goes
    on, after(name, nth) after it: a word, "cut", ends that connection. name: "> GO" from the source, "< READY" to it,
    and "> PAGES late" of what comes after RUNNING. begin() forgets what has been seen.
    """

    def __init__(self, path, to):
        self.to = to
        self.open = True  # False: nobody is reached
        self.begin()
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(16)
        threading.Thread(target=self.accept, daemon=True).start()

    def begin(self):
        self.at = self.after = lambda name, nth: None
        self.late = False
        self.seen = {}

    def accept(self):
        while True:
            near, _ = self.listener.accept()
            far = socket.socket(socket.AF_UNIX)
            try:
                if not self.open:
                    raise OSError
                far.connect(self.to)
            except OSError:
                near.close()
                continue
            for one, other, way in (near, far, ">"), (far, near, "<"):
                threading.Thread(target=self.relay, args=(one, other, way), daemon=True).start()

    def relay(self, one, other, way):
        try:
            if way == ">":
                other.sendall(take(one, PREAMBLE) or b"")
            while self.pass_on(one, other, way):
                pass
        except OSError:
            pass
        for end in one, other:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def pass_on(self, one, other, way):
        header = take(one, HEADER)
        if header is None:
            return False
        kind, length = struct.unpack("<II", header[:8])
        body = take(one, length)
        if body is None:
            return False
        name = way + " " + (TYPES[kind - 1] if 0 < kind <= len(TYPES) else str(kind))
        with self.lock:
            name += " late" if self.late else ""
            self.late |= name == "< RUNNING"
            nth = self.seen[name] = self.seen.get(name, 0) + 1
            if self.at(name, nth) == "cut":
                return False
            other.sendall(header + body)
            return self.after(name, nth) != "cut"
