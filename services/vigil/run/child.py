"""Start a foreign program so that it cannot outlive its supervisor.

``python -m vigil.run.child PARENT_PID PROGRAM [ARGUMENT …]`` asks the kernel to send SIGTERM when the parent dies
(PR_SET_PDEATHSIG, prctl(2); it survives execve of an ordinary program), then becomes the program.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arm the signal, check that the parent did not die meanwhile, and exec."""
    parent, *argv = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        sys.exit("the supervisor died before its child began")
    os.execvp(argv[0], argv)  # noqa: S606 - arguments as a list, no shell


if __name__ == "__main__":
    main()
