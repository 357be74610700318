"""Plans every stage of the full recipes on the usual slices and writes the table of docs/appendix-plan.md.

    python benchmarks/plan_table.py                  # every plan that benchmarks/results/plan.json does not have yet
    python benchmarks/plan_table.py --only 4b        # those with this in their name
    python benchmarks/plan_table.py --table          # the table alone, of what there is

A plan takes minutes: each is written as soon as it is there, and the same command goes on.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "plan.json", ROOT / "docs" / "appendix-plan.md"
BEGIN, END = "<!-- table: benchmarks/plan_table.py -->", "<!-- end of table -->"
SLICES = {"v5e:16x16": ("v5e:16x16", 1, "fsdp"), "v5p:4x4x8": ("v5p:4x4x8", 1, "fsdp")}
SLICES["2 x v6e:16x16"] = ("v6e:16x16", 2, "multislice")
STAGES = ("diffusion", "pair", "contextual", "triplet")
SAVE_ALL = "diffusion/Training.remat_policy=('projections', 'attention', 'mlp')"
SAVE_MOST = "diffusion/Training.remat_policy=('attention', 'mlp')"
# What a stage wants there beside the recipe: (size, stage, slice) -> gin parameters.
EXTRA = {
    ("4b", "contextual", "v5e:16x16"): ("ContextualStage.microbatches=4",),
    ("4b", "diffusion", "v5p:4x4x8"): (SAVE_MOST,),
    ("4b", "diffusion", "2 x v6e:16x16"): (SAVE_ALL,),
    ("0p6b", "diffusion", "v5e:16x16"): (SAVE_ALL,),
    ("0p6b", "diffusion", "v5p:4x4x8"): (SAVE_ALL,),
    ("0p6b", "diffusion", "2 x v6e:16x16"): (SAVE_ALL,),
}


def plans() -> dict[str, list[str]]:
    """The command's arguments by the name of the plan, the most asked for first."""
    found = {}
    for size in ("4b", "0p6b"):
        for place, (topology, slices, mesh) in SLICES.items():
            for stage in STAGES:
                command = [f"--gin_file=gin/recipes/pplx_embed_{size}.gin", f"--stage={stage}", f"--mesh={mesh}"]
                command += [f"--topology={topology}", f"--num_slices={slices}"]
                command += [f"--gin_param={param}" for param in EXTRA.get((size, stage, place), ())]
                found[f"{size} {stage} {place}"] = command
        long = [f"--gin_file=gin/recipes/pplx_embed_{size}.gin", "--gin_file=gin/stages/long_documents.gin"]
        long += ["--stage=contextual", "--topology=v5p:4x4x8", "--mesh=fsdp"]
        found[f"{size} contextual 32K v5p:4x4x8"] = long
    return found


def table(results: dict) -> str:
    """Markdown, a row a plan."""
    lines = [
        "| plan | mesh | saved, microbatches | GiB a chip | of | received GiB | step s | MFU | chip-hours | days |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, command in plans().items():
        if name not in results:
            continue
        plan = results[name]
        mesh = " ".join(f"{axis}={size}" for axis, size in plan["mesh_sizes"].items() if size > 1)
        params = [word.partition("=")[2].partition("=") for word in command if word.startswith("--gin_param")]
        extra = ", ".join(value.strip("()").replace("'", "") for _, _, value in params)
        used, limit = (f"{plan[key] / 2**30:.1f}" for key in ("hbm_bytes_per_chip", "hbm_limit_bytes"))
        cells = [name, mesh, extra, used if plan["fits"] else f"**{used}, does not fit**", limit]
        if plan["step_seconds_estimate"]:
            cells += [f"{plan['collective_bytes'] / 2**30:.1f}", f"{plan['step_seconds_estimate']:.2f}"]
            cells += [f"{plan['mfu_estimate']:.0%}", f"{plan['chip_hours']:,.0f}", f"{plan['days']:.1f}"]
        else:
            cells += [""] * 5
        lines.append(f"| {' | '.join(cells)} |")
    missing = [name for name in plans() if name not in results]
    return "\n".join(lines if results else []) + (f"\n\nNot planned yet: {', '.join(missing)}." if missing else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--table", action="store_true", help="write the table alone")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, command in plans().items():
        known = name in results and (not results[name]["fits"] or results[name]["step_seconds_estimate"])
        if arguments.table or known or not any(part in name for part in arguments.only):
            continue
        print(f"planning {name}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "pplx_jax", "plan", "--json", *command], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        plan = json.loads(done.stdout)
        if "error" in plan:
            sys.exit(f"{name}: {plan['error']}")
        plan["taken"] = {
            "date": datetime.date.today().isoformat(),
            "versions": {package: importlib.metadata.version(package) for package in ("jax", "libtpu")},
        }
        results[name] = {key: value for key, value in plan.items() if key not in ("table", "estimated")}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if PAGE.exists():
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
