"""Plugins and what they offer: how they are found, left out, found broken; and what a wrong name, option or argument gets."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

from harness.api import Entry, HarnessError, Setup
from harness.registry import KINDS, Reference, Registry, load

DETECTOR = """
from harness.api import Entry, Method, hookimpl, segment_max


class Strongest:
    '''The strongest token.'''

    calibrate_on = "samples"

    def __init__(self, *, sharpness: float = 1.0) -> None:
        self.sharpness = sharpness

    def pool(self, activations, block):
        return segment_max(activations, block.offsets)


@hookimpl
def harness_register_detectors():
    return [Entry("{name}", "{module}:Strongest", "as max")]
"""


@pytest.fixture(autouse=True)
def modules():
    """Plugins given as files are modules afterwards: forget them."""
    before, paths = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = paths
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "broken_", "third_")):
            del sys.modules[name]


def detector_file(folder: Path, module: str = "my_detector", name: str = "strongest") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}.py"
    path.write_text(DETECTOR.format(name=name, module=module))
    return path


def installed(folder: Path, distribution: str, points: str, **files: str) -> Path:
    """A folder that looks like site-packages with one more distribution."""
    info = folder / f"{distribution}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[harness]\n{points}\n")
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def message(*requests: str) -> str:
    with pytest.raises(HarnessError) as caught:
        load(requests)
    return one_line(caught.value)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def plugin(registry: Registry, name: str):
    (found,) = [plugin for plugin in registry.plugins if plugin.name == name]
    return found


# Where plugins come from


def test_every_entry_point_of_the_distribution_is_loaded_with_its_version():
    registry = load()
    points = {point.name: point for point in entry_points(group="harness")}
    assert {plugin.name for plugin in registry.plugins} == set(points)
    assert all(plugin.cause is None for plugin in registry.plugins)
    assert plugin(registry, "toy").origin == "harness_toy"
    assert plugin(registry, "toy").version == points["toy"].dist.version


def test_every_bundled_target_can_be_imported():
    registry = load()
    for kind in KINDS:
        for name in registry.entries(kind):
            assert callable(registry.target(kind, name)), f"{kind} {name}"


def test_every_recipe_refers_to_parts_that_are_registered():
    registry = load()
    for method in registry.methods().values():
        parts = (
            ("concept_methods", method.concepts),
            ("detectors", method.detector),
            ("localizers", method.localizer),
            ("scorers", method.scorer),
        )
        built = [registry.create(kind, reference) for kind, reference in parts if reference]
        assert built, method.name


def test_a_registry_is_its_own_and_what_one_loads_the_next_does_not_see(tmp_path: Path):
    path = detector_file(tmp_path)
    assert "strongest" in load([str(path)]).entries("detectors")
    assert "strongest" not in load().entries("detectors")


def test_a_file_given_with_p_is_a_plugin(tmp_path: Path):
    path = detector_file(tmp_path)
    registry = load([str(path)])
    assert registry.entries("detectors")["strongest"] == Entry("strongest", "my_detector:Strongest", "as max")
    assert registry.owner("detectors", "strongest") == "my_detector"
    assert plugin(registry, "my_detector").origin == str(path)
    assert registry.create("detectors", "strongest:sharpness=2.5").sharpness == 2.5


def test_a_file_given_by_a_relative_path_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    detector_file(tmp_path / "below")
    monkeypatch.chdir(tmp_path)
    assert "strongest" in load(["below/my_detector.py"]).entries("detectors")


def test_a_package_given_with_p_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "my_package"
    detector_file(package, "inside", "from-package")
    (package / "__init__.py").write_text(DETECTOR.format(name="from-package", module="my_package"))
    monkeypatch.syspath_prepend(tmp_path)
    registry = load(["my_package"])
    assert registry.owner("detectors", "from-package") == "my_package"


def test_a_module_inside_a_package_given_with_p_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "my_package"
    detector_file(package, "inside", "from-inside")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert "from-inside" in load(["my_package.inside"]).entries("detectors")


def test_a_plugin_is_left_out_by_name():
    registry = load(["no:pooling", "no:toy"])
    assert "max" not in registry.entries("detectors")
    assert "toy" not in registry.entries("datasets")
    assert "superactivator" in registry.entries("detectors")


def test_leaving_out_a_plugin_that_is_not_there_names_the_nearest():
    assert message("no:guesing").startswith("unknown plugin 'guesing' in -p no:guesing; did you mean guessing?; there are: ")


def test_a_file_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    said = message("nothing_here.py")
    assert said == f"no plugin file nothing_here.py; given with -p; looked for {tmp_path / 'nothing_here.py'}"


def test_a_package_that_is_not_there_is_named():
    assert (
        message("not_a_package")
        == "no plugin 'not_a_package' given with -p; it is neither a .py file nor an importable package"
    )


def test_a_module_that_its_package_does_not_have_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    said = message("my_package.nothing")
    assert "my_package.nothing (given with -p) cannot be used" in said
    assert "No module named 'my_package.nothing'" in said


def test_a_file_that_cannot_be_imported_is_refused_with_its_cause(tmp_path: Path):
    path = tmp_path / "broken_file.py"
    path.write_text("import a_package_that_is_not_there\n")
    said = message(str(path))
    assert said == (
        f"plugin {path} (given with -p) cannot be used; ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    )


def test_a_file_with_a_syntax_error_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "broken_syntax.py"
    path.write_text("def half(:\n    pass\n")
    assert "cannot be used; SyntaxError: " in message(str(path))


def test_a_file_that_ends_the_interpreter_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "broken_exit.py"
    path.write_text("import sys\nsys.exit('a script, not a plugin')\n")
    assert "cannot be used; SystemExit: a script, not a plugin" in message(str(path))


def test_a_file_without_a_hook_is_refused_with_what_is_missing(tmp_path: Path):
    path = tmp_path / "my_plain.py"
    path.write_text("def harness_register_detectors():\n    return []\n")
    assert message(str(path)) == f"plugin {path} (given with -p) cannot be used; implements no hook: is @hookimpl missing?"


def test_a_hook_of_an_unknown_name_is_refused_by_its_name(tmp_path: Path):
    path = tmp_path / "my_typo.py"
    path.write_text("from harness.api import hookimpl\n\n\n@hookimpl\ndef harness_register_detecors():\n    return []\n")
    said = message(str(path))
    assert "unknown hook 'harness_register_detecors'" in said


def test_a_hook_with_an_argument_that_does_not_exist_is_refused(tmp_path: Path):
    path = tmp_path / "my_argument.py"
    path.write_text("from harness.api import hookimpl\n\n\n@hookimpl\ndef harness_register_detectors(color):\n    return []\n")
    assert "color" in message(str(path))


def test_a_file_named_like_a_module_of_python_does_not_replace_it(tmp_path: Path):
    """A detector that picks a random token is well named random.py."""
    detector_file(tmp_path, "random")
    code = (
        "import sys\nfrom harness.errors import HarnessError\nfrom harness.registry import load\n"
        "try:\n    load([sys.argv[1]])\nexcept HarnessError as error:\n    print('refused', error)\n"
        "import random\nprint(random.random.__name__, 'tempfile works')\nimport tempfile; tempfile.mkdtemp()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "random.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Broken plugins stop nobody else


def test_an_installed_plugin_that_cannot_be_imported_is_listed_with_its_cause_and_stops_nobody_else(tmp_path: Path):
    installed(tmp_path, "broken-thing", "broken = broken_thing", broken_thing="import a_package_that_is_not_there\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "from harness.cli import main; main()"]
    listed = subprocess.run([*command, "plugins"], capture_output=True, text=True, env=environment)
    assert listed.returncode == 0, listed.stderr
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith("broken")]
    assert row.split()[:3] == ["broken", "broken_thing", "1.2"]
    assert row.endswith("BROKEN: ModuleNotFoundError: No module named 'a_package_that_is_not_there'")
    assert sum(line.endswith(" ok") for line in listed.stdout.splitlines()) == len(entry_points(group="harness"))
    methods = subprocess.run([*command, "list", "methods"], capture_output=True, text=True, env=environment)
    assert methods.returncode == 0
    assert "superactivator" in methods.stdout


def test_an_installed_plugin_without_a_hook_or_with_an_unknown_one_is_listed_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    typo = "from harness.api import hookimpl\n\n\n@hookimpl\ndef harness_register_detecors():\n    return []\n"
    installed(tmp_path, "third", "third-bare = third_bare\nthird-typo = third_typo", third_bare="x = 1\n", third_typo=typo)
    monkeypatch.syspath_prepend(tmp_path)
    registry = load()
    assert plugin(registry, "third-bare").cause == "implements no hook: is @hookimpl missing?"
    assert "unknown hook 'harness_register_detecors'" in plugin(registry, "third-typo").cause
    assert "max" in registry.entries("detectors")


def test_an_installed_plugin_whose_hook_fails_is_listed_as_broken_and_its_other_hooks_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = DETECTOR.format(name="from-third", module="third_half") + (
        "\n\n@hookimpl\ndef harness_register_metrics():\n    raise RuntimeError('no metrics today\\nsecond line')\n"
    )
    installed(tmp_path, "third", "third-half = third_half", third_half=text)
    monkeypatch.syspath_prepend(tmp_path)
    registry = load()
    assert "f1" in registry.entries("metrics")
    assert "from-third" in registry.entries("detectors")
    assert plugin(registry, "third-half").cause == "harness_register_metrics: RuntimeError: no metrics today"


def test_an_installed_plugin_whose_hook_gives_no_entries_is_listed_as_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "from harness.api import hookimpl\n\n\n@hookimpl\ndef harness_register_detectors():\n    return ['max']\n"
    installed(tmp_path, "third", "third-strings = third_strings", third_strings=text)
    monkeypatch.syspath_prepend(tmp_path)
    registry = load()
    assert "max" in registry.entries("detectors")
    assert plugin(registry, "third-strings").cause


def test_a_plugin_that_fails_to_add_its_commands_is_listed_as_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import click

    text = "from harness.api import hookimpl\n\n\n@hookimpl\ndef harness_add_commands(cli):\n    raise ValueError('no')\n"
    installed(tmp_path, "third", "third-command = third_command", third_command=text)
    monkeypatch.syspath_prepend(tmp_path)
    registry = load()
    registry.add_commands(click.Group("empty"))
    assert plugin(registry, "third-command").cause == "harness_add_commands: ValueError: no"


def test_a_second_distribution_whose_entry_point_has_a_bundled_name_does_not_knock_the_bundled_one_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = DETECTOR.format(name="from-third", module="third_metrics")
    installed(tmp_path, "third", "metrics = third_metrics", third_metrics=text)
    monkeypatch.syspath_prepend(tmp_path)
    registry = load()
    causes = [plugin.cause for plugin in registry.plugins if plugin.name == "metrics"]
    working = {("f1" in registry.entries("metrics")), ("from-third" in registry.entries("detectors"))}
    assert causes.count(None) == sum(working), "a plugin that is listed as ok must work"
    assert True in working, "one broken plugin must stop nobody else"


# Two of one name


def test_two_plugins_that_offer_one_name_are_an_error_that_names_both(tmp_path: Path):
    first, second = detector_file(tmp_path, "my_one"), detector_file(tmp_path, "my_two")
    registry = load([str(first), str(second)])
    with pytest.raises(HarnessError) as caught:
        registry.entries("detectors")
    said = one_line(caught.value)
    assert said.startswith("detector 'strongest' is offered by two plugins; ")
    assert "my_one" in said
    assert "my_two" in said
    assert "`-p no:my_" in said


def test_a_plugin_that_offers_a_bundled_name_is_an_error_that_names_both_and_what_it_says_to_do_works(tmp_path: Path):
    path = detector_file(tmp_path, name="max")
    with pytest.raises(
        HarnessError, match=r"detector 'max' is offered by two plugins; .*block one of them with `-p no:"
    ) as caught:
        load([str(path)]).entries("detectors")
    assert "pooling" in str(caught.value)
    assert "my_detector" in str(caught.value)
    advice = str(caught.value).split("`-p ")[1].rstrip("`")
    assert "max" in load([str(path), advice]).entries("detectors")


def test_one_kind_does_not_mind_a_name_of_another_kind(tmp_path: Path):
    registry = load([str(detector_file(tmp_path, name="toy"))])
    assert "toy" in registry.entries("detectors")
    assert "toy" in registry.entries("backbones")


def test_the_same_file_given_twice_is_refused_in_one_line(tmp_path: Path):
    path = str(detector_file(tmp_path))
    assert "my_detector" in message(path, path)


# Lookup


def test_an_unknown_name_gets_the_nearest_match_the_list_and_where_to_look():
    with pytest.raises(HarnessError) as caught:
        load().target("concept_methods", "liner")
    assert one_line(caught.value) == (
        "unknown concept method 'liner'; did you mean linear or kmeans-linear?; there are: ica, kmeans, kmeans-linear, lat, "
        "linear, mean, nmf, pca, sae, zero-shot; see `harness list concept-methods`"
    )


def test_an_unknown_option_gets_the_nearest_match():
    with pytest.raises(HarnessError) as caught:
        load().create("concept_methods", "linear:estimater=adam")
    assert one_line(caught.value).startswith("unknown option 'estimater' in concept method 'linear'; did you mean estimator?")


@pytest.mark.parametrize(
    ("kind", "reference", "given"),
    [
        ("concept_methods", "mean:strong", ()),
        ("detectors", "max:strong", ()),
        ("metrics", "f1:strong", ()),
        ("backbones", "toy:strong", (Setup(),)),
        ("concept_methods", "linear:estimator=adam:strong", ()),
    ],
)
def test_an_argument_where_none_is_taken_is_refused_in_one_line(kind: str, reference: str, given: tuple):
    with pytest.raises(HarnessError) as caught:
        load().create(kind, reference, *given)
    assert "strong" in one_line(caught.value)


@pytest.mark.parametrize("value", ["abc", "", "[1, 2]", "{a: 1}"])
def test_an_option_of_a_wrong_type_is_refused_in_one_line(value: str):
    with pytest.raises(HarnessError) as caught:
        load().create("concept_methods", f"linear:c={value}")
    assert "'linear'" in one_line(caught.value)


@pytest.mark.parametrize("value", ["[", "'open", "{a: ]", "a: b: c", "\t"])
def test_an_option_whose_value_is_not_yaml_is_refused_in_one_line(value: str):
    with pytest.raises(HarnessError):
        load().create("concept_methods", f"linear:estimator={value}")


def test_an_option_without_a_value_is_refused_in_one_line():
    with pytest.raises(HarnessError):
        load().create("concept_methods", "linear:estimator=")


def test_a_missing_optional_package_gets_the_exact_pip_command(tmp_path: Path):
    path = tmp_path / "my_heavy.py"
    (tmp_path / "my_needs.py").write_text("import a_package_that_is_not_there\n\n\nclass Thing:\n    pass\n")
    path.write_text(
        "from harness.api import Entry, hookimpl\n\n\n@hookimpl\ndef harness_register_detectors():\n"
        "    return [Entry('extra', 'my_needs:Thing', '', extra='bundled'), Entry('plain', 'my_needs:Thing', '')]\n"
    )
    sys.path.insert(0, str(tmp_path))
    registry = load([str(path)])
    needs = "needs the package 'a_package_that_is_not_there', which is not installed; run:"
    with pytest.raises(HarnessError) as caught:
        registry.create("detectors", "extra")
    assert one_line(caught.value) == f"detector 'extra' {needs} pip install 'concept-harness[bundled]'"
    with pytest.raises(HarnessError) as caught:
        registry.create("detectors", "plain")
    assert one_line(caught.value) == f"detector 'plain' {needs} pip install a_package_that_is_not_there"


def test_every_extra_that_an_entry_names_is_one_of_the_distribution():
    from importlib.metadata import metadata

    extras = set(metadata("concept-harness").get_all("Provides-Extra"))
    registry = load()
    named = {entry.extra for kind in KINDS for entry in registry.entries(kind).values() if entry.extra}
    assert named <= extras


def test_a_target_that_is_a_typo_of_the_plugin_is_not_answered_with_a_pip_command(tmp_path: Path):
    """`pip install my_detectro` would fetch whatever has that name."""
    path = tmp_path / "my_registers.py"
    path.write_text(
        "from harness.api import Entry, hookimpl\n\n\n@hookimpl\ndef harness_register_detectors():\n"
        "    return [Entry('typo', 'my_registers.detectro:Thing', '')]\n"
    )
    with pytest.raises(Exception, match="my_registers") as caught:
        load([str(path)]).create("detectors", "typo")
    assert "pip install my_registers" not in str(caught.value)


def test_a_task_folder_that_is_not_there_is_an_error_that_names_its_plugin(tmp_path: Path):
    path = tmp_path / "my_tasks.py"
    path.write_text(
        "from pathlib import Path\n\nfrom harness.api import hookimpl\n\n\n@hookimpl\ndef harness_register_task_dirs():\n"
        "    return [Path(__file__).parent / 'nowhere']\n"
    )
    with pytest.raises(HarnessError) as caught:
        load([str(path)]).task_dirs()
    assert one_line(caught.value) == (
        f"no task folder {tmp_path / 'nowhere'}; offered by plugin my_tasks; block it with `-p no:my_tasks`"
    )


def test_the_advice_to_block_a_plugin_given_with_p_can_be_followed(tmp_path: Path):
    """`-p no:my_tasks` is what the message above says to do."""
    path = detector_file(tmp_path)
    assert "strongest" not in load([str(path), "no:my_detector"]).entries("detectors")


# References


@pytest.mark.parametrize(
    ("text", "name", "argument", "options"),
    [
        ("max", "max", None, {}),
        ("hf:org/model", "hf", "org/model", {}),
        ("hf:gpt2:device_map=auto", "hf", "gpt2", {"device_map": "auto"}),
        ("linear:estimator=adam", "linear", None, {"estimator": "adam"}),
        ("linear:estimator=adam:epochs=50", "linear", None, {"estimator": "adam", "epochs": 50}),
        ("linear:c=1.0e-3", "linear", None, {"c": 0.001}),
        ("x:flag=true:none=null:list=[1, 2]", "x", None, {"flag": True, "none": None, "list": [1, 2]}),
        (r"hf:C:\models\clip", "hf", r"C:\models\clip", {}),
        (r"hf:C:\models\clip:size=224", "hf", r"C:\models\clip", {"size": 224}),
        ("hf:C:/models/clip", "hf", "C:/models/clip", {}),
        ("embeddings:/data/run=3/vectors", "embeddings", "/data/run=3/vectors", {}),
        ("embeddings:./run=3", "embeddings", "./run=3", {}),
        ("embeddings:/data/a:b/c", "embeddings", "/data/a:b/c", {}),
        ("embeddings:~/my folder", "embeddings", "~/my folder", {}),
        ("coco:path=/data/x=1/coco", "coco", None, {"path": "/data/x=1/coco"}),
        (r"coco:path=C:\data", "coco", None, {"path": r"C:\data"}),
        ("hf:org/model:revision=abc:path=/a:b", "hf", "org/model", {"revision": "abc", "path": "/a:b"}),
        ("max:", "max", None, {}),
    ],
)
def test_a_reference_is_a_name_an_argument_and_options(text: str, name: str, argument: str | None, options: dict):
    assert Reference.parse(text) == (name, argument, options)


def test_a_number_as_people_write_it_is_a_number():
    """YAML 1.1 reads 1e-3 as a string; whoever writes an option means a number."""
    assert load().create("concept_methods", "linear:shrinkage=1e-3").shrinkage == pytest.approx(0.001)


def test_a_plugins_digest_is_of_its_python_files_and_their_names_alone(tmp_path: Path):
    from harness.registry import source_digest

    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("import harness.api\n")
    (package / "part.py").write_text("x = 1\n")
    module = ModuleType("mine")
    module.__file__ = str(package / "__init__.py")
    before = source_digest(module)
    (package / "table.csv").write_text("1,2\n")
    assert source_digest(module) == before
    (package / "part.py").write_bytes(b"x = 1\r\n")
    assert source_digest(module) == before
    (package / "part.py").write_text("x = 2\n")
    edited = source_digest(module)
    (package / "part.py").rename(package / "other.py")
    assert len({before, edited, source_digest(module)}) == 3


def test_whose_code_a_part_is_names_plugin_distribution_version_and_digest():
    maker = load().maker("concept_methods", "linear:estimator=adam")
    assert (maker["part"], maker["plugin"], maker["distribution"]) == ("linear:estimator=adam", "vectors", "concept-harness")
    assert maker["version"]
    assert len(maker["sha256"] or "") == 64
