"""What the clients' scripts have in common: HOST PORT from the command line, and comparing."""
import sys

host, port = sys.argv[1], int(sys.argv[2])


def same(what, got, expected):
    if got != expected:
        sys.exit(f"{what}: got {got!r:.200}, expected {expected!r:.200}")


def fails(what, kind, command, *arguments, **named):
    try:
        got = command(*arguments, **named)
    except kind:
        return
    sys.exit(f"{what}: got {got!r:.200}, expected {kind}")


LARGE = bytes(range(256)) * 4000
