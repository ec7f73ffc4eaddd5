"""The wave solver against standing waves, conservation and its stability bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.wave_solver import energy, leapfrog, lumped_mass, simulate, stiffness


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def grid(nodes):
    line = np.linspace(0, 1, nodes)
    return np.meshgrid(line, line, indexing="ij")


def standing(nodes, speed, boundary):
    """Largest error of the first standing wave over half a period."""
    x, y = grid(nodes)
    shape = np.sin(np.pi * x) * np.sin(np.pi * y) if boundary == "held" else np.cos(np.pi * x) * np.cos(np.pi * y)
    dt, steps = 0.5 / (nodes - 1) / speed, 3 * (nodes - 1)
    u = simulate(
        jnp.asarray(shape),
        jnp.zeros(shape.shape),
        jnp.full((nodes - 1,) * 2, speed**2),
        dt=dt,
        steps=steps,
        boundary=boundary,
    )
    t = dt * np.arange(steps + 1)
    return float(np.abs(u - np.cos(np.sqrt(2) * np.pi * speed * t)[:, None, None] * shape).max())


@pytest.mark.parametrize("boundary", ["held", "free"])
def test_standing_waves_are_met_to_second_order(boundary):
    coarse, fine = (standing(n, 1.5, boundary) for n in (17, 33))
    assert fine < 5e-3 and coarse / fine == pytest.approx(4, abs=0.5)


def rough(nodes=9, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(nodes, nodes))), jnp.asarray(rng.uniform(0.5, 2.0, (nodes - 1, nodes - 1)))


def test_stiffness_is_the_assembled_matrix():
    u, c2 = rough(5)
    nodes = 5
    element = np.asarray([[4, -1, -2, -1], [-1, 4, -1, -2], [-2, -1, 4, -1], [-1, -2, -1, 4]]) / 6
    k = np.zeros((nodes**2, nodes**2))
    for i in range(nodes - 1):
        for j in range(nodes - 1):
            at = [i * nodes + j, (i + 1) * nodes + j, (i + 1) * nodes + j + 1, i * nodes + j + 1]
            k[np.ix_(at, at)] += float(c2[i, j]) * element
    np.testing.assert_allclose(stiffness(u, c2).ravel(), k @ np.asarray(u).ravel(), atol=1e-12)
    np.testing.assert_allclose(k, k.T)
    np.testing.assert_allclose(stiffness(jnp.ones_like(u), c2), np.zeros((nodes, nodes)), atol=1e-14)
    highest = np.linalg.eigvals(k / lumped_mass(nodes).ravel()[:, None]).real.max()
    assert highest <= 4 * float(c2.max()) * (nodes - 1) ** 2
    assert lumped_mass(nodes).sum() == pytest.approx(1)


@pytest.mark.parametrize("boundary", ["held", "free"])
def test_energy_is_conserved(boundary):
    u, c2 = rough()
    dt = 0.9 / 8 / float(jnp.sqrt(c2.max()))
    fields = simulate(u, jnp.zeros_like(u), c2, dt=dt, steps=300, boundary=boundary)
    e = energy(fields, c2, dt)
    np.testing.assert_allclose(e, jnp.full_like(e, e[0]), rtol=1e-9)


def test_the_bound_is_where_it_breaks():
    u, _ = rough()
    c2 = jnp.ones((8, 8))
    for share, limit in ((0.999, 50.0), (1.05, None)):
        arguments = (u, jnp.zeros_like(u), c2, jnp.zeros_like(u), jnp.zeros(400), jnp.asarray(share / 8))
        size = float(jnp.abs(leapfrog(*arguments, boundary="free")[-1]).max())
        assert size < limit if limit else size > 1e6
    with pytest.raises(ValueError, match=r"dt must be in \(0, 0.125\], the stability bound h / max c, got 0.2"):
        simulate(u, jnp.zeros_like(u), c2, dt=0.2, steps=2)


def test_velocity_and_sources_enter_and_simulations_do_not_mix():
    u, c2 = rough()
    zero, dt = jnp.zeros_like(u), 0.02
    moved = simulate(zero, u, c2, dt=dt, steps=2, boundary="free")
    np.testing.assert_allclose(moved[1], dt * u, atol=1e-3)
    pushed = simulate(zero, zero, c2, dt=dt, steps=2, force=u, signal=jnp.ones(2), boundary="free")
    np.testing.assert_allclose(pushed[1], dt**2 / 2 * u)
    both = simulate(jnp.stack([u, 2 * u]), jnp.zeros((2, 9, 9)), jnp.stack([c2, c2]), dt=dt, steps=5)
    np.testing.assert_allclose(both[:, 1], 2 * simulate(u, zero, c2, dt=dt, steps=5), atol=1e-12)


def test_bad_input_is_refused():
    u, c2 = rough()
    zero = jnp.zeros_like(u)
    with pytest.raises(ValueError, match="c2 must be > 0 everywhere"):
        simulate(u, zero, -c2, dt=0.01, steps=2)
    with pytest.raises(ValueError, match="u0 has NaN"):
        simulate(u.at[0, 0].set(jnp.nan), zero, c2, dt=0.01, steps=2)
    with pytest.raises(ValueError, match=r"c2 must be \(8, 8\), got \(9, 9\)"):
        simulate(u, zero, u, dt=0.01, steps=2)
    with pytest.raises(ValueError, match=r"u0 and v0 must be \[..., n, n\]"):
        simulate(u[:, :4], zero, c2, dt=0.01, steps=2)
    with pytest.raises(ValueError, match=r"force and signal \[2\] go together"):
        simulate(u, zero, c2, dt=0.01, steps=2, force=u)
    with pytest.raises(ValueError, match="boundary must be"):
        simulate(u, zero, c2, dt=0.01, steps=2, boundary="open")  # pyright: ignore[reportArgumentType]
