"""The shop's backend: counts visits in the database and in the store."""

import argparse
import http.server
import json
import os
import socket
import sqlite3

database = os.environ["DATABASE"]
host, _, port = os.environ["STORE"].partition(":")


def store(request):
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        connection.sendall((request + "\n").encode())
        return connection.makefile().readline().strip()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            if self.path == "/health":
                store("GET visits")
                self.reply(200, {"ok": True})
            elif self.path == "/visit":
                with sqlite3.connect(database) as connection:
                    connection.execute("insert into visits default values")
                self.reply(200, {"visits": int(store("INCR visits"))})
            else:
                self.reply(404, {"error": "no such page"})
        except OSError as error:
            self.reply(503, {"error": str(error)})

    def reply(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format, *arguments):
        if self.path != "/health":
            print(f"{self.command} {self.path}")


parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
port_to_serve = parser.parse_args().port
print(f"backend listens on {port_to_serve}")
http.server.ThreadingHTTPServer(("127.0.0.1", port_to_serve), Handler).serve_forever()
