"""The application package: Vespa's schema for documents, candidate search and ranking.

A document is a row of the embedded file with all its chunks. Its tensors have one mapped dimension, `chunk`, with
indices into the arrays `chunks` and `chunk_ids` as labels:

    signs    tensor<int8>(chunk{}, x[dims / 8])   packed signs, dimension 0 in the most significant bit, like Vespa's
                                                  pack_bits and unpack_bits; searched by Hamming distance
    vectors  tensor<int8>(chunk{}, x[dims])       the INT8 embeddings, if the folder has them

Each rank profile finds candidates by `signs` and ranks them by the best chunk's similarity to the query:

    signs        cosine of signs with signs, 1 - 2 Hamming / dims
    asymmetric   cosine of the INT8 query with the signs of the document
    int8         cosine of INT8 with INT8

Embeddings: arXiv 2602.11151, section 2.3. Syntax: Vespa's references of schemas, hosts.xml and services.xml.
"""

import dataclasses
import io
import pathlib
import zipfile
from xml.sax.saxutils import quoteattr

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import write_text

DOCUMENT_TYPE = "passage"
CLUSTER = "passages"
NAMESPACE = "pplx"
SIMILARITY = "chunk_similarity"  # the function whose value is returned with a hit, one cell per chunk


@dataclasses.dataclass(frozen=True)
class VespaApplication:
    """Options of a deployment.

    Attributes:
        hnsw: whether to build an HNSW graph over the signs. Without, every query is compared with every chunk.
        links_per_node, explored_at_insert: of the graph. Larger values increase recall, memory and feeding time.
        paged: whether the INT8 vectors may be paged out to disk. Only candidates are read.
        hosts: names of the machines, the first one is also the admin server; empty for a single local node.
        redundancy: copies of each document.
        max_hits: maximum number of hits that a query may request.
        rerank_count: default number of candidates that a node ranks again.
    """

    hnsw: bool = True
    links_per_node: int = 16
    explored_at_insert: int = 200
    paged: bool = False
    hosts: tuple[str, ...] = ()
    redundancy: int = 1
    max_hits: int = 10_000
    rerank_count: int = 400

    def __post_init__(self):
        if not 1 <= self.redundancy <= max(len(self.hosts), 1):
            raise BadInput(
                f"redundancy={self.redundancy} on {max(len(self.hosts), 1)} hosts; add hosts or lower redundancy"
            )

    def files(self, dims: int, *, int8: bool) -> dict[str, str]:
        """Returns path within the package -> content.

        Args:
            dims: number of dimensions, a multiple of 8.
            int8: whether INT8 vectors are stored in addition to the signs.
        """
        hosts = {"hosts.xml": _hosts(self.hosts)} if self.hosts else {}
        return {
            "services.xml": _services(self),
            **hosts,
            f"schemas/{DOCUMENT_TYPE}.sd": _schema(self, dims, int8=int8),
            "search/query-profiles/default.xml": (
                f'<query-profile id="default">\n  <field name="maxHits">{self.max_hits}</field>\n</query-profile>\n'
            ),
        }


def profiles(*, int8: bool) -> tuple[str, ...]:
    """Returns the rank profiles of an application. The first scores like a local index of the same embeddings."""
    return ("int8", "asymmetric", "signs") if int8 else ("signs", "asymmetric")


def write_application(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Writes the files of the package atomically. Removes an earlier hosts.xml if there are no hosts."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    if "hosts.xml" not in files:
        (folder / "hosts.xml").unlink(missing_ok=True)


def zipped(files: dict[str, str]) -> bytes:
    """Returns the package as a zip file for the deploy API."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return packed.getvalue()


def _schema(application: VespaApplication, dims: int, *, int8: bool) -> str:
    graph = f"""
            index {{
                hnsw {{
                    max-links-per-node: {application.links_per_node}
                    neighbors-to-explore-at-insert: {application.explored_at_insert}
                }}
            }}"""
    paged = """
            attribute: paged"""
    vectors = f"""
        field vectors type tensor<int8>(chunk{{}}, x[{dims}]) {{
            indexing: attribute{paged if application.paged else ""}
        }}"""
    ranking = "".join(_rank_profile(application, dims, name) for name in profiles(int8=int8))
    return f"""schema {DOCUMENT_TYPE} {{

    document {DOCUMENT_TYPE} {{
        field id type string {{
            indexing: summary
        }}
        field chunk_ids type array<string> {{
            indexing: summary
        }}
        field chunks type array<string> {{
            indexing: summary
        }}
        field path type string {{
            indexing: summary | attribute
        }}
        field line type int {{
            indexing: summary
        }}
        field signs type tensor<int8>(chunk{{}}, x[{dims // 8}]) {{
            indexing: attribute{" | index" if application.hnsw else ""}
            attribute {{
                distance-metric: hamming
            }}{graph if application.hnsw else ""}
        }}{vectors if int8 else ""}
    }}
{ranking}}}
"""


def _rank_profile(application: VespaApplication, dims: int, name: str) -> str:
    similarity = {
        "signs": f"1 - 2 * sum(hamming(query(q_signs), attribute(signs)), x) / {dims}",
        "asymmetric": "cosine_similarity(query(q_vector), 2 * unpack_bits(attribute(signs)) - 1, x)",
        "int8": "cosine_similarity(query(q_vector), attribute(vectors), x)",
    }[name]
    second_phase = f"""
        second-phase {{
            rerank-count: {application.rerank_count}
            expression: reduce({SIMILARITY}(), max, chunk)
        }}"""
    return f"""
    rank-profile {name} {{
        inputs {{
            query(q_signs) tensor<int8>(x[{dims // 8}])
            query(q_vector) tensor<int8>(x[{dims}])
        }}
        function {SIMILARITY}() {{
            expression: {similarity}
        }}
        first-phase {{
            expression: 1 - 2 * distance(field, signs) / {dims}
        }}{"" if name == "signs" else second_phase}
        match-features: {SIMILARITY}
    }}
"""


def _services(application: VespaApplication) -> str:
    names = [f"node{place}" for place in range(max(len(application.hosts), 1))]
    admin = """
  <admin version="2.0">
    <adminserver hostalias="node0"/>
    <configservers>
      <configserver hostalias="node0"/>
    </configservers>
  </admin>
"""
    containers = "\n".join(f'      <node hostalias="{name}"/>' for name in names)
    contents = "\n".join(
        f'      <node hostalias="{name}" distribution-key="{place}"/>' for place, name in enumerate(names)
    )
    return f"""<?xml version="1.0" encoding="utf-8"?>
<services version="1.0">
{admin if application.hosts else ""}
  <container id="default" version="1.0">
    <search/>
    <document-api/>
    <nodes>
{containers}
    </nodes>
  </container>

  <content id="{CLUSTER}" version="1.0">
    <min-redundancy>{application.redundancy}</min-redundancy>
    <documents>
      <document type="{DOCUMENT_TYPE}" mode="index"/>
    </documents>
    <nodes>
{contents}
    </nodes>
  </content>

</services>
"""


def _hosts(hosts: tuple[str, ...]) -> str:
    entries = "".join(
        f"  <host name={quoteattr(name)}>\n    <alias>node{place}</alias>\n  </host>\n"
        for place, name in enumerate(hosts)
    )
    return f'<?xml version="1.0" encoding="utf-8"?>\n<hosts>\n{entries}</hosts>\n'
