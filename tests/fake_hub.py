"""A hub on this machine: as much of one as `huggingface_hub` asks for. It counts what it serves, and can misbehave."""

import hashlib
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

REPO = "somebody/Step-Audio-2-mini"
LARGE = (".safetensors", ".pt", ".onnx")  # kept by their SHA-256, as hubs keep large files; others by git's id


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """Repositories by name, each a dict of files by name; `commits` counts how often one was changed."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: Counter = Counter()
        self.served: Counter = Counter()  # bytes of each file
        self.asked = 0  # requests of any kind
        self.status: dict[str, int] = {}  # repository -> what every request is answered with
        self.cut: dict[str, int] = {}  # file -> bytes after which the connection breaks, once
        self.changed: dict[str, list[bytes]] = {}  # file -> what is sent instead, one for each request
        self.fail_after: dict[str, int] = {}  # file -> bytes from which requests are answered with 503
        self.no_ranges = False

    def put(self, repo: str, folder: Path) -> None:
        """Publish the files of a folder, a new commit."""
        files = (p for p in sorted(folder.rglob("*")) if p.is_file())
        self.repos[repo] = {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
        self.commits[repo] += 1

    def commit(self, repo: str) -> str:
        return hashlib.sha1(f"{repo} {self.commits[repo]}".encode()).hexdigest()


def entry(name: str, data: bytes) -> dict:
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest(), "size": len(data),
           "pointerSize": 130}  # fmt: skip
    return {"rfilename": name, "path": name, "type": "file", "size": len(data), "blobId": git_id(data),
            "oid": git_id(data)} | ({"lfs": lfs} if name.endswith(LARGE) else {})  # fmt: skip


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            hub.asked += 1
            parts = unquote(urlparse(self.path).path).strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            repo, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
            if repo in hub.status:
                return self.answer(hub.status[repo], b"{}")
            if repo not in hub.repos:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            if rest[:1] in (["revision"], ["resolve"], ["tree"]) and rest[1] not in ("main", hub.commit(repo)):
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            files = hub.repos[repo]
            if api and rest[:1] == ["tree"]:
                return self.answer(200, json.dumps([entry(*item) for item in files.items()]).encode())
            if api:
                found = {"id": repo, "sha": hub.commit(repo), "siblings": [entry(*item) for item in files.items()]}
                return self.answer(200, json.dumps(found).encode())
            return self.file(hub.commit(repo), "/".join(rest[2:]), files)

        def file(self, commit: str, name: str, files: dict[str, bytes]) -> None:
            if name not in files:
                return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            data = files[name]
            found = entry(name, data)
            tag = found["lfs"]["oid"] if "lfs" in found else found["oid"]
            headers = {"ETag": f'"{tag}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            if self.command == "HEAD":
                return self.answer(200, data, **headers)
            asked = "" if hub.no_ranges else self.headers.get("Range", "")
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first or 0), int(last or len(data) - 1) + 1
            if stop > hub.fail_after.get(name, len(data)):
                return self.answer(503, b"")
            sent = hub.changed.get(name)
            body = (sent.pop(0) if sent else data)[start:stop]
            if name in hub.cut:
                n = hub.cut.pop(name)
                hub.served[name] += n
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", f'"{tag}"')
                self.end_headers()
                self.wfile.write(body[:n])
                self.close_connection = True
                return None
            hub.served[name] += len(body)
            if asked:
                headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            return self.answer(206 if asked else 200, body, **headers)

    return Handler


@contextmanager
def serving():
    """A hub, and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
