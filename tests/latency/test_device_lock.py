"""One measurement at a time on a device."""

from __future__ import annotations

import subprocess
import sys
import time

from hwprune.latency.device_lock import Slot

HOLD = """
import sys, time
from pathlib import Path
from hwprune.latency.device_lock import Slot
slot = Slot("cpu", [Path(sys.argv[1])]); slot.acquire(); print("held", flush=True); time.sleep(60)
"""


def test_who_waits_learns_who_is_timing_and_keeps_its_place(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    slot = Slot("cpu", [tmp_path])
    assert not slot.acquire(0.1)
    assert slot.holder() == holder.pid
    assert not slot.acquire(0.1)  # the same place in the queue
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert slot.acquire(60)
    slot.release()
    assert slot.holder() is None
    assert slot.acquire(0.1)  # nobody has it any more
    slot.release()


def test_timing_slot_is_exclusive_and_freed_by_a_kill(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    other = Slot("cuda", [tmp_path])
    other.acquire()  # another device is another slot
    time.sleep(1.0)
    assert waiter.poll() is None
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(waiter.stdout, selectors.EVENT_READ)
        assert not selector.select(0.2)  # still waiting
        holder.kill()
        assert selector.select(20)
    assert waiter.stdout.readline() == "held\n"
    waiter.kill()
    for process in (holder, waiter):
        process.wait()
        process.stdout.close()
    other.release()
