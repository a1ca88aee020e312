"""A key-value store over TCP: SET key value, GET key, INCR key; one line a request."""

import argparse
import socketserver
import threading

values = {}
lock = threading.Lock()


def answer(line):
    words = line.split(None, 2)
    with lock:
        match words:
            case ["SET", key, value]:
                values[key] = value
                return "OK"
            case ["GET", key]:
                return values.get(key, "")
            case ["INCR", key]:
                values[key] = str(int(values.get(key, "0")) + 1)
                return values[key]
    return "ERROR"


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write((answer(line.decode().strip()) + "\n").encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
port = parser.parse_args().port
with Server(("127.0.0.1", port), Handler) as server:
    print(f"store listens on {port}")
    server.serve_forever()
