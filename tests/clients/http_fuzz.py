"""Sends requests to a real server that schemathesis makes from the server's own OpenAPI document, valid
ones and broken ones, and holds every reply against the document: no 5xx, no status, header or body
that it does not describe, nothing valid refused and nothing invalid accepted.

    cargo xtask http-fuzz [--examples N]

does all that is needed. By hand: a Python with schemathesis on the path,

    python3 tests/clients/http_fuzz.py target/debug/firn [N]
"""

import pathlib
import signal
import subprocess
import sys
import tempfile

# A watch has no end. Its refusals are tested beside it.
LEFT_OUT = "watch$"
# That a request is refused which the document allows is no mistake: conditions that do not hold, bounds
# in the wrong order, names that are taken, parameters that exclude each other.
LEFT_OUT_CHECKS = "positive_data_acceptance"


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    firn, examples = sys.argv[1], (sys.argv[2:] or ["200"])[0]
    schemathesis = pathlib.Path(sys.executable).parent / "schemathesis"
    with tempfile.TemporaryDirectory() as directory:
        data = f"{directory}/data"
        command = [firn, "serve", "--data-dir", data, "--http", "127.0.0.1:0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            line = server.stdout.readline()
            address = dict(word.split("=", 1) for word in line.split()[1:])["http"]
            found = subprocess.run(
                [schemathesis, "run", f"http://{address}/openapi.json",
                 "--exclude-path-regex", LEFT_OUT,
                 "--max-examples", examples,
                 "--exclude-checks", LEFT_OUT_CHECKS,
                 "--continue-on-failure",
                 "--request-timeout", "30",
                 "--suppress-health-check", "all"],
                cwd=directory,
            ).returncode
            if server.poll() is not None:
                sys.exit(f"FAILED: the server ended with {server.returncode}")
            server.send_signal(signal.SIGTERM)
            if server.wait(60) != 0:
                sys.exit(f"FAILED: the server stopped with {server.returncode}")
            subprocess.run([firn, "verify", "--data-dir", data], check=True)
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    sys.exit(found)


main()
