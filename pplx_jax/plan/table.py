"""A plan for people to read."""

from typing import Any

_GIB = 2**30


def as_table(report: dict[str, Any]) -> str:
    """Lines of `name  value`, in blocks."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh_sizes"].items() if size > 1) or "one chip"
    used, limit = report["hbm_bytes_per_chip"], report["hbm_limit_bytes"]
    lines = [
        f"{report['stage']} on {report['topology']}: {report['chips']} chips, mesh {mesh}",
        f"{report['rows']:,} rows, {report['tokens_per_step']:,} tokens a step",
        "",
        f"{'fits' if report['fits'] else 'DOES NOT FIT'}: {used / _GIB:.2f} of {limit / _GIB:.2f} GiB a chip",
    ]
    lines += [f"  {name.replace('_', ' '):30}{size / _GIB:8.2f} GiB" for name, size in report["hbm"].items()]
    lines += [f"  {line}" for line in report["advice"]]
    if report["step_seconds_estimate"]:
        lines += [
            "",
            f"step {report['step_seconds_estimate']:.3f} s (estimated), {report['flops_per_step']:.3e} FLOPs, "
            f"MFU {report['mfu_estimate']:.1%}",
            *(f"  {name.replace('_', ' '):30}{seconds:8.3f} s" for name, seconds in report["seconds"].items()),
            f"{report['tokens_per_second']:,.0f} tokens/s; the stage: {report['chip_hours']:,.0f} chip-hours, "
            f"{report['days']:.1f} days",
            "",
            "a chip receives a step",
        ]
        for each in report["collectives"]:
            lines.append(
                f"  {each['kind']:20}{each['link']:4} of {each['devices']:>4}  {each['bytes'] / _GIB:8.2f} GiB "
                f"{each['seconds']:7.3f} s  {'beside products' if each['overlapped'] else 'exposed'}"
            )
        if report["without_estimate"]:
            lines += ["", "without an estimate: " + "; ".join(report["without_estimate"])]
    return "\n".join(lines) + "\n"
