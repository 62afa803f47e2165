"""What the page says about one run: its facts, its command line, and the commands that resume or use the run."""

import shlex
from pathlib import Path

from pages.curves import mean_scores
from runs.overview import RunOverview
from utils import printable


def describe_run(run: RunOverview) -> dict[str, str]:
    """Return the facts of a run for its card, name -> text."""
    first, last = (run.sessions or [{}])[0], (run.sessions or [{}])[-1]
    facts = {"Length": f"{run.step:,} of {run.total:,} iterations" if run.total else f"{run.step:,} iterations"}
    if run.speed is not None:
        facts["Speed"] = f"{run.speed:.3g} iterations per second"
    else:
        facts["Speed"] = "not in log.txt: a run of less than 10 seconds writes none"
    if last:
        parts = [last.get("device", "unknown device"), last.get("precision", "")]
        parts += [f"{last[name]} {name}" for name in ("threads", "processes") if last.get(name, 1) != 1]
        facts["Device"] = ", ".join(str(part) for part in parts if part)
        started = str(first.get("started", "unknown"))[:16].replace("T", " ")
        again = f", resumed {len(run.sessions) - 1} times" if len(run.sessions) > 1 else ""
        facts["Started"] = started + again.replace("1 times", "once")
    if run.scores:
        kept = ", kept in best.pt" if run.has_best else ""
        best = mean_scores(run)[run.best_step]  # type: ignore[index]
        facts["Best evaluation"] = f"{best:.4g} {run.score_name} at iteration {run.best_step:,}{kept}"
    facts["Folder"] = str(run.folder)
    return {name: printable(text) for name, text in facts.items()}


def describe_command(run: RunOverview) -> str:
    """Return the command line that started a run; "" if it is not known."""
    words = (run.sessions or [{}])[0].get("command")
    if not isinstance(words, list):
        return ""
    script, rest = [str(word) for word in words[1:2]], [str(word) for word in words[2:]]
    if script and Path(script[0]).name == run.script:  # the program: sweep.py calls it by its absolute path
        script = [run.script]
    return printable(shlex.join(["python", *script, *rest]))


def commands_for(run: RunOverview) -> dict[str, str]:
    """Return what can be done with a run, and the command line for it."""
    folder = shlex.quote(str(run.folder))
    name = shlex.quote(run.folder.resolve().name)
    commands = {}
    if run.state != "running":
        is_constant = run.options.get("lr_policy", "constant") == "constant"
        if run.state != "finished":
            commands["Resume"] = f"python {run.script} --resume {folder}"
        elif is_constant:
            commands["Train longer"] = f"python {run.script} --resume {folder} --train_iters {2 * run.step}"
        else:  # a longer schedule would raise the learning rate again
            images = [
                f" --{name} {shlex.quote(str(run.options[name]))}"
                for name in ("data", "X", "Y")
                if run.options.get(name)
            ]
            commands["Train a new run from these weights"] = (
                f"python {run.script} --init_from {folder}{''.join(images)}"
            )
    best = " --checkpoint best" if run.has_best else ""
    if run.script == "cycle_gan.py":
        for way in ("X2Y", "Y2X"):
            commands[f"Translate {way[0]} to {way[-1]}"] = (
                f"python generate.py translate {folder} INPUT --direction {way}{best} -o OUTPUT"
            )
    else:
        commands["Sample"] = f"python generate.py sample {folder} -n 64{best} --grid {name}.png"
    commands["Measure"] = f"python evaluate.py {folder}{best}"
    return {what: printable(command) for what, command in commands.items()}
