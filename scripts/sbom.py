"""What smalti is made of, from requirements.lock, as CycloneDX: python scripts/sbom.py > sbom.json (make sbom)."""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def bill(lock: str) -> dict[str, Any]:
    """Every package with its exact version, its address and the digests of its files; none of when it was made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src" / "smalti" / "__init__.py").read_text())
    assert version is not None
    about = {"type": "application", "name": project["name"], "version": version[1]}
    licence = [{"license": {"id": project["license"]}}]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": about | {"bom-ref": project["name"], "licenses": licence}},
        "components": [_component(entry) for entry in re.split(r"^(?=\w)", lock, flags=re.M) if "==" in entry],
    }


def _component(entry: str) -> dict[str, Any]:
    """A package as `name==version ; marker` and its digests stand in the file."""
    found = re.match(r"([\w.-]+)==([\w.+!-]+)", entry)
    assert found is not None
    name, version = found[1], found[2]
    address = f"pkg:pypi/{name}@{version}"
    digests = [{"alg": "SHA-256", "content": digest} for digest in re.findall(r"sha256:([0-9a-f]{64})", entry)]
    files = [{"type": "distribution", "url": f"https://pypi.org/project/{name}/{version}/", "hashes": digests}]
    return {
        "type": "library",
        "bom-ref": address,
        "name": name,
        "version": version,
        "purl": address,
        "externalReferences": files,
    }


if __name__ == "__main__":
    json.dump(bill((ROOT / "requirements.lock").read_text()), sys.stdout, indent=1)
    print()
