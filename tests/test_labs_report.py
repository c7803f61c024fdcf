"""Reports: the figures are what the log says, and the page is one file that a browser opens."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from labs.report import build
from labs.report.story import story_of
from softnlb.cli import run

ALL = (1 << 60) - 1
LOW, HIGH = (1 << 30) - 1, ALL ^ ((1 << 30) - 1)
ZERO_S = 5000.0
NODES = ["router", "client2", "bystander", "host1", "host2"]


def events_of_a_failover(minutes=0.5):
    """Two hosts; host 2 is killed at 10 s and started again at 20 s, once per half minute."""

    def event(at_s, kind, **facts):
        return {"at_s": ZERO_S + at_s, "event": kind, **facts}

    def host(at_s, host_id, state, members):
        return event(at_s, "host", host_id=host_id, state=state, members=members, default_host=1)

    def buckets(at_s, host_id, taken):
        return event(at_s, "buckets", host_id=host_id, slot=0, map=f"{taken:x}")

    kinds = {"router": "router", "client2": "client", "bystander": "bystander"}
    nodes = [
        {
            "name": name,
            "kind": kinds.get(name, "host"),
            "port": name,
            "host_id": None if name in kinds else int(name[-1]),
        }
        for name in NODES
    ]
    found = [event(0, "lab", name="x", nodes=nodes, spec={"mode": "unicast", "hosts": 2})]
    found += [host(1, n, "converged", [1, 2]) for n in (1, 2)]
    found += [buckets(1, 1, LOW), buckets(1, 2, HIGH)]
    for at_s in range(0, int(minutes * 60), 30):
        found += [
            event(at_s + 10, "fault", fault="kill", arguments=["host2"], message="host2: off"),
            event(at_s + 9.9, "silent", host_id=2),
            host(at_s + 11, 1, "converged", [1]),
            buckets(at_s + 11, 1, ALL),
            event(at_s + 20, "fault", fault="start", arguments=["host2"], message="started"),
            host(at_s + 21, 2, "joining", [2]),
            buckets(at_s + 21, 2, 0),
            buckets(at_s + 21.9, 1, LOW),
            host(at_s + 22, 2, "converged", [1, 2]),
            buckets(at_s + 22, 2, HIGH),
            event(at_s + 25, "agent", host_id=1, level="WARNING", text="<script>alert(1)</script>"),
        ]
    counts = {"in": 40, "forwarded": 10, "flooded": 90, "wasted": 60}
    found.append(event(minutes * 60, "frames", ports=dict.fromkeys(NODES, counts)))
    series = {"from_s": ZERO_S + 2, "bin_s": 0.1, "answered": {"1": [1] * 200, "2": [1] * 200}}
    gaps = [[ZERO_S + 10.0, ZERO_S + 11.2]]
    facts = {"failed": [0] * 80 + [1] * 12 + [0] * 108, "gaps": gaps}
    found.append(event(29, "clients", node="client1", what="new connections", **series, **facts))
    broken = [[ZERO_S + 10.5, 2, "TimeoutError"]]
    found.append(event(29, "sessions", node="client1", what="long", count=9, broken=broken))
    return found


def test_the_story_says_who_had_which_bucket_when_and_why():
    story = story_of(sorted(events_of_a_failover(), key=lambda e: e["at_s"]))
    assert story.longest_gap_s() == pytest.approx(1.2)
    assert [(round(m.at_s, 1), m.buckets, m.why) for m in story.moves] == [
        (1.0, {(0, 1): 30, (0, 2): 30}, "nobody had them"),
        (9.9, {(2, 0): 30}, "host 2 fell silent (kill host2)"),
        (11.0, {(0, 1): 30}, "the others take what host 2 had"),
        (21.9, {(1, 0): 30, (0, 2): 30}, "host 2 joined"),
    ]
    assert [(s.from_s, s.until_s, s.what) for s in story.states[2]] == [
        (1.0, 9.9, "converged"),
        (9.9, 21.0, "silent"),
        (21.0, 22.0, "joining"),
        (22.0, 30.0, "converged"),
    ]
    assert story.owners[1][1] == (1,) * 30 + (2,) * 30 or story.owners[0][1][:30] == (1,) * 30


class Page(HTMLParser):
    """Counts what must be balanced, and collects what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.seen = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.fetched += [
            value for name, value in attributes if name in ("src", "href", "xlink:href")
        ]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.fetched += [
            value for name, value in attributes if name in ("src", "href", "xlink:href")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a log of ten minutes full of faults."""
    directory = tmp_path_factory.mktemp("report")
    log, out = directory / "chaos.jsonl", directory / "chaos.html"
    log.write_text("".join(json.dumps(event) + "\n" for event in events_of_a_failover(10)))
    words = ["lab", "report", str(log), "-o", str(out), "--figures", str(directory / "figures")]
    assert run(words) == 0
    return log, out


def test_the_page_is_one_small_file_that_needs_no_network(page):
    _, out = page
    text = out.read_text()
    assert out.stat().st_size < 3_000_000
    parser = Page()
    parser.feed(text)
    assert not parser.open
    assert "script" not in parser.seen, "what a log contains is shown, not carried out"
    assert all(value.startswith(("#", "data:")) for value in parser.fetched), parser.fetched
    assert not re.search(r"url\((?!#|data:)", text)
    assert text.count("<figure>") == 4


def test_every_figure_is_there_as_svg_and_png_too(page):
    _, out = page
    names = {path.name for path in (out.parent / "figures").iterdir()}
    stems = ("topology", "buckets", "convergence", "service")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    for stem in stems:
        ElementTree.parse(out.parent / "figures" / f"{stem}.svg")
        assert (out.parent / "figures" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_figures_come_as_numbers(page, capsys):
    log, _ = page
    assert run(["lab", "report", str(log), "--json"]) == 0
    (lab,) = json.loads(capsys.readouterr().out)["labs"]
    assert lab["duration_s"] == 600
    assert lab["frames_per_port"]["host1"]["wasted"] == 60
    assert len(lab["bucket_moves"]) == 1 + 3 * 20
    assert lab["clients"][0]["gaps"] == [[10.0, 11.2]]


def test_what_is_no_log_is_refused(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    for content in (b"", b"\xff\xfe", b'{"at_s": 1}\n'):
        path.write_bytes(content)
        assert run(["lab", "report", str(path), "-o", str(tmp_path / "x.html")]) == 1
    assert run(["lab", "report", str(tmp_path / "nothing")]) == 1
    assert not (tmp_path / "x.html").exists()


def test_a_machine_without_matplotlib_is_told_how_to_get_it(page, monkeypatch, capsys):
    log, _ = page
    monkeypatch.setitem(__import__("sys").modules, "labs.report.figures", None)
    monkeypatch.delattr("labs.report.figures", raising=False)
    assert run(["lab", "report", str(log)]) == 5
    assert "softnlb[report]" in capsys.readouterr().err
    assert build.stories(log, "lab")[0].title == "x"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser on this machine")
def test_a_browser_shows_the_page(page):
    _, out = page
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    flags += [f"--user-data-dir={out.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        ["chromium", *flags, "--dump-dom", out.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("<figure>") == 4
    assert done.stdout.count("</svg>") == 4
    assert "longest gap in service" in done.stdout
