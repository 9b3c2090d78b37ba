# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Stands in for the Hugging Face Hub on this machine: models only, branch main only, all in memory.

A process that talks to it needs these variables before it imports huggingface_hub: `HF_ENDPOINT` (its `url`),
`HF_TOKEN` (its `token`), `HF_HOME` (an empty folder), `HF_HUB_DISABLE_XET=1`, and `HF_HUB_OFFLINE=0` if it inherits the
1 that conftest.py sets. Without Xet, uploads use the LFS protocol. Downloads use Xet only if the server states a hash
for it, and this server never does. (With Xet, `upload_folder` may make several commits.)

It differs from the Hub in four points: it makes no first commit with `.gitattributes`; it serves LFS files itself, not
by a redirect; it lists trees as files only, with all files of folders below; and it lets anyone read private
repositories. A wrong token is refused everywhere, as on the Hub.
"""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

USER = "tester"  # owner of the repositories that are made without an organisation
_LFS = (".safetensors", ".png")


class _HubError(Exception):
    def __init__(self, status: int, message: str, code: str = "", **content):
        self.status, self.content = status, {"error": message, **content}
        self.headers = {"X-Error-Message": message, "X-Error-Code": code}


def _oid(path: str, content: bytes) -> str:
    """Returns the identifier of a content on the Hub: SHA-256 of an LFS file, otherwise the one of git."""
    if path.endswith(_LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubStandIn:
    """Runs the server in a `with` block: `with HubStandIn() as hub:`.

    Attributes:
        url (`str`): `http://127.0.0.1:PORT`.
        token (`str`): The only token that it accepts.
        repositories (`dict[str, dict[str, bytes]]`): Files of each repository after its last commit, by path.
        private (`dict[str, bool]`): Whether each repository was made private.
        commits (`list[tuple[str, str, list[str]]]`): Repository, title and added paths of each commit.
        requests (`list[tuple[str, str, str | None]]`): Method, path without query, and `Authorization` of each request.
        drop (`int`): Number of coming uploads of LFS objects that are cut off in the middle, without an answer.
        delay (`float`): Seconds that each upload of an LFS object takes.
    """

    def __init__(self, token: str = "hf_OfTheStandIn0123456789"):
        self.token, self.drop, self.delay = token, 0, 0.0
        self.repositories, self.private, self.commits, self.requests = {}, {}, [], []
        self._revisions = {}  # (id, "main" or name of a commit) -> (name of the commit, files)
        self._objects = {}  # (id, SHA-256) -> content of an LFS object
        self._lock = threading.Lock()

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def _set(self, repo_id: str, files: dict[str, bytes]) -> str:
        name = _oid("", f"{repo_id} {len(self.commits)}".encode())
        self._revisions[repo_id, "main"] = self._revisions[repo_id, name] = name, files
        self.repositories[repo_id] = dict(files)
        return name

    def _get(self, repo_id: str, revision: str | None = None) -> tuple[str, dict[str, bytes]]:
        found = self._revisions.get((repo_id, revision or "main"))
        if found is None:
            code = "RevisionNotFound" if repo_id in self.repositories else "RepoNotFound"
            raise _HubError(404, f"No {repo_id} at {revision or 'main'}", code)
        return found

    # Handlers of the addresses below. They get the body and the parts of the path, and return the answer (and headers).

    def _create(self, body):
        wish = json.loads(body)
        repo_id = f"{wish.get('organization') or USER}/{wish['name']}"
        place = {"url": f"{self.url}/{repo_id}", "id": repo_id}
        with self._lock:
            if repo_id in self.repositories:
                raise _HubError(409, "You already created this model repo", **place)
            self.private[repo_id] = bool(wish.get("private")) or wish.get("visibility") == "private"
            self._set(repo_id, {})
        return place

    def _info(self, body, repo_id, revision):
        name, files = self._get(repo_id, revision)
        info = {"id": repo_id, "sha": name, "private": self.private[repo_id]}
        return {**info, "siblings": [{"rfilename": path} for path in files]}

    def _tree(self, body, repo_id, revision, folder):
        files = self._get(repo_id, revision)[1].items()
        files = [(path, content) for path, content in files if path.startswith(f"{folder}/" if folder else "")]
        return [{"type": "file", "path": path, "size": len(data), "oid": _oid(path, data)} for path, data in files]

    def _preupload(self, body, repo_id):
        files, answers = self._get(repo_id)[1], []
        for path in (file["path"] for file in json.loads(body)["files"]):
            mode, oid = "lfs" if path.endswith(_LFS) else "regular", _oid(path, files[path]) if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def _batch(self, body, repo_id):
        objects = json.loads(body)["objects"]
        for each in objects:
            if (repo_id, each["oid"]) not in self._objects:
                each["actions"] = {"upload": {"href": f"{self.url}/lfs/{repo_id}/{each['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def _upload(self, body, repo_id, oid):
        time.sleep(self.delay)
        if hashlib.sha256(body).hexdigest() != oid:
            raise _HubError(400, "The content does not have this hash")
        self._objects[repo_id, oid] = body
        return {}

    def _commit(self, body, repo_id):
        header, *lines = map(json.loads, body.splitlines())
        with self._lock:
            files, added = dict(self._get(repo_id)[1]), []
            for key, value in ((line["key"], line["value"]) for line in lines):
                path = value["path"]
                if key == "deletedFile" and path in files:
                    del files[path]
                elif key == "file":
                    files[path] = base64.b64decode(value["content"])
                    added.append(path)
                elif key == "lfsFile" and (repo_id, value["oid"]) in self._objects:
                    files[path] = self._objects[repo_id, value["oid"]]
                    added.append(path)
                else:
                    raise _HubError(400, f"{key} {path}: no such object or file, or not known to the stand-in")
            self.commits.append((repo_id, header["value"]["summary"], added))
            name = self._set(repo_id, files)
        return {"commitOid": name, "commitUrl": f"{self.url}/{repo_id}/commit/{name}"}

    def _resolve(self, body, repo_id, revision, path):
        name, files = self._get(repo_id, revision)
        if path not in files:
            raise _HubError(404, "Entry not found", "EntryNotFound")
        return files[path], {"X-Repo-Commit": name, "ETag": f'"{_oid(path, files[path])}"'}


_ID = r"([\w.-]+/[\w.-]+)"
_ADDRESSES = [  # method, path, handler, whether it needs the token
    ("GET", "/api/whoami-v2", lambda hub, body: {"type": "user", "name": USER, "orgs": []}, True),
    ("POST", "/api/validate-yaml", lambda hub, body: {"errors": [], "warnings": []}, False),
    ("POST", "/api/repos/create", HubStandIn._create, True),
    ("GET", f"/api/models/{_ID}(?:/revision/([^/]+))?", HubStandIn._info, False),
    ("GET", f"/api/models/{_ID}/tree/([^/]+)(?:/(.+))?", HubStandIn._tree, False),
    ("POST", f"/api/models/{_ID}/preupload/main", HubStandIn._preupload, True),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", HubStandIn._batch, True),
    ("PUT", rf"/lfs/{_ID}/(\w+)", HubStandIn._upload, False),  # as at the signed addresses of the Hub's store
    ("POST", f"/api/models/{_ID}/commit/main", HubStandIn._commit, True),
    ("GET", f"/{_ID}/resolve/([^/]+)/(.+)", HubStandIn._resolve, False),
]


class _Handler(BaseHTTPRequestHandler):  # HTTP/1.0: each connection ends with its answer
    def _answer(self):
        hub, path, length = self.server.hub, unquote(urlsplit(self.path).path), int(self.headers["Content-Length"] or 0)
        hub.requests.append((self.command, path, self.headers["Authorization"]))
        with hub._lock:
            cut = self.command == "PUT" and hub.drop > 0
            hub.drop -= cut
        body = self.rfile.read(length // 2 if cut else length)
        if cut:
            return  # the connection closes
        try:
            status, content, headers = 200, self._look_up(hub, path, body), {}
        except _HubError as error:
            status, content, headers = error.status, error.content, error.headers
        content, headers = content if isinstance(content, tuple) else (json.dumps(content).encode(), headers)
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

    def _look_up(self, hub: HubStandIn, path: str, body: bytes):
        authorization = self.headers["Authorization"]
        for method, pattern, function, guarded in _ADDRESSES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command.replace("HEAD", "GET"):
                if authorization != f"Bearer {hub.token}" and (guarded or authorization is not None):
                    raise _HubError(401, "Invalid credentials in Authorization header")
                return function(hub, body, *found.groups())
        raise _HubError(404, f"{self.command} {path} is not known to the stand-in")

    def log_message(self, *_):
        pass
