"""The manifest: a round trip that loses nothing, and a reader that lets nothing pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actlet.errors import BundleError, SpecError
from actlet.manifest import Manifest, check_file_name, manifest_hash, read_manifest, record_files, write_manifest
from actlet.storage import sha256


def test_a_manifest_survives_the_round_trip(tiny_bundle: Path) -> None:
    """Written, read and written again: the same object and the same bytes, so the bundle keeps its name."""
    manifest, name = read_manifest(tiny_bundle), manifest_hash(tiny_bundle)
    write_manifest(tiny_bundle, manifest)
    assert read_manifest(tiny_bundle) == manifest
    assert manifest_hash(tiny_bundle) == name
    assert Manifest.from_dict(manifest.to_dict()) == manifest


def _edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(colour="red"), r"unknown keys \['colour'\], missing keys \[\]"),
        (lambda d: d["lineage"].update(author="me"), r"manifest.lineage: unknown keys \['author'\]"),
        (lambda d: d["spec"]["timing"].pop("horizon"), r"manifest.spec.timing: .* missing keys \['horizon'\]"),
        (lambda d: d.update(schema_version=2), "schema_version 2, expected 1: it was made by another version"),
        (lambda d: d.update(schema_version=True), "schema_version True, expected 1"),
        (lambda d: d.update(made_for=[]), r"manifest: made_for \[\], expected one or more of \['onnxruntime', 'tensorrt'\]"),
        (lambda d: d.update(precision="int2"), r"manifest.precision: got 'int2', expected one of \['float32', "),
        (lambda d: d["files"].pop("golden.npz"), r"\['golden.npz'\] not listed"),
        (lambda d: d["files"]["policy.onnx"].update(sha256="abc"), "expected 64 hex digits"),
        (lambda d: d["files"]["policy.onnx"].update(size_bytes=-1), "expected 64 hex digits and a size of 0 or more"),
        (lambda d: d["files"]["policy.onnx"].update(size_bytes=1.5), r"size_bytes: got 1.5, expected a whole number"),
        (lambda d: d["files"].update({"../x": d["files"]["policy.onnx"]}), "no path separators"),
        (lambda d: d["tokenizer"]["low"].append(0), "two \\(A,\\)"),
        (lambda d: [d["tokenizer"][key].append(i) for i, key in enumerate(("low", "high"))], "bounds for 5 action dimensions"),
        (lambda d: d["tokenizer"].update(bins="256"), "action tokenizer.bins: got '256', expected a whole number"),
        (lambda d: d["golden_tolerance"].update(actions=2), "golden tolerance actions: 2, expected 0 .. 1"),
        (lambda d: d["nodes"][0].update(weight_bytes=-1), "node 'head': weight_bytes -1"),
        (lambda d: d["text_encoder"].update(max_tokens=2), "max_tokens 2"),
        (lambda d: d["spec"]["observation"].update(cameras=3), "manifest.spec.observation.cameras: got 3, expected a list"),
        (
            lambda d: d["spec"]["action"]["low"].__setitem__(1, "small"),
            r"manifest.spec.action.low\[1\]: got 'small', expected a finite number",
        ),
        (lambda d: d.update(spec=None), "manifest.spec: got None, expected an object with named fields"),
    ],
)
def test_what_is_wrong_is_refused_and_named(tiny_bundle: Path, change, message: str) -> None:
    """Unknown keys, missing keys, other types and values out of range end in a BundleError that names the place."""
    _edit(tiny_bundle, change)
    with pytest.raises(BundleError, match=message):
        read_manifest(tiny_bundle)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": 1, "a": 2}', '{"schema_version": NaN}', "[" * 100_000, "\udcff", "1" * 5000])
def test_what_is_not_a_manifest_is_refused(tiny_bundle: Path, text: str) -> None:
    """Broken JSON, a repeated key, NaN, deep nesting, bytes that are not UTF-8."""
    (tiny_bundle / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=r"manifest.json"):
        read_manifest(tiny_bundle)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data(), value=json_values)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_place_is_read_or_refused(tiny_bundle: Path, data: st.DataObject, value: object) -> None:
    """One entry anywhere in the document replaced by anything: a manifest, or the one declared error."""
    document = read_manifest(tiny_bundle).to_dict()
    place = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    try:
        Manifest.from_dict(document)
    except SpecError:
        return


def test_a_folder_without_manifest_says_what_makes_one(tmp_path: Path) -> None:
    """The message names the verbs that make bundles."""
    with pytest.raises(BundleError, match=r"no manifest.json, so this is not a bundle. `actlet export`"):
        read_manifest(tmp_path)


def test_an_oversized_manifest_is_not_read(tiny_bundle: Path) -> None:
    """Its size is looked at first."""
    with (tiny_bundle / "manifest.json").open("ab") as file:
        file.truncate(9 << 20)
    with pytest.raises(BundleError, match="expected at most"):
        read_manifest(tiny_bundle)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc/passwd", "a\\b", ".hidden", "signature.json", "manifest.json", "a\x00", "ü", "a" * 200]
)
def test_names_that_leave_the_folder_or_hide_are_refused(name: str) -> None:
    """Only plain names."""
    with pytest.raises(SpecError, match="expected a plain name inside the folder"):
        check_file_name(name)


def test_record_files_lists_everything_but_the_manifest(tiny_bundle: Path) -> None:
    """Names, hashes and sizes are those of the folder."""
    (tiny_bundle / "README.md").write_text("card")
    records = record_files(tiny_bundle)
    assert set(records) == {"policy.onnx", "instruction.onnx", "tokenizer.json", "golden.npz", "README.md"}
    assert records["README.md"].size_bytes == 4
    assert records["policy.onnx"].sha256 == sha256(tiny_bundle / "policy.onnx")


def test_record_files_refuses_folders_and_links(tiny_bundle: Path) -> None:
    """What could not be hashed is not listed silently."""
    (tiny_bundle / "extra").mkdir()
    with pytest.raises(BundleError, match="plain files only"):
        record_files(tiny_bundle)
