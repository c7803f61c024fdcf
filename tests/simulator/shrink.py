"""Make a failing episode small, and write it down as a scenario file.

What is tried: fewer faults, fewer hosts, shorter faults, calmer weather.  What still violates the
same guarantee is kept, until nothing more can be taken away.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from tests.simulator.episode import Episode
from tests.simulator.faults import Fault, Options
from tests.simulator.network import CALM, Weather

RUNS_MAX = 400


def violated(seed: int, plan: Options) -> set[str]:
    """The guarantees that this episode violates."""
    try:
        return {violation.guarantee for violation in Episode(seed, plan).run()}
    except Exception:
        return {"no-crash"}


def shrink(
    seed: int, plan: Options, judge: Callable[[int, Options], set[str]] = violated
) -> Options:
    """The smallest episode that was found to violate what ``plan`` violates."""
    wanted = judge(seed, plan)
    runs = 0
    again = bool(wanted)
    while again:
        again = False
        for smaller in _smaller(plan):
            runs += 1
            if runs > RUNS_MAX:
                return plan
            if wanted & judge(seed, smaller):
                plan = smaller
                again = True
                break
    return plan


def _smaller(plan: Options) -> Iterator[Options]:
    """Episodes that have a little less in them, the boldest cuts first."""
    for host in plan.hosts:
        faults = tuple(
            replace(fault, others=tuple(one for one in fault.others if one != host))
            for fault in plan.faults
            if fault.host != host
        )
        hosts = tuple(one for one in plan.hosts if one != host)
        aimless = any(fault.kind in ("pair", "one-way") and not fault.others for fault in faults)
        if len(hosts) > 1 and faults and not aimless:
            yield replace(plan, hosts=hosts, faults=faults)
    for place, fault in enumerate(plan.faults):
        if len(plan.faults) > 1:
            yield _with(plan, place)
        if fault.duration_ms >= 200:
            yield _with(plan, place, replace(fault, duration_ms=fault.duration_ms // 2))
        for step_ms in (100, 10):
            if fault.at_ms % step_ms:
                yield _with(plan, place, replace(fault, at_ms=fault.at_ms // step_ms * step_ms))
    for part in fields(Weather):
        if getattr(plan.weather, part.name) != getattr(CALM, part.name):
            calmer = replace(plan.weather, **{part.name: getattr(CALM, part.name)})
            yield replace(plan, weather=calmer)
    if plan.extra_ticks:
        yield replace(plan, extra_ticks=0.0)
    if plan.keyed:
        yield replace(plan, keyed=False)


def _with(plan: Options, place: int, *instead: Fault) -> Options:
    """The plan with other faults, or none, in the place of one."""
    faults = (*plan.faults[:place], *instead, *plan.faults[place + 1 :])
    return replace(plan, faults=tuple(sorted(faults, key=lambda fault: fault.at_ms)))


# ---------------------------------------------------------------- as lines of a scenario file


def to_lines(seed: int, plan: Options) -> list[str]:
    """The commands ``episode``, ``at`` and ``play`` that repeat exactly this episode."""
    hosts = ",".join(str(host) for host in plan.hosts)
    head = f"episode {seed} {plan.kind} hosts={hosts} tolerance={plan.tolerance}"
    for part in fields(Weather):
        value = getattr(plan.weather, part.name)
        if value != getattr(CALM, part.name):
            head += f" {part.name}={value}"
    if plan.keyed:
        head += " keyed=1"
    if plan.extra_ticks:
        head += f" extra_ticks={plan.extra_ticks}"
    lines = [head]
    for fault in plan.faults:
        line = f"at {fault.at_ms} {fault.kind} {fault.host}"
        if fault.others:
            line += " " + ",".join(str(host) for host in fault.others)
        if fault.duration_ms:
            line += f" for={fault.duration_ms}"
        if fault.value:
            line += f" value={fault.value}"
        lines.append(line)
    return [*lines, "play"]


def numbers(text: str) -> tuple[int, ...]:
    """ "1,4" as a tuple."""
    return tuple(int(one) for one in text.split(","))


def read_episode(seed: str, kind: str, *options: str) -> tuple[int, Options]:
    """The ``episode`` command's arguments."""
    given = dict(text.split("=", 1) for text in options)
    weather = {
        part.name: type(getattr(CALM, part.name))(given[part.name])
        for part in fields(Weather)
        if part.name in given
    }
    return int(seed), Options(
        kind,
        numbers(given["hosts"]),
        int(given["tolerance"]),
        Weather(**weather),
        "keyed" in given,
        float(given.get("extra_ticks", 0)),
    )


def read_fault(at_ms: str, kind: str, host: str, *details: str) -> Fault:
    """The ``at`` command's arguments."""
    given = dict(text.split("=", 1) for text in details if "=" in text)
    others = [numbers(text) for text in details if "=" not in text]
    return Fault(
        int(at_ms),
        kind,
        int(host),
        int(given.get("for", 0)),
        int(given.get("value", 0)),
        others[0] if others else (),
    )
