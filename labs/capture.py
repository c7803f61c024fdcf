"""``softnlb lab capture``: frames of any set of switch ports in one pcapng file."""

import os
import select
import sys
import time

from labs.handle import Channel, LabHandle
from labs.pcapng import Writer
from labs.tap import Tap
from softnlb.errors import SoftnlbError


def capture_to(
    lab: LabHandle, ports: list[str], path: str, count: int | None, seconds: float | None
) -> int:
    """Capture until Ctrl-C, ``count`` frames or ``seconds``; returns the number of frames.

    ``path`` "-" is standard output.  Raises SoftnlbError for an unknown port.
    """
    known = [node["port"] for node in lab.ask("nodes")["nodes"] if node["port"]]
    for port in ports:
        if port not in known:
            raise SoftnlbError(f"{port} is not a port of the switch: {', '.join(known)}")
    # Opened before entering the lab, so that it is a file of the machine.
    try:
        file = os.dup(1) if path == "-" else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    except OSError as error:
        raise SoftnlbError(f"{path}: {error.strerror}") from error
    wanted = ports or known

    def body(channel: Channel) -> int:
        return _write_frames(channel, wanted, file, count, seconds)

    with lab.start("switch", body) as task:
        os.close(file)
        task.expect()
        print(f"capturing at {', '.join(wanted)}", file=sys.stderr)
        try:
            return int(task.result())
        except KeyboardInterrupt:
            return int(task.stop())


def _write_frames(
    channel: Channel, ports: list[str], file: int, count: int | None, seconds: float | None
) -> int:
    index = {port: number for number, port in enumerate(ports)}
    tap = Tap()
    frames = 0
    deadline = None if seconds is None else time.monotonic() + seconds
    with os.fdopen(file, "wb") as out:
        writer = Writer(out, ports)
        out.flush()
        channel.send({"ready": True})
        while count is None or frames < count:
            frame = tap.receive()
            if frame is None:
                out.flush()
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                readable, _, _ = select.select([tap.fileno(), channel.fileno()], [], [], left)
                if not readable or channel.fileno() in readable:
                    break
            elif frame.port in index:
                writer.frame(
                    index[frame.port], frame.at_ns, frame.data, frame.length_bytes, frame.to_switch
                )
                frames += 1
    return frames
