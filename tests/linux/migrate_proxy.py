"""A way between a source and a target that gets into trouble just after the switch (the frame GO):
migrate_proxy.py LISTEN TARGET once|gone|hold|slow. Nothing but GO passes to the target any more until
its RUNNING has come back; then: once, gone: both connections break, and with gone nobody listens any
more; hold: the rest never comes; slow: each frame takes 10 ms."""
import os, socket, struct, sys, threading, time

GO, RUNNING = 10, 11
listen, target, mode = sys.argv[1:]
trouble = mode != "slow"

def whole(s, length):
    data = b""
    while len(data) < length:
        piece = s.recv(length - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data

def frame(s):
    head = whole(s, 16)
    kind, length = struct.unpack("<II", head[:8])
    return kind, head + whole(s, length)

def pump(a, b, from_source, gone):
    """Frames from a to b, until one of them ends."""
    global trouble
    try:
        if from_source:
            b.sendall(whole(a, 12))
        while True:
            kind, data = frame(a)
            if from_source and gone.is_set() and mode == "slow":
                time.sleep(0.01)
            elif from_source and gone.is_set() and trouble:
                while True:
                    time.sleep(1)
            b.sendall(data)
            if kind == GO:
                gone.set()
            if kind == RUNNING and mode in ("once", "gone") and trouble:
                if mode == "gone":
                    listener.close()
                    os.unlink(listen)
                trouble = False
                break
    except OSError:
        pass
    for s in a, b:
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

listener = socket.socket(socket.AF_UNIX)
listener.bind(listen)
listener.listen()
print("listening", flush=True)
while True:
    try:
        source, _ = listener.accept()
    except OSError:
        break
    onward = socket.socket(socket.AF_UNIX)
    onward.connect(target)
    gone = threading.Event()
    for arguments in (source, onward, True, gone), (onward, source, False, gone):
        threading.Thread(target=pump, args=arguments, daemon=True).start()
