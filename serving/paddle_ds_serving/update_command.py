"""``paddle-ds update``, ``rollback``, ``drain`` and ``status``: for a server of the same user on the same machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from paddle_ds import settings as settings_table
from paddle_ds_serving.supervision import control

_pid = click.option("--pid", type=click.IntRange(1), help="Process id of the server, where several run.")
_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
_no_drain = click.option(
    "--no-drain", is_flag=True, help="Refuse rather than stop serving for a while, where memory does not allow two engines."
)


def _ask(pid: int | None, op: str, **arguments: Any) -> Any:
    runtime_dir = Path(settings_table.load().runtime_dir)
    return control.ask(control.find(runtime_dir, pid), op, **arguments)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@_no_drain
@click.option(
    "--shadow", type=float, metavar="PERCENT", help="First compare it with the current one on this share of live requests."
)
@click.option("--shadow-requests", type=int, metavar="N", help="How many of them are compared (by default 50).")
@click.option("--shadow-limit-s", type=float, metavar="S", help="And for how long at most (by default 300).")
@click.option("--min-agreement", type=float, metavar="SHARE", help="Refuse it where less of its tokens are the same (0 to 1).")
@_pid
@_json
def update(path: Path, no_drain: bool, pid: int | None, as_json: bool, **shadow: float | None) -> None:
    """Serve the checkpoint at PATH instead of the current one, without losing a request.

    It is verified, loaded beside the current one, tried, and switched to. If it is refused, the exit status is 1 and the current
    one goes on.
    """
    _tell_update(_ask(pid, "load", path=str(path.expanduser().absolute()), may_drain=not no_drain, **shadow), as_json)


@click.command()
@_no_drain
@_pid
@_json
def rollback(no_drain: bool, pid: int | None, as_json: bool) -> None:
    """Serve the checkpoint that was served before."""
    _tell_update(_ask(pid, "rollback", may_drain=not no_drain), as_json)


@click.command()
@click.argument("url")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--keep", type=click.IntRange(1), default=7, show_default=True, help="Versions that are kept, the new one included."
)
@_json
def pull(url: str, out: Path, keep: int, as_json: bool) -> None:
    """Fetch the checkpoint at URL to OUT, or what has changed of it since the last time.

    OUT becomes a link to a directory of its own for each version, which moves when everything is there and verified. A
    broken transfer goes on where it was. Then: paddle-ds update OUT.
    """
    from paddle_ds.checkpoints.pull import pull as fetch

    quiet = as_json or not sys.stderr.isatty()
    done = fetch(
        url,
        out,
        keep=keep,
        timeout_s=settings_table.load().hub_timeout_s,
        progress=lambda text: None if quiet else click.echo(f"  {text}", err=True),
    )
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(done), "path": str(done.path)}))
        return
    state = "is the newest already" if done.unchanged else f"is {done.weight_version} now"
    click.echo(f"{done.path} {state}")
    click.echo(f"{done.fetched_bytes:,} bytes fetched; {done.reused_tensors} of {done.num_tensors} tensors were here")


@click.command()
@click.option("--off", is_flag=True, help="Take requests again.")
@_pid
@_json
def drain(off: bool, pid: int | None, as_json: bool) -> None:
    """Take no new requests; those that run go on."""
    answer = _ask(pid, "drain", enabled=not off)
    if as_json:
        click.echo(json.dumps(answer))
    elif answer["accepting"]:
        click.echo("requests are taken")
    else:
        click.echo(f"no new requests are taken; {answer['requests'] or 0} are under way")


@click.command()
@_pid
@_json
def status(pid: int | None, as_json: bool) -> None:
    """What the server serves, what drains, and how the last update went."""
    answer = _ask(pid, "status")
    if as_json:
        click.echo(json.dumps(answer))
        return
    engine, update_ = answer["engine"], answer["update"]
    click.echo(f"serves     {engine['model']} {engine['weight_version']} ({engine['state']}, {engine['requests'] or 0} requests)")
    click.echo(f"from       {engine['path']}")
    click.echo(f"requests   {'are taken' if answer['accepting'] else answer['refusal']}")
    for unit in answer["draining"]:
        click.echo(f"drains     {unit['weight_version']} ({unit['requests'] or 0} requests)")
    if update_["running"]:
        compared = update_["shadow"]
        so_far = f", {compared['compared']} of {compared['requests']} requests compared" if compared else ""
        click.echo(f"update     {update_['stage']}{so_far}")
    if update_["last_error"]:
        click.echo(f"refused    {update_['last_error']}")
    if answer["rolled_back_because"]:
        click.echo(f"rolled back: {answer['rolled_back_because']}")
    for place in answer["history"]:
        click.echo(f"before     {place['weight_version']} {place['path']}")


def _tell_update(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer))
        return
    verified = "verified against its manifest" if answer["manifest_verified"] else "without a manifest to verify it against"
    how = "beside the old one" if answer["mode"] == "beside" else "after a drain: there was no memory for both"
    click.echo(f"now serves {answer['weight_version']} ({answer['path']})")
    click.echo(f"           {verified}, loaded {how}, in {answer['seconds']:.1f} s")
    if answer["shadow"] is not None:
        _tell_shadow(answer["shadow"])
    click.echo(f"before it  {answer['previous_version']}; `paddle-ds rollback` goes back")


def _tell_shadow(result: dict[str, Any]) -> None:
    counts = f"{result['compared']} of {result['requests']} requests"
    if result["agreement"] is None:
        click.echo(f"compared   {counts}: nothing is known of its answers")
        return
    click.echo(
        f"compared   {counts}: {result['agreement']:.2%} of the tokens are the same; {result['identical']} answers identical, "
        f"{result['failed']} failed, {result['missed']} missed"
    )
    for name, what in (("first_token_s", "first token"), ("total_s", "whole answer")):
        if result[name] is not None:
            new, old = result[name]["new"], result[name]["old"]
            click.echo(
                f"           {what}: median {new['median']:.3f} s (before {old['median']:.3f}), "
                f"p95 {new['p95']:.3f} s (before {old['p95']:.3f})"
            )
