"""What is installed: types, and all data that the package reads at run time."""

import tomllib
from importlib import metadata, resources
from pathlib import Path

import smalti

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_takes_the_whole_folder_of_the_package() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/smalti"]}
    assert Path(smalti.__file__).parent == ROOT / wheel["packages"][0]


def test_embedded_images_licences_and_the_type_marker_lie_inside_the_package() -> None:
    package = resources.files("smalti")
    assert (package / "py.typed").is_file()
    embedded = package / "data" / "embedded"
    for name in ("fashion-mnist-train.xz", "fashion-mnist-test.xz", "fashion-mnist.json", "LICENSES.md"):
        assert (embedded / name).is_file(), name
    assert len(list((embedded / "photographs").iterdir())) >= 8


def test_curves_to_compare_with_lie_inside_the_package() -> None:
    files = [file.name for file in (resources.files("smalti") / "evaluation" / "references").iterdir()]
    assert {"cifar10-dvae-1024.json", "cifar10-pixels.json", "embedded-dvae-512.json"} <= set(files)
    assert all(name.endswith(".json") for name in files)


def test_templates_and_the_style_of_the_report_lie_inside_the_package() -> None:
    files = {file.name for file in resources.files("smalti.report").iterdir()}
    assert {"page.css", "page.html", "table.html", "chart.html", "tile_row.html", "atlas.html"} <= files


def test_the_page_of_a_model_lies_inside_the_package() -> None:
    files = {file.name for file in resources.files("smalti.serving").iterdir()}
    assert {"page.css", "page.html", "page.js"} <= files


def test_no_rule_keeps_data_of_the_package_out_of_git() -> None:
    rules = (ROOT / ".gitignore").read_text().split() if (ROOT / ".gitignore").exists() else []
    assert not {"data", "data/", "embedded", "embedded/", "*.xz", "*.jpg", "*.json", "*.html", "*.css"} & set(rules)


def test_files_that_the_project_names_exist() -> None:
    project = PROJECT["project"]
    assert all((ROOT / name).is_file() for name in [project["readme"], *project["license-files"]])
    assert (ROOT / PROJECT["tool"]["hatch"]["version"]["path"]).is_file()


def test_the_command_is_installed_in_the_version_of_the_source() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="smalti")
    assert command.value == "smalti.cli:main"
    assert metadata.version("smalti") == smalti.__version__
