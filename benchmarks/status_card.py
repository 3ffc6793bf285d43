"""What a status card costs the kernel under a flood of events, beside tqdm.notebook's bar for the same events.

    python benchmarks/status_card.py [SECONDS] [--rate 1000]

Each runs in a cell of one real kernel: so many events a second, each with a few words and a share of the whole. They
take turns with a loop that only keeps the pace, whose CPU time is taken off. Printed are the share of one core, how many
different states reached the front end, and whether the last event is among them. Needs tqdm: `pip install tqdm`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from importlib.util import find_spec

from jupyter_client.manager import start_new_kernel

TURNS = 3

PACE = """
import time
def pace(seconds, rate, tell):
    began, cpu = time.monotonic(), time.process_time()
    count = round(seconds * rate)
    for i in range(count):
        tell(i, count)
        if (ahead := began + (i + 1) / rate - time.monotonic()) > 0:
            time.sleep(ahead)
    return cpu, began
def say(cpu, began):
    import json
    print(json.dumps([time.process_time() - cpu, time.monotonic() - began]))
"""

WAYS = {
    "nothing": "say(*pace({seconds}, {rate}, lambda i, count: None))",
    "status card": """
from mlopsnb.events import report_progress, step
from mlopsnb.notebook.views import following
def tell(i, count):
    report_progress("install", f"event {{i + 1}}", (i + 1) / count)
with following("%build model", mode="widget"), step("install") as log:
    spent = pace({seconds}, {rate}, tell)
    log.result = f"event {{round({seconds} * {rate})}}"
say(*spent)
""",
    "tqdm.notebook": """
from tqdm.notebook import tqdm
with tqdm(total=round({seconds} * {rate})) as bar:
    def tell(i, count):
        bar.set_postfix_str(f"event {{i + 1}}", refresh=False)
        bar.update()
    spent = pace({seconds}, {rate}, tell)
say(*spent)
""",
}


def run(client, way: str, seconds: float, rate: float) -> tuple[float, set[int]]:
    """Run one cell; return its share of one core and the numbers of the events that reached the front end."""
    texts: list[str] = []
    printed: list[str] = []

    def note(message):
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
        elif message["msg_type"] in ("comm_msg", "display_data", "update_display_data"):
            texts.append(json.dumps(content.get("data", {}), ensure_ascii=False))

    code = WAYS[way].format(seconds=seconds, rate=rate)
    reply = client.execute_interactive(code, output_hook=note, timeout=60 + 3 * seconds)
    if reply["content"]["status"] != "ok":
        raise SystemExit("\n".join(reply["content"]["traceback"]))
    cpu, took = json.loads("".join(printed))
    shown = {int(number) for text in texts for number in re.findall(r"event\s(\d+)", text)}
    return cpu / took, shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seconds", nargs="?", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=1000.0)
    asked = parser.parse_args()
    if find_spec("tqdm") is None:
        raise SystemExit("tqdm is not installed: pip install tqdm")
    last = round(asked.seconds * asked.rate)
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            "IPYTHONDIR": home,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        manager, client = start_new_kernel(kernel_name="python3", env=environment)
        try:
            client.execute_interactive(PACE)
            for way in WAYS:  # imports, and the first widgets
                run(client, way, 0.2, asked.rate)
            turns = [{way: run(client, way, asked.seconds, asked.rate) for way in WAYS} for _ in range(TURNS)]
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    share = {way: statistics.median(turn[way][0] - turn["nothing"][0] for turn in turns) for way in WAYS}
    print(f"{asked.rate:g} events a second for {asked.seconds:g} s, median of {TURNS} turns")
    for way in list(WAYS)[1:]:
        shown = [turn[way][1] for turn in turns]
        whole = "the last one too" if all(last in numbers for numbers in shown) else "not always the last one"
        print(
            f"{way:14}  {share[way]:6.1%} of one core, {statistics.median(map(len, shown)):g} events shown, {whole}"
        )
    print(f"status card / tqdm.notebook: {share['status card'] / share['tqdm.notebook']:.2f}")


if __name__ == "__main__":
    main()
