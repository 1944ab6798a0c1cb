"""Known weaknesses of the exact versions in requirements.lock: python scripts/audit.py PIP_AUDIT (make audit).

Exit codes: 0 none is known · 1 there are some · 2 some packages, or all, could not be looked up.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"


def main(pip_audit: str) -> int:
    command = [pip_audit, "--requirement", str(LOCK), "--disable-pip", "--require-hashes"]
    done = subprocess.run([*command, "--progress-spinner", "off", "--format", "json"], capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"not audited: pip-audit cannot look anything up here ({reason}); run it where there is a network")
        return 2
    code, lines = judged(report)
    print("\n".join(lines))
    return code


def judged(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Exit code and lines for a report of pip-audit."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {weakness['id']}, mended in {', '.join(weakness['fix_versions'])}"
        for package in packages
        for weakness in package.get("vulns", [])
    ]
    known = len(lines)
    if skipped:
        what = "no package" if len(skipped) == len(packages) else f"{len(packages) - len(skipped)} of {len(packages)}"
        lines.append(f"not audited: {what} could be looked up, of the others first {skipped[0]}; is there a network?")
    elif not known:
        lines.append(f"no weakness is known of {len(packages)} packages")
    return (1 if known else 2 if skipped else 0), lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
