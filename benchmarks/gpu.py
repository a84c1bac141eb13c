"""All that is to be measured on a borrowed GPU, in one call and by importance, each result on disk at once.

    python -m benchmarks.gpu --output=$OUT/gpu.json --peer=PATH [--budget=460] [--only=crate_base,checks] [--tiny]

PATH is a checkout of the released CRATE (github.com/Ma-Lab-Berkeley/CRATE). Ours and the peers are compiled at the same
time, each in a process of its own, and measured by turns while nothing compiles. Of ours the compiled programs (gpu.zip) and
the times of their kernels are kept as well. A failure costs that figure alone; past the budget nothing new begins. --tiny
rehearses all of it on a CPU.
"""

import argparse
from pathlib import Path

from benchmarks.session import Session, Worker
from benchmarks.workloads import WORKLOADS

# In order of importance: what compiles together, (workload, forms of ours).
WAVES = [
    [("crate_base", ("default",)), ("igpt_small", ("default",))],
    [("vit_small", ("default",)), ("crate_large", ("default",))],
    [("igpt_small_sampling", ("default", "graphs")), ("crate_base", ("shared_attention", "deterministic"))],
    [("vit_small", ("library_products",)), ("igpt_small", ("library_products",))],
    [("crate_base", ("deterministic_shared_attention", "xla", "scanned", "padded_in_attention"))],
]


def wave(session: Session, jobs: list[tuple[str, tuple[str, ...]]]) -> None:
    """Compile all of them, then measure one workload after the other."""
    forms = {}
    for workload, ours in jobs:
        peers = WORKLOADS[workload].peers if "default" in ours else ()
        forms[workload] = [*ours, *peers]
    names = session.prepare([(workload, form) for workload, all_ in forms.items() for form in all_])
    for workload, all_ in forms.items():
        session.measure(workload, names, all_)


def kernels(session: Session) -> None:
    """Whether the kernels of attention are right. Where the platform's own is not, all that follows runs on xla."""
    found = session.ours.ask(min(session.left, 150), do="check", name="kernels", tiny=session.small)
    session.note("kernels", found)
    if found.get("wrong") != "none":
        session.fields = {"attention_kernel": "xla"}
        # It may have taken the process with it.
        session.ours.close()
        session.ours = Worker("ours", session.log)
        session.note("kernels are wrong", "everything that follows runs on attention_kernel=xla")


def checks(session: Session) -> None:
    """Right, and the objectives' times beside PyTorch's."""
    for name in ("shared_attention", "equal_bits", "equal_bits_deterministic"):
        session.note(
            name, session.ours.ask(min(session.left, 120), do="check", name=name, tiny=session.small)
        )
    for name in ("layer_metric", "coding_rate_gradient"):
        for worker in (session.ours, session.peers):
            answer = worker.ask(min(session.left, 60), do="check", name=name, tiny=session.small)
            session.note(f"{name}/{worker.side}", answer)
    # Last: on the card it once got no answer in its time, which costs the process.
    session.note(
        "portable", session.ours.ask(min(session.left, 120), do="check", name="portable", tiny=session.small)
    )


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--peer", help="a checkout of the released CRATE")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds")
    parser.add_argument("--only", help="parts, by comma: names of workloads, checks")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8)
    flags = parser.parse_args()
    options = {"budget": flags.budget, "peer": flags.peer, "small": flags.tiny, "look_inside": True}
    session = Session(flags.output, repeats=flags.repeats, steps=flags.steps, **options)
    chosen = set(flags.only.split(",")) if flags.only else None
    parts = [lambda: session.start(), lambda: kernels(session)]
    for jobs in WAVES:
        kept = [job for job in jobs if chosen is None or job[0] in chosen]
        if kept:
            parts.append(lambda kept=kept: wave(session, kept))
    # Last: a check that gets no answer in its time costs the process, and what is compiled in it.
    if chosen is None or "checks" in chosen:
        parts.append(lambda: checks(session))
    try:
        for part in parts:
            if session.left < 10:
                session.note("ended", "the budget is spent")
                break
            try:
                part()
            except Exception as error:  # What failed must not cost the rest.
                session.note("failed", f"{type(error).__name__}: {error}")
    finally:
        session.close()


if __name__ == "__main__":
    main()
