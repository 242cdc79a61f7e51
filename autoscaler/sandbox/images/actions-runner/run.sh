#!/bin/bash
# Stand-in for the actions runner's run.sh, with its exit codes and signals:
#   listener 0, 1, 5 -> 0     2 -> sleep 5 s and start again     7 -> 7 (version deprecated)
# RUNNER_MANUALLY_TRAP_SIG=1 forwards INT and TERM to the listener as INT; without it nothing is forwarded.

DIR="$(cd -P "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

if [[ "$(id -u)" -eq 0 && -z "$RUNNER_ALLOW_RUNASROOT" ]]; then
    echo "Must not run interactively with sudo"
    exit 1
fi

listen() {
    python3 -B "$DIR/bin/runner_listener.py" "$DIR" run "$@"
}

# Exits unless the listener asked to be started again.
finish() {
    case "$1" in
        0) echo "Runner listener exit with 0 return code, stop the service, no retry needed." ;;
        1) echo "Runner listener exit with terminated error, stop the service, no retry needed." ;;
        2)
            echo "Runner listener exit with retryable error, re-launch runner in 5 seconds."
            sleep 5
            echo "Restarting runner..."
            return
            ;;
        5) echo "Runner listener exit with Session Conflict error, stop the service, no retry needed." ;;
        7)
            echo "Runner listener exit with deprecated version exit code: $1."
            exit 7
            ;;
        *) echo "Exiting with unknown error code: $1" ;;
    esac
    echo "Exiting runner..."
    exit 0
}

if [[ -z "$RUNNER_MANUALLY_TRAP_SIG" ]]; then
    while :; do
        listen "$@"
        finish $?
    done
fi

# Job control gives the listener a process group of its own, so that a signal reaches it and what it started.
set -m
trap 'kill -INT -- -"$PID" 2>/dev/null' INT TERM
while :; do
    listen "$@" &
    PID=$!
    # wait ends early for each trapped signal: wait again until the listener is really gone.
    wait "$PID"
    code=$?
    while kill -0 "$PID" 2>/dev/null; do
        wait "$PID"
        code=$?
    done
    finish "$code"
done
