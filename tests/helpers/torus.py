"""Four processes of two devices each whose devices alternate along the mesh, as on a 4 x 2 torus of 2 x 1 hosts."""

CODE = """
import jax, numpy as np
from pplx_jax.parallel.mesh import MESH_AXES, Mesh

ORDER = [0, 2, 1, 3, 4, 6, 5, 7]  # global device numbers; process p of four has 2 p and 2 p + 1

def build(self, devices=None):
    found = jax.devices()
    sizes = self.sizes(len(found))
    arranged = np.array([found[place] for place in ORDER]).reshape(tuple(sizes.values()))
    return jax.sharding.Mesh(arranged, MESH_AXES)

Mesh.build = build
"""
