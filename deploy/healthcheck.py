"""The container's health check: exit 0 where ``/health/live`` of this container's server answers 200, else 1 with the reason."""

import sys
import urllib.request


def main(url: str = "http://127.0.0.1:8000/health/live") -> int:
    """Ask once. An engine that loads or is started again is alive; one that has given up is not."""
    try:
        with urllib.request.urlopen(url, timeout=4) as answer:
            status: int = answer.status
    except OSError as error:  # refused, timed out, 4xx or 5xx
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
