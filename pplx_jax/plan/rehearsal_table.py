"""A rehearsal as text for the terminal."""

from collections.abc import Sequence
from typing import Any

import tabulate

from pplx_jax.parallel.mesh import mesh_text

_GIB = 2**30
_SHOWN = 4  # hosts of a stage that are listed unless one is asked for


def rehearsal_table(reports: Sequence[dict[str, Any]], host: int | None = None) -> str:
    """Returns a block of lines for each stage.

    Args:
      reports: as `rehearse` returns them, with `advice`.
      host: the only host to list; None for the first ones.
    """
    return "\n".join(_block(report, host) for report in reports)


def _block(report: dict[str, Any], host: int | None) -> str:
    mesh = mesh_text(report["mesh_sizes"])
    hosts = report["hosts"]
    chip, limit = report["hbm_bytes_per_chip"] / _GIB, report["hbm_limit_bytes"] / _GIB
    parts = ", ".join(f"{name.replace('_', ' ')} {size / _GIB:.2f}" for name, size in report["hbm"].items())
    lines = [
        f"{report['stage']} on {report['topology']}: {report['chips']} chips, {len(hosts)} hosts, mesh {mesh}",
        f"  batch of {report['batch_size']:,} in at most {report['rows']:,} sequences of {report['row_length']:,} "
        f"tokens, {report['rows'] // report['row_shards']:,} on each of {report['row_shards']} row shards",
        f"  chip: at least {chip:.2f} of {limit:.2f} GiB ({parts})",
        f"  host: at least {report['host_bytes'] / _GIB:.1f} of {report['host_limit_bytes'] / _GIB:.0f} GiB",
        f"  checkpoint: {report['checkpoint_bytes'] / _GIB:.1f} GiB",
        *(f"  {line}" for line in report["advice"]),
        "",
        _hosts(report, hosts[:_SHOWN] if host is None else hosts[host : host + 1]),
    ]
    if host is None and len(hosts) > _SHOWN:
        lines.append(f"  ... and {len(hosts) - _SHOWN} more hosts; --host=N shows one, --json all")
    return "\n".join(lines) + "\n"


def _hosts(report: dict[str, Any], hosts: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            each["host"],
            each["slice"],
            _numbers(each["devices"]),
            _numbers(each["mesh_places"]),
            ", ".join(f"{first}-{last}" for first, last in each["rows"]),
            f"{round(each['packed_part'] * report['batch_size']):,}",
            f"{each['bytes_written'] / _GIB:.2f}",
            f"{each['memory_bytes'] / _GIB:.1f}",
        )
        for each in hosts
    ]
    names = (
        "host",
        "slice",
        "devices",
        "places in the mesh",
        "sequences",
        "examples packed",
        "GiB written",
        "GiB held",
    )
    table = tabulate.tabulate(rows, names, tablefmt="plain", disable_numparse=True, stralign="right")
    return "\n".join(f"  {line}" for line in table.splitlines())


def _numbers(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
