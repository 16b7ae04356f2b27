"""Engines are chosen by what works, and tried for two steps before they are trusted."""

import pytest
import torch
from problems import experiment

from torchq.engines import compiled, select
from torchq.engines.contract import RunState, UnavailableError
from torchq.engines.cpu.engine import CppEngine
from torchq.engines.eager import Stepwise
from torchq.errors import UsageError

LONG = {"algo": "stlrq", "env": "pendulum", "episodes": 20_000, "num_seeds": 2}


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile takes long, and the shape checks of the tests do not compile."""

    def unavailable(rollout):
        raise UnavailableError("not in this test")

    monkeypatch.setattr(compiled, "compiled", unavailable)


def test_auto_takes_the_fused_engine_where_it_works():
    run = experiment(**LONG, engine="auto")
    assert (run.config.engine, run.notes) == ("fused", ())


def test_auto_takes_eager_mode_for_short_runs():
    assert experiment(**{**LONG, "episodes": 5}, engine="auto").config.engine == "eager"


def test_auto_judges_length_by_transitions():
    """2,000 steps, but 33 million transitions: a quarter of an hour in eager mode, most of a minute when fused."""
    many = {"num_tasks": 4096, "num_seeds": 1, "episodes": 20, "engine": "auto"}
    assert experiment("stlrq", "pendulum", **many).config.engine == "fused"


def replaced(monkeypatch, change):
    """The fused engine with another result of `train`."""
    original = CppEngine.train

    def wrong(self, batch, state, *given, **options):
        return change(state, original(self, batch, state, *given, **options))

    monkeypatch.setattr(CppEngine, "train", wrong)


WRONG = {
    "an environment that is off": (
        lambda before, after: after._replace(env=after.env._replace(theta=after.env.theta + 0.1)), "env.theta"),
    "factors that stay": (
        lambda before, after: after._replace(learner=after.learner._replace(factors=before.learner.factors)),
        "learner.factors.0"),
    "nothing at all": (lambda before, after: before, "learner.factors.0"),
    "one factor that stays": (
        lambda before, after: after._replace(learner=after.learner._replace(
            factors=(*after.learner.factors[:-1], before.learner.factors[-1]))), "learner.factors.3"),
    "steps half as long": (
        lambda before, after: after._replace(learner=after.learner._replace(
            factors=tuple((a + b) / 2 for a, b in zip(after.learner.factors, before.learner.factors, strict=True)))),
        "learner.factors.0"),
    "NaN": (
        lambda before, after: after._replace(learner=after.learner._replace(
            factors=tuple(factor * torch.nan for factor in after.learner.factors))), "learner.factors.0"),
}  # fmt: skip


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize(("change", "name"), WRONG.values(), ids=WRONG)
def test_an_engine_that_computes_something_else_is_passed_over(change, name, preset, monkeypatch, no_compiler):
    replaced(monkeypatch, change)
    run = experiment(**LONG, preset=preset, engine="auto")
    assert run.config.engine == "eager"
    why = f"its first steps differ from those of eager mode in {name}"
    assert run.notes == (f"engine fused passed over: {why}", "engine compile passed over: not in this test")
    with pytest.raises(UsageError, match=rf"^engine: fused does not work here \({why}\); use auto$"):
        experiment(**LONG, preset=preset, engine="fused")


def test_an_engine_that_is_never_greedy_is_passed_over():
    run = experiment(**LONG)

    class Restless(Stepwise):
        def train(self, batch, state, rates, first_step):
            return super().train(batch, state, rates._replace(epsilon=torch.ones_like(rates.epsilon)), first_step)

    found = select.disagreement(Restless(run.rollout), run.rollout, run.rollout.batch(), run.initial_state)
    assert found is not None


def test_an_engine_that_fails_is_passed_over(monkeypatch):
    def broken(self, *given, **options):
        raise RuntimeError("driver too old\nlong explanation")

    monkeypatch.setattr(CppEngine, "train", broken)
    with pytest.raises(UsageError, match=r"engine: fused does not work here \(driver too old\); use auto"):
        experiment(**LONG, engine="fused")


def test_the_trial_moves_every_factor_and_leaves_the_state_alone():
    run = experiment(**LONG, engine="eager")
    state, rollout = run.initial_state, run.rollout
    before = [factor.clone() for factor in state.learner.factors]
    seen = []

    class Watched(Stepwise):
        def train(self, batch, state, rates, first_step):
            after = super().train(batch, state, rates, first_step)
            seen.extend(zip(after.learner.factors, before, strict=True))
            return after

    assert select.disagreement(Watched(rollout), rollout, rollout.batch(), state) is None
    assert len(seen) == 4
    assert all((after != start).any() for after, start in seen)
    assert all(torch.equal(*pair) for pair in zip(state.learner.factors, before, strict=True))


def test_the_trial_is_on_the_state_that_the_run_starts_from():
    """On a warm start, not on the cold factors that it replaces."""
    tried = []

    def warm(config, rollout, cold):
        return cold._replace(factors=tuple(factor + 1.0 for factor in cold.factors))

    class Watched(CppEngine):
        def train(self, batch, state, *given):
            tried.append(state)
            return super().train(batch, state, *given)

    config = experiment(**LONG).config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "CppEngine", Watched)
        import envs
        from torchq.runs.experiment import prepare

        run = prepare(config.replace(engine="fused"), envs.Pendulum(), warm)
    assert torch.equal(tried[0].learner.factors[0], run.initial_state.learner.factors[0])
    assert run.initial_state.learner.factors[0].mean() > 0.5


def test_large_batches_are_not_tried(monkeypatch, no_compiler):
    replaced(monkeypatch, lambda before, after: before)
    monkeypatch.setattr(select, "_LARGEST_TRIAL", 10)
    assert experiment(**LONG, engine="auto").config.engine == "fused"


def test_engines_that_need_too_much_memory_are_passed_over():
    run = experiment(**LONG)
    given = run.rollout, run.rollout.batch(), run.initial_state
    assert select.select("auto", *given, 10**6, {"eager": "too much"}).engine.name == "fused"
    assert select.select("auto", *given, 10, {"eager": "too much"}).engine.name == "fused"  # A short run, too.
    with pytest.raises(UsageError, match=r"^engine: eager does not work here \(too much\); use auto$"):
        select.select("eager", *given, 10**6, {"eager": "too much"})
    everything = dict.fromkeys(("fused", "compile", "eager"), "too much")
    with pytest.raises(UsageError, match=r"^too much; engine fused passed over: too much; engine compile passed over"):
        select.select("auto", *given, 10**6, everything)


def test_a_machine_without_a_compiler_runs_eagerly_and_says_so(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no compiler found\nlong explanation")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    run = experiment(**LONG, engine="auto")
    assert run.config.engine == "eager"
    assert run.notes[1] == "engine compile passed over: no compiler found"
    with pytest.raises(UsageError, match=r"engine: compile does not work here \(no compiler found\); use auto"):
        experiment(**LONG, engine="compile")


def test_engines_keep_the_contract():
    """Positional arguments and results as `Engine` names them, whatever the engine."""
    run = experiment(**LONG)
    for engine in (Stepwise(run.rollout), CppEngine(run.rollout)):
        rates = select.Rates(*(torch.full((3,), value) for value in (1.0, 0.01)))
        after = engine.train(batch=run.rollout.batch(), state=run.initial_state, rates=rates, first_step=0)
        assert isinstance(after, RunState)
        returns = engine.greedy_returns(learner=after.learner, env=after.env, first_step=0)
        assert returns.shape == run.initial_state.env.elapsed.shape
