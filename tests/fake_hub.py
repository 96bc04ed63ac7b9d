"""A Hugging Face hub on the loopback, for tests without a network."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks to download a model."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        self.server.tokens.append(self.headers.get("authorization"))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            content = self._about("/".join(parts[2:4]), parts[4:])
            self._answer(content, body, {"Content-Type": "application/json"})
        elif parts[2:3] == ["resolve"]:
            name, commit = (
                "/".join(parts[:2]),
                self._commit(parts[:2], parts[3]),
            )
            file = self.server.folder / name / commit / "/".join(parts[4:])
            content = file.read_bytes() if commit and file.is_file() else None
            self._answer(content, body, {"X-Repo-Commit": commit or ""})
        else:
            self._answer(None, body, {})

    def _commit(self, name, revision):
        """Hash of a branch, or of itself; None if there is none."""
        known = self.server.branches.get("/".join(name), {})
        return known.get(
            revision, revision if revision in known.values() else None
        )

    def _about(self, name, rest):
        """The description or the files of a model."""
        kind, revision = (rest or ["revision", "main"])[:2]
        commit = self._commit(name.split("/"), revision)
        if commit is None:
            return None
        folder = self.server.folder / name / commit
        files = [
            (str(path.relative_to(folder)), path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        if kind == "tree":
            found = [
                {
                    "type": "file",
                    "path": file,
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for file, path in files
            ]
        else:
            siblings = [{"rfilename": file} for file, _ in files]
            found = {"id": name, "sha": commit, "siblings": siblings}
        return json.dumps(found).encode()

    def _answer(self, content, body, headers):
        """A response; None is an error 404."""
        self.send_response(404 if content is None else 200)
        if content is None:
            headers, content = {"X-Error-Code": "RepoNotFound"}, b""
        else:
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        """Says nothing."""


@contextlib.contextmanager
def serve(folder):
    """Serves the folders ``user/name/commit`` below a folder.

    Yields
    ------
    http.server.ThreadingHTTPServer
        ``address``; ``branches``: {name: {branch: commit}}; ``asked``: the
        requests so far; ``tokens``: their authorizations.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.branches = pathlib.Path(folder), {}
    server.asked, server.tokens = [], []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
