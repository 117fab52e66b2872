"""mpirun's way to the other pods of a group: no ssh, no kubectl, no rights in the cluster.

    mpi_agent.py HOST COMMAND...   on the leader, mpirun's plm_rsh_agent: has COMMAND run on HOST
    mpi_agent.py                   on a worker: runs the leader's command, tells how it ended

HOST ends with the worker's index; at port 20000 + index the leader hands out its command, once.
"""

import os
import signal
import socket
import subprocess
import sys
import time

FIRST_PORT = 20000


def agent(host, command):
    """Wait for the worker, give it the command; its exit code, 1 when it is lost."""
    port = FIRST_PORT + int(host.rsplit("-", 1)[1])
    with socket.create_server(("", port)) as server:
        connection = server.accept()[0]
    with connection:
        connection.sendall(command.encode())
        connection.shutdown(socket.SHUT_WR)
        try:
            return int(connection.recv(16) or 1)
        except OSError:
            return 1


def worker():
    """Run what the leader says; ends with its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    leader = (os.environ["LWS_LEADER_ADDRESS"], FIRST_PORT + int(os.environ["LWS_WORKER_INDEX"]))
    while True:
        try:
            connection = socket.create_connection(leader, timeout=10)
            break
        except OSError:  # no such name yet, or nobody listens yet
            time.sleep(1)
    connection.settimeout(None)
    command = b"".join(iter(lambda: connection.recv(65536), b""))
    child = subprocess.Popen(["bash", "-c", command])
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    connection.sendall(str(code).encode())
    return code


if __name__ == "__main__":
    sys.exit(agent(sys.argv[1], " ".join(sys.argv[2:])) if sys.argv[1:] else worker())
