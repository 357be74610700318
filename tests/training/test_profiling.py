"""What a step shows in a profile, and that no hidden transfer between host and devices passes in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.ema import Ema
from pplx_jax.training.profiling import StepProfile, step_scope
from pplx_jax.training.train_state import make_step, state_layout


def test_implicit_transfers_in_a_step_are_refused():
    double = jax.jit(lambda x: 2 * x)
    on_host, on_device = np.ones(3, np.float32), jax.device_put(np.ones(3, np.float32))
    with step_scope(1):
        assert jax.device_get(double(jax.device_put(on_host))).tolist() == [2, 2, 2]  # explicit ones pass
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            double(on_host)
        double(on_device)
    double(on_host)  # outside of it, as ever


def test_steps_are_marked_by_their_number(tmp_path):
    with StepProfile(tmp_path, (2, 3)) as profile:
        for step in (1, 2, 3, 4):
            profile.before_step(step)
            with step_scope(step):
                state = jax.device_put(np.ones(3))
            profile.after_step(step, state)
    [file] = tmp_path.rglob("*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(dict(event.stats)["step_num"] for event in events) == [2, 3]


@pytest.mark.slow
def test_the_parts_of_a_step_have_names(tmp_path):
    config, optimizer, mesh = tiny.tiny_config(tiny.tiny_vocabulary(tmp_path)), tiny.OPTIMIZER.build(3), Mesh().build()
    stage, ema = tiny.STAGES["diffusion"], Ema(0.9)
    batch = dict.fromkeys(("tokens", "segment_ids", "positions"), jax.ShapeDtypeStruct((8, tiny.LENGTH), jnp.int32))
    with jax.set_mesh(mesh):
        step = make_step(stage, config, optimizer, steps=3, seed=0, mask_id=2, mesh=mesh, ema=ema)
        text = step.lower(state_layout(config, stage, optimizer, mesh, ema), batch).as_text(debug_info=True)
    for name in ("loss_and_gradient", "optimizer", "ema", "metrics"):
        assert f"{name}/" in text, name
