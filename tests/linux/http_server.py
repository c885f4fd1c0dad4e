"""A loopback HTTP server for net.sh: GET reads, PUT stores files of one folder. Prints its port."""
import http.server
import os
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        with open(os.path.join(self.directory, os.path.basename(self.path)), "wb") as out:
            while left > 0:
                data = self.rfile.read(min(left, 65536))
                if not data:
                    break
                out.write(data)
                left -= len(data)
        self.send_response(201)
        self.end_headers()

    def log_message(self, *_):
        pass


def handler(*args):
    return Handler(*args, directory=sys.argv[1])


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
print(server.server_address[1], flush=True)
server.serve_forever()
