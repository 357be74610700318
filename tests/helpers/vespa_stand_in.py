"""A server on loopback that means what Vespa means: it deploys an application, keeps documents, finds and ranks them.

Exact where Vespa approximates, with one content node; everything it does follows from the deployed schema.
"""

import io
import json
import re
import threading
import urllib.parse
import xml.etree.ElementTree as xml
import zipfile

import numpy as np

from helpers.loopback_server import serving
from helpers.vespa_schema import Context, Schema, SchemaError, hamming, tensor_type

QUERY = re.compile(
    r"select ([\w, ]+|\*) from (\w+) where (?:(true)|"
    r"\{targetHits: (\d+), approximate: (true|false)\}nearestNeighbor\((\w+), (\w+)\))"
)


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class VespaStandIn:
    """One node.

    Attributes:
        documents: id -> fields, tensors decoded.
        faults: statuses to answer the next puts with, before any is taken.
        puts: how many puts were asked for.
        requests: bodies of the queries so far.
    """

    def __init__(self):
        self.schema, self.documents, self.faults, self.puts, self.max_hits = None, {}, [], 0, 400
        self.requests, self.removing = [], False
        self._lock = threading.Lock()

    def answer(self, method, path, body):
        if path == "/application/v2/tenant/default/prepareandactivate":
            return self._deploy(body)
        if path == "/state/v1/health":
            return {"status": {"code": "up" if self.schema else "initializing"}}
        if self.schema is None:
            raise Refused(404, "no application")
        if path.startswith("/document/v1/"):
            with self._lock:
                return self._put(path, json.loads(body)) if method == "POST" else self._kept(method, path)
        if path == "/search/":
            return self._search(json.loads(body))
        raise Refused(404, path)

    def _deploy(self, body):
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            files = {name: archive.read(name).decode() for name in archive.namelist()}
        services = xml.fromstring(files["services.xml"].encode())
        (document,) = services.findall("content/documents/document")
        if services.find("container/search") is None or services.find("container/document-api") is None:
            raise Refused(400, "no search or document-api")
        aliases = {node.get("hostalias") for node in services.iter("node")}
        if "hosts.xml" in files:
            known = {alias.text for alias in xml.fromstring(files["hosts.xml"].encode()).iter("alias")}
            if not aliases <= known:
                raise Refused(400, f"unknown hosts {aliases - known}")
        try:
            self.schema = Schema(files[f"schemas/{document.get('type')}.sd"])
        except (SchemaError, KeyError) as error:
            raise Refused(400, f"Invalid application: {error}") from None
        profile = xml.fromstring(files["search/query-profiles/default.xml"])
        self.max_hits = int(profile.find("field[@name='maxHits']").text)
        return {"message": "prepared and activated"}

    def _put(self, path, operation):
        self.puts += 1
        if self.faults:
            raise Refused(self.faults.pop(0), "overloaded")
        _, _, _, _namespace, kind, docid, identity = path.split("/", 6)
        if kind != self.schema.name or docid != "docid":
            raise Refused(400, f"Document type {kind} does not exist")
        fields = {}
        for name, value in operation["fields"].items():
            if name not in self.schema.fields:
                raise Refused(400, f"No field {name!r}")
            fields[name] = self._decode(self.schema.fields[name], value)
        self.documents[urllib.parse.unquote(identity)] = fields
        return {"pathId": path}

    def _kept(self, method, path):
        if method == "DELETE" and path.startswith("/document/v1/pplx/passage/docid?"):
            return self._remove_some(urllib.parse.parse_qs(path.partition("?")[2]))
        identity = urllib.parse.unquote(path.split("/", 6)[6])
        fields = self.documents.get(identity)
        if method == "DELETE":
            self.documents.pop(identity, None)  # Vespa answers the same if there is none
            return {"pathId": path}
        if fields is None:
            raise Refused(404, f"no document {identity}")
        return {"pathId": path, "fields": {name: fields[name] for name in ("id", "chunk_ids")}}

    def _remove_some(self, query):
        """Removes half of the documents and answers how to go on, as Vespa does after some time."""
        assert query["selection"] == ["true"] and query["cluster"] == ["passages"]
        assert ("continuation" in query) == self.removing and query.get("continuation", ["a+/="]) == ["a+/="]
        gone = list(self.documents)[: -(-len(self.documents) // 2)]
        for identity in gone:
            del self.documents[identity]
        self.removing = bool(self.documents)
        return {"documentCount": len(gone), **({"continuation": "a+/="} if self.removing else {})}

    def _decode(self, kind, value):
        plain = {"string": str, "int": int, "array<string>": list}.get(kind)
        if plain:
            if not isinstance(value, plain):
                raise Refused(400, f"{value!r} is no {kind}")
            texts = value if isinstance(value, list) else [str(value)]
            if any(ord(character) < 32 and character not in "\t\r\n" for text in texts for character in text):
                raise Refused(400, "illegal code point")
            return value
        (_, none), (_, size) = tensor_type(kind)[1]
        assert none is None
        cells = {label: np.frombuffer(bytes.fromhex(text), np.int8) for label, text in value["blocks"].items()}
        if any(len(vector) != size for vector in cells.values()):
            raise Refused(400, f"Expected {size} values")
        return cells

    def _search(self, request):
        self.requests.append(request)
        match = QUERY.fullmatch(request["yql"])
        if not match or match[2] != self.schema.name:
            return self._errors(f"cannot parse {request['yql']}")
        if request["hits"] > self.max_hits:
            return self._errors(f"{request['hits']} hits requested, configured limit: {self.max_hits}")
        if match[3]:
            return {"root": {"fields": {"totalCount": len(self.documents)}, "coverage": {"coverage": 100}}}
        if request["ranking.profile"] not in self.schema.profiles:
            return self._errors(f"no rank profile {request['ranking.profile']}")
        return {"root": {"coverage": {"coverage": 100}, "children": self._rank(request, match)}}

    def _errors(self, message):
        return {"root": {"errors": [{"code": 4, "summary": "Invalid query parameter", "message": message}]}}

    def _rank(self, request, match):
        profile, field = self.schema.profiles[request["ranking.profile"]], match[6]
        assert self.schema.metric[field] == "hamming"
        queries = {}
        for name, kind in self.schema.inputs(profile).items():
            queries[name] = np.array(request[f"input.query({name})"])
            assert queries[name].shape == (tensor_type(kind)[1][0][1],)
            assert -128 <= queries[name].min() and queries[name].max() <= 127
        contexts = {}
        for identity, fields in self.documents.items():
            distance = min(float(hamming(queries[match[7]], vector).sum()) for vector in fields[field].values())
            tensors = {name: value for name, value in fields.items() if isinstance(value, dict)}
            contexts[identity] = Context(self.schema, profile, queries, tensors, {field: distance})
        first = profile.of("first-phase")[0].properties["expression"]
        nearest = sorted(contexts, key=lambda identity: contexts[identity].distances[field])[: int(match[4])]
        scores = {identity: contexts[identity].evaluate(first) for identity in nearest}
        ranked = sorted(scores, key=scores.get, reverse=True)
        for second in profile.of("second-phase"):
            again = ranked[: request["ranking.rerankCount"]]
            scores |= {identity: contexts[identity].evaluate(second.properties["expression"]) for identity in again}
            ranked = sorted(again, key=scores.get, reverse=True) + ranked[len(again) :]
        wanted = match[1].split(", ")
        return [
            {
                "id": f"index:passages/0/{identity}",
                "relevance": scores[identity],
                "fields": {
                    name: value
                    for name, value in (
                        self.documents[identity] | {"matchfeatures": contexts[identity].features()}
                    ).items()
                    if name in wanted
                },
            }
            for identity in ranked[: request["hits"]]
        ]


def running(stand_in):
    """A context that gives the base URL."""

    def answer(method, path, _, body):
        try:
            return 200, stand_in.answer(method, path, body)
        except Refused as refusal:
            return refusal.status, {"message": str(refusal)}

    return serving(answer)
