import itertools

import pytest
import torch
from scipy import stats

from torchq.philox import Purpose, integers, normal, philox4x32, random_bits, uniform


def draw(seeds=(0,), steps=(0,), purpose=Purpose.STEP, tasks=(0,), envs=(0,), count=4):
    return random_bits(
        torch.tensor(seeds), torch.tensor(steps), purpose, torch.tensor(tasks), torch.tensor(envs), count
    )


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    """kat_vectors of the authors' Random123 distribution."""
    words = philox4x32(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))
    assert tuple(word.item() for word in words) == expected


def test_a_draw_does_not_depend_on_its_neighbours():
    """Any part of any batch equals the draw made alone."""
    seeds, steps, tasks, envs = (5, 0, 2**40 + 7), (0, 9, 2**33), (0, 3), (2, 1, 0)
    batch = draw(seeds, steps, Purpose.RESET, tasks, envs, 7)
    positions = itertools.product(range(3), range(3), range(2), range(3), (1, 7))
    for t, s, m, n, count in positions:
        alone = draw((seeds[s],), (steps[t],), Purpose.RESET, (tasks[m],), (envs[n],), count)
        assert torch.equal(batch[t, s, m, n, :count], alone[0, 0, 0, 0])


def test_every_argument_changes_the_draw():
    base = {"seeds": (1,), "steps": (1,), "purpose": 1, "tasks": (1,), "envs": (1,)}
    variants = [base]
    for name in base:
        values = (2, 3, 200) + ((2**32 + 1, 2**43) if name in ("seeds", "steps") else ())
        variants += [{**base, name: value if name == "purpose" else (value,)} for value in values]
    words = torch.cat([draw(**variant, count=8).flatten() for variant in variants])
    assert len(words.unique()) == len(words)


AXES = {"step": 0, "seed": 1, "task": 2, "env": 3, "index": 4}


@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_draws_are_uniform_and_independent_along_every_argument(axis):
    """χ² over 64 cells, Kolmogorov–Smirnov, lag-1 correlation, and χ² of neighbouring pairs; 2¹⁶ draws each."""
    sizes = [2, 2, 2, 2, 2]
    sizes[axis] = 4096
    bits = draw(range(sizes[1]), range(sizes[0]), 3, range(sizes[2]), range(sizes[3]), sizes[4])
    values = uniform(bits, torch.float64).movedim(axis, -1)
    flat = values.flatten().numpy()
    cells = torch.histc(values.flatten(), 64, 0, 1).numpy()
    pairs = (values[..., :-1] * 8).long() * 8 + (values[..., 1:] * 8).long()
    # Disjoint pairs only: overlapping ones are not independent counts.
    counts = torch.bincount(pairs[..., ::2].flatten(), minlength=64).numpy()
    lagged = ((values[..., 1:] - 0.5) * (values[..., :-1] - 0.5)).mean().item() * 12 * flat.size**0.5
    assert stats.chisquare(cells).pvalue > 1e-3
    assert stats.kstest(flat, "uniform").pvalue > 1e-3
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(lagged) < 3.5


def test_bits_are_balanced():
    bits = draw(count=16384).flatten()
    ones = torch.stack([(bits >> i) & 1 for i in range(32)]).double().mean(1)
    assert (ones - 0.5).abs().max() < 4 * 0.5 / 16384**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_lie_in_the_half_open_interval(dtype):
    values = uniform(torch.tensor([0, 1, 2**32 - 1]), dtype)
    assert values.dtype == dtype
    assert values[0] == 0
    assert values[-1] < 1


def test_uniforms_of_other_types_are_refused():
    with pytest.raises(ValueError, match=r"dtype: expected float32 or float64, got torch.bfloat16"):
        uniform(torch.tensor([0]), torch.bfloat16)


def test_float32_uniforms_are_multiples_of_two_to_the_minus_24():
    values = uniform(draw(count=1000), torch.float32).double() * 2**24
    assert torch.equal(values, values.round())


def test_integers_cover_their_range_evenly():
    counts = torch.bincount(integers(draw(count=16000).flatten(), 10), minlength=10)
    assert len(counts) == 10
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert integers(torch.tensor([2**32 - 1]), 10).item() == 9


def test_normals_have_the_normal_distribution():
    first, second = uniform(draw(count=16384).flatten(), torch.float64).chunk(2)
    x, y = normal(first, second)
    assert stats.kstest(torch.cat([x, y]).numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.04
    assert torch.isfinite(torch.stack(normal(torch.zeros(1), torch.zeros(1)))).all()


def test_count_and_purpose_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"count: expected 0 to 16384 draws per step, got 20000"):
        draw(count=20000)
    with pytest.raises(ValueError, match=r"purpose: expected a number from 0 to 255, got 256"):
        draw(purpose=256)
