"""What the programs here share: cases with a bound, run in order, each of which says how it went.

A program serves on a port, prints `listening PORT`, reads one line that says where its visitors come
in, runs its cases, and exits with 1 if one failed.
"""
import asyncio, sys, time, traceback

# Longest time for one case, in seconds; far more than it takes on a busy machine.
BOUND = 20
CASES = []


def case(function):
    """A case: an async function that gets what `run` was given."""
    CASES.append((function.__name__, function))
    return function


def add(name, function):
    CASES.append((name, function))


async def eventually(what, look):
    """Waits until `look` gives something true."""
    until = time.monotonic() + BOUND
    while not (seen := look()):
        assert time.monotonic() < until, f"{what}: not within {BOUND} s"
        await asyncio.sleep(0.005)
    return seen


async def told(port):
    """Says where this serves, and is told where visitors come in."""
    print(f"listening {port}", flush=True)
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return line.strip()


async def run(*given, cases=None):
    """Runs the cases; the exit code."""
    failed = 0
    for name, function in CASES if cases is None else cases:
        try:
            async with asyncio.timeout(BOUND):
                await function(*given)
            print(f"ok {name}", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED {name}", file=sys.stderr)
            traceback.print_exc()
    return 1 if failed else 0
