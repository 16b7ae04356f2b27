import itertools
import math

import numpy as np
import pytest
import torch
from problems import PLAIN, experiment, play

from envs import base, price_series, storage_optimal, storage_rule
from envs.storage import DIP, PEAKS, Storage, StorageState, StorageTask
from torchq.tree import flatten

LOSSLESS = StorageTask(2.0, 1.0, 0.0, 0.2, 0.4, 0.0)


def by_hand(task, charge, z, hour, rate):
    """One hour of a battery in plain numbers: next charge, and reward."""
    one_way = math.sqrt(task.efficiency)
    price = 1 + task.peak * PEAKS[hour] + task.dip * DIP[hour] + task.volatility * z
    midnight = 1 + task.peak * PEAKS[0] + task.dip * DIP[0]
    if rate >= 0:
        bought, sold = min(rate / task.hours, (1 - charge) / one_way), 0.0
    else:
        bought, sold = 0.0, min(-rate / task.hours, charge * one_way)
    after = charge + one_way * bought - sold / one_way
    money = price * (sold - bought) - task.wear * (sold + bought)
    return after, 10 * (money + one_way * midnight * (after - charge))


def at(*values):
    return [torch.full((1, 1, 1), value, dtype=torch.float64) for value in values]


def test_an_hour_is_what_it_is_by_hand():
    env = Storage()
    for number, (task, charge, z, action) in enumerate(
        itertools.product(env.sample_tasks(), (0.0, 0.07, 0.5, 0.97, 1.0), (-3.0, 0.4), range(5))
    ):
        hour = number % 24
        start, noise = at(charge, z), torch.tensor([0.3, 0.6], dtype=torch.float64).view(1, 1, 1, 2)
        state = StorageState(*start, torch.full((1, 1, 1), hour + 48, dtype=torch.int32))
        after, reward, *_ = env.step(base.stack_tasks([task]), state, torch.full((1, 1, 1), action), noise)
        expected = by_hand(task, charge, z, hour, action / 2 - 1)
        assert (after.charge.item(), reward.item()) == pytest.approx(expected, abs=1e-9)
        drawn = math.sqrt(-2 * math.log(0.7)) * math.cos(2 * math.pi * 0.6)
        following = min(max(0.9 * z + math.sqrt(1 - 0.81) * drawn, -4), 4)
        assert after.deviation.item() == pytest.approx(following)
        assert env.observe(state)[0, 0, 0].tolist() == [charge, z, hour]


def test_energy_is_kept_but_for_the_losses(generator):
    """What was bought, less what was sold, is in the battery or lost; the charge stays between empty and full."""
    env = Storage(profile=(0.0,) * 24, dip_profile=(0.0,) * 24)  # A price of 1: money and energy are one.
    given = [StorageTask(task.hours, task.efficiency, 0.0, 0.0, 0.0, 0.0) for task in env.sample_tasks(20)]
    tasks = base.stack_tasks(given)
    one_way = tasks.efficiency.sqrt()
    uniforms = torch.rand(101, 1, 20, 8, 2, generator=generator, dtype=torch.float64)
    state = env.reset(tasks, uniforms[0])
    bought = sold = torch.zeros_like(state.charge)
    for noise in uniforms[1:]:
        before = state.charge
        state, reward, *_ = env.step(tasks, state, torch.randint(5, (1, 20, 8), generator=generator), noise)
        money = reward / 10 - one_way * (state.charge - before)
        bought, sold = bought - money.clamp(max=0), sold + money.clamp(min=0)
        assert (state.charge >= 0).all()
        assert (state.charge <= 1).all()
    torch.testing.assert_close(state.charge, 0.5 + one_way * bought - sold / one_way)


def test_prices_return_to_the_usual_with_variance_1():
    env = Storage()
    tasks = base.stack_tasks([LOSSLESS])
    uniforms = storage_rule.draws(env, 1, 4000, seed=3).double()
    state = env.reset(tasks, uniforms[0])
    for noise in uniforms[1:30]:
        before = state.deviation
        state, *_ = env.step(tasks, state, torch.full_like(state.elapsed, 2), noise)
    assert abs(state.deviation.std().item() - 1) < 0.05
    both = torch.corrcoef(torch.stack([before.flatten(), state.deviation.flatten()]))
    assert abs(both[0, 1].item() - 0.9) < 0.02


def test_the_optimum_is_the_best_of_all_plans_where_prices_are_certain():
    env = Storage(episode_length=3, profile=(-0.4, 0.1, 0.5, *(0.0,) * 21))
    task = StorageTask(2.0, 0.81, 0.05, 0.0, 1.0, 0.0)
    best = -math.inf
    for plan in itertools.product(range(5), repeat=3):
        charge, total = 0.5, 0.0
        for hour, action in enumerate(plan):
            price, rate, before = 1 + env.profile[hour], action / 2 - 1, charge
            bought, sold = min(max(rate, 0) / 2, (1 - charge) / 0.9), min(max(-rate, 0) / 2, 0.9 * charge)
            charge += 0.9 * bought - sold / 0.9
            total += 10 * (price * (sold - bought) - 0.05 * (sold + bought) + 0.9 * 0.6 * (charge - before))
        best = max(best, total)
    assert storage_optimal.returns(env, [task], charges=201, deviations=3) == pytest.approx([best], rel=2e-3)


def test_the_optimum_is_that_of_finer_grids_and_of_its_own_policy_and_above_the_rules():
    env = Storage()
    given = env.sample_tasks()
    found = env.optimal_returns(given)
    assert found == pytest.approx(storage_optimal.returns(env, given, charges=97, deviations=31), rel=0.005)
    tasks, uniforms = base.stack_tasks(given, dtype=torch.float32), storage_rule.draws(env, 4, 400, seed=5)
    best = storage_rule.play(env, tasks, storage_optimal.policy(env, given), uniforms)[0]
    apart = (best.mean(1) - torch.tensor(found)).abs()
    assert (apart < 3 * best.std(1) / 20).all()
    rules = storage_rule.joined(storage_rule.tune(env, given, episodes=4))
    by_rule = storage_rule.play(env, tasks, rules.policy(env, tasks), uniforms)[0].mean(1)
    assert (by_rule < 0.95 * best.mean(1)).all()
    assert (by_rule > 0.5 * best.mean(1)).all()


def test_the_optimum_follows_the_step_of_the_family():
    class Generous(Storage):
        def step(self, *given):
            after, reward, *rest = super().step(*given)
            return after, 3.0 * reward, *rest

    given = Storage.sample_tasks(Storage())[:1]
    plain, generous = (env(episode_length=24).optimal_returns(given)[0] for env in (Storage, Generous))
    assert generous == pytest.approx(3.0 * plain, rel=1e-4)


def test_a_battery_in_its_own_units():
    task = StorageTask.of(
        capacity=8.0, power=2.0, efficiency=0.9, wear=8.0, level=80.0, volatility=0.2, peak=0.4, dip=0.1
    )
    assert task == StorageTask(4.0, 0.9, 0.1, 0.2, 0.4, 0.1)


def series(days=400, level=60.0, seed=0):
    source = np.random.default_rng(seed)
    z = [0.0]
    for _ in range(24 * days - 1):
        z.append(0.85 * z[-1] + math.sqrt(1 - 0.85**2) * source.normal())
    return level * (1 + 0.3 * np.tile(PEAKS, days) + 0.2 * np.array(z))


def test_a_price_file_gives_the_constants(tmp_path):
    prices, path = series(), tmp_path / "prices.csv"
    stamps = np.datetime64("2023-01-01T05:00") + np.arange(len(prices)).astype("timedelta64[h]")
    rows = [f"{str(stamp).replace('T', ' ')},{price}" for stamp, price in zip(stamps, np.roll(prices, -5), strict=True)]
    path.write_text("time,EUR/MWh\n" + "\n".join(rows[:-10]) + "\n")
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(f"{price:.4f}" for price in prices))
    for env in (Storage(prices=str(path)), Storage(prices=str(plain))):
        assert env.level == pytest.approx(60.0, rel=0.02)
        assert env.volatility == pytest.approx(0.2, rel=0.05)
        assert env.persistence == pytest.approx(0.85, abs=0.02)
        np.testing.assert_allclose(env.profile, 0.3 * np.array(PEAKS), atol=0.03)
        low, high = ([getattr(one, end) for one in env.parameters] for end in ("low", "high"))
        middle = [0.5 * env.volatility, 1.6 * env.volatility]
        assert [low[3], high[3]] == pytest.approx(middle)
        assert (low[4], high[4]) == (0.5, 1.6)
        assert all(low[4] <= task.peak <= high[4] for task in env.sample_tasks(50))


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read"),
    ("", "has none in its first two lines"),
    ("time,price\na,b\n", "has none in its first two lines"),
    ("price\n" + "50\n" * 300, "at least 14 days .* has 300 hours"),
    ("50\n51\n" * 200 + "nan\n" + "50\n" * 24, "hour 401 of .* has nan"),
    ("50\n51\n" * 200 + "x\n", "hour 401 of .* has x"),
    ("50\n" * 400, "each is like the others"),
    ("-50\n-51\n" * 400, "a mean above 0"),
    ("31.12.2024 00:00,50\n31.12.2024 01:00,51\n" * 200, "expected times such as 2024-01-01 00:00, or hours"),
    ("2024-12-31,50\n2024-12-31,51\n" * 200, "expected times such as 2024-01-01 00:00, or hours"),
], ids=["no file", "empty", "words", "short", "nan", "a word", "constant", "below 0", "no ISO", "dates"])  # fmt: skip
def test_bad_price_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "prices.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"^prices: .*{message}") as caught:
        price_series.read(path)
    assert "\n" not in str(caught.value)


def test_hours_come_from_whatever_columns_say_them(tmp_path):
    """Semicolons and decimal commas, seconds since 1970, dates beside hours from 0 or 1 on, and rows with a number."""
    prices, path = series(days=60), tmp_path / "prices.csv"
    expected = price_series.estimate(prices, np.arange(len(prices)) % 24)
    stamps = np.datetime64("2024-01-01T00") + np.arange(len(prices)).astype("timedelta64[h]")
    days, seconds = stamps.astype("datetime64[D]"), stamps.astype("datetime64[s]").astype(int)
    rows = list(zip(range(len(prices)), days, seconds, prices, strict=True))
    for content in (
        "time;price\n" + "\n".join(f"{day} {i % 24:02};{price:.6f}".replace(".", ",") for i, day, _, price in rows),
        "unix,price\n" + "\n".join(f"{second},{price:.6f}" for _, _, second, price in rows[:-3]),
        "date,hour,price\n" + "\n".join(f"{day},{i % 24 + 1},{price:.6f}" for i, day, _, price in rows),
        "row,hour,price\n" + "\n".join(f"{i},{i % 24},{price:.6f}" for i, _, _, price in rows),
        "row,price\n" + "\n".join(f"{i + 100},{price:.6f}" for i, _, _, price in rows),
    ):
        path.write_text(content)
        found = price_series.read(path)
        assert found.level == pytest.approx(expected.level, rel=0.01), content[:40]
        np.testing.assert_allclose(found.profile, expected.profile, atol=0.01)


def test_missing_hours_are_refused_but_not_the_change_of_the_clock(tmp_path):
    prices, path = series(days=60), tmp_path / "prices.csv"
    stamps = np.datetime64("2024-01-01T00") + np.arange(len(prices)).astype("timedelta64[h]")
    rows = [f"{str(stamp).replace('T', ' ')}:00,{price}" for stamp, price in zip(stamps, prices, strict=True)]
    path.write_text("\n".join([*rows[:500], *rows[501:]]))
    price_series.read(path)
    path.write_text("\n".join([*rows[:500], *rows[599:]]))
    with pytest.raises(ValueError, match=r"^prices: .* 2024-01-21 19:00:00 and 2024-01-25 23:00:00 follow each other"):
        price_series.read(path)


def test_days_have_24_hours():
    with pytest.raises(ValueError, match=r"^profile: expected a number for each of 24 hours, got 2$"):
        Storage(profile=(0.1, -0.1))


def test_quarter_hours_are_refused(tmp_path):
    path = tmp_path / "prices.csv"
    stamps = np.datetime64("2024-01-01T00:00") + 15 * np.arange(2000).astype("timedelta64[m]")
    path.write_text("\n".join(f"{stamp},{50 + number % 7}" for number, stamp in enumerate(stamps)))
    with pytest.raises(ValueError, match=r"prices: expected a line for each hour, but .* 15 minutes apart"):
        price_series.read(path)


@pytest.mark.parametrize(
    "options", [{}, {"task_modes": "linear", "num_tasks": 9}, PLAIN], ids=["rows", "modes", "cells"]
)
def test_fused_equals_eager(options, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    library = {"storage": lambda: Storage(episode_length=40)}
    common = {"num_seeds": 2, "rank": 5, "dtype": "float64", "library": library, **options}
    eager, fused = (experiment("stlrq", "storage", engine=name, **common) for name in ("eager", "fused"))
    states = [play(run, 2) for run in (eager, fused)]
    for (name, theirs), ours in zip(flatten(states[0]).items(), flatten(states[1]).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
