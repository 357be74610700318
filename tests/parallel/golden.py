"""Where every parameter of both models lies under every preset, as files to compare: a matrix that a change copies to
every device shows as a diff.

    python tests/parallel/golden.py      # writes them anew
"""

import pathlib

import jax
from jax.sharding import AbstractMesh

from pplx_jax.configuration import load
from pplx_jax.models.parameters import initial_params
from pplx_jax.parallel.mesh import shardings
from pplx_jax.parallel.model_info import model_info
from pplx_jax.parallel.rules import MESH_AXES, using

FOLDER = pathlib.Path(__file__).parent / "golden"
SIZES = ("0p6b", "4b")
# Preset -> chips that it is shown on.
PRESETS = {"single": 1, "fsdp": 256, "fsdp_tensor": 256, "long_context": 128, "multislice": 512}


def dump(size: str, preset: str) -> str:
    """Returns `model-info.txt` of the diffusion stage, from shapes alone."""
    files = [f"gin/recipes/pplx_embed_{size}.gin", f"gin/meshes/{preset}.gin"]
    run = load(files, unset="unset").arguments["run"]
    mesh, training = run["mesh"], run["stages"][0]
    sizes = mesh.sizes(PRESETS[preset])
    devices = AbstractMesh(tuple(sizes.values()), MESH_AXES)

    def laid_out(tree):
        def of(leaf, sharding):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(of, tree, shardings(tree, devices))

    with using(mesh.rules, mesh.parameter_axes):
        params = jax.eval_shape(lambda: initial_params(training.model(run["model"]), 0))
        optimizer = jax.eval_shape(training.optimizer.build(training.steps).init, params)
        return model_info(laid_out(params), laid_out(optimizer))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for size in SIZES:
        for preset in PRESETS:
            (FOLDER / f"{size}_{preset}.txt").write_text(dump(size, preset), encoding="utf-8")


if __name__ == "__main__":
    main()
