"""Words of `benchmarks/sharing.py`: how each question was asked, and its answer, written from the figures below it."""

ANSWERS: dict[str, str] = {
    "ranks": """On pendulum `stlrq` gains little after rank 15 (−93, −91, −90 with 15, 30, 60 after 25,000 samples,
optimum −88), on wireless nothing after 8 (607 with 8, 608 with 60, optimum 622; at 5,000 samples more rank costs:
581 with 15, 565 with 60); the TD-error rule, asked of eight runs together, took 60 and 60 for four pendulums, 30
for sixteen, 8 and 15 for four transmitters and 8 for sixteen, and got the median return of rank 60 to within 1, but
573 in the place of 578 in the last case (and one run of 16 that failed with rank 8), for pilots of 6,000 to 12,000
samples per task.""",
    "numbers": """With 102,400 samples in all, up to 16 tasks can be learnt instead of one at next to no cost,
shared or not (gap 5.0 and 5.8, one alone 4.0); beyond, sharing is what lets them learn: with 256 tasks of 400
samples each the gap is 23 with a row per task and 16 with linear task modes against 123 for `lrq`, with 1,024 tasks
of 100 samples 107 and 37 against 683; with four times the samples `lrq` keeps up to 64 tasks.""",
    "related": """At rank 30 tasks of another kind do not hurt (with half of 16 torques reversed, or goals hanging,
the plain tasks are 15 and 20 from the optimum at 1,000 samples; with none odd 18; each alone 64); sharing hurts at
a small rank (6, half reversed: 31 at 5,000 samples, alone 3) and where rewards differ in scale (ten times for half:
34 at 2,000, alone 9), which weights λ = 1/scale² mend (5.4); components of one task alone do not: as many shared
ones leave the plain tasks nearer the optimum in 12 of 12 comparisons at 1,000 samples.""",
    "grids": """Interpolated, 16 × 16 points suffice (10 actions: 4.5 from the optimum at 5,000 and 2.6 at 25,000
samples; 64 × 64: 15 and 3.0), while cells want 32 to 64 points per dimension and stay 8.5 or more away; one joint
mode is as good as a mode per dimension up to 32 × 32 cells at 25,000 samples (10 against 10.5), and falls behind on
finer grids and with fewer samples (64 × 64: 19 against 8.5 at 25,000, 402 against 69 at 5,000).""",
    "convergence": """On gridworld a decaying learning rate with rank 30 goes on converging (RMS of Q − Q* 0.021
after 200,000 samples), while with a constant rate it stays at 0.10, and with rank 10 at 0.10 to 0.14 either way; on
wireless max Q comes within 1.3 of V* on the states it visits with the preset's decay, 2.3 without (V* is 73 ± 26
over the grid), where the TD error settles at 2.8 to 3.1, about V*'s own 2.9, and the values come after the policy:
at 5,000 samples they are 44 below V*, but the return is 88% of the optimum.""",
}

ABOUT_RANKS = (
    """The default protocol on the four tasks of each family; mean over tasks of the greedy return, median
(quartiles) of 16 runs.""",
    """**A rule for an automatic rank.** Play a pilot of 3,000 samples per task with rank 8, 15, 30, 60 in turn, and
stop where the next rank no longer lowers the mean squared TD error over the last 1,000 samples by 15% (rule *TD
error*, which needs no tests), or no longer raises the mean test return by 5% of its size (rule *return*); the last
rank that did is taken. Eight runs are asked together (means over them), or each by itself. The thresholds and the
first rank come from seeds 0 to 31 of the four tasks of each family (from rank 4, single runs stop at once too
often); the table is on seeds 200 to 215 of these and 200 to 207 of 16 tasks. *Return* is that after 25,000 samples
per task, median (quartiles) over runs; a *loss* is what a run falls short of the same run with rank 60.""",
)

ABOUT_NUMBERS = """Tasks are the first 1, 4, …, 1,024 of the family's spread over mass and length. The measure is
the gap between the optimum and the greedy return, mean over the *same 16 tasks* for every number: 16 runs of one
task and 4 runs of four tasks, each with all the samples, and the first 16 where more learn together. Median
(quartiles) of 4 runs. The figure of one task is `lrq`'s for all three. `lrq` has the best of three settings: the
default's, 8 updates a step, and these with ε falling by 0.99 a sample and η halved by 1,000; 16 to 64 updates a
step were worse, except at 100 samples (616 at best). These settings were chosen on the seeds shown, in its favour.
With more than four tasks `stlrq` decays ε and η by the samples of all tasks and takes M/16 updates a step (2 to 64)
from 256 stored transitions in all or one of each task: chosen on seeds 0 to 2. Without that (two updates a step)
256 tasks do not learn from 102,400 samples: there are 800 updates. With the default's decay of η in its place, 64
and 256 tasks came 1 to 2 nearer from 409,600 samples on seeds 0 to 3, and 64 tasks with rank 60 did too."""

ABOUT_RELATED = (
    """16 pendulums (mass and length spread), of which 0, 2, 4 or 8 are of another kind: their torque is reversed,
or their goal is to hang, or their reward is ten times as large. Gap between the optimum and the greedy return in
units of each task's own reward, at 1,000, 2,000 and 5,000 samples per task, median (quartiles) of 8 runs. Which
tasks are odd differs from row to row: compare learners, not rows.""",
    """What helps, with 8 of 16 odd: weights λ of the odd tasks' loss, and components of one task alone, that is, Q
= a tensor shared by all + a small one of each task. The control has the same number of components, all shared.""",
)

ABOUT_GRIDS = """`stlrq` of rank 30 on the four pendulums; gap between the optimum (with the same torques, on a grid
of 361 × 201) and the greedy return, mean over tasks, median (quartiles) of 8 runs (joint mode on 64 × 64: 4). With
5 torques the lightest pendulum is beyond its speed limit after the weakest push: the plateau of cells is its."""

ABOUT_CONVERGENCE = """TD error: root of the mean squared error since the mark before, of the behaviour policy.
Medians (quartiles) of 8 runs; exploration does not fall below ε = 0.1, so that every state goes on being visited.
Gridworld: Q* in closed form, at all states but the goal. Wireless: max Q of the tested tensor against V* of the
discounted problem (value iteration on 16 gains × 2 × 21 × 41 points, linear in between; the same program without
discount gives the optima of the package to 0.01) on the states that the final policy visits, and on states spread
over all gains, queues and batteries."""
