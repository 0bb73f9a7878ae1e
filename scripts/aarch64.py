"""Run bundles on an emulated Arm processor, as on a Jetson or a Raspberry Pi, and compare their answers with those recorded here.

    python scripts/aarch64.py bundles/float bundles/int8

What is needed is fetched once (about 130 MB, from Debian's mirror and the package registry) into ``~/.cache/actlet/aarch64``, and unpacked without root: qemu's user-mode emulation, an
arm64 Python 3.11, and Arm's wheels of numpy and ONNX Runtime. Nothing is installed. Times say nothing, and neither do they of memory ordering: x86's is the stronger one.

Debian's archive signs a list of its lists of packages, and these hold each package's SHA-256: the signature is checked with gpgv and Debian's keyring (packages gpgv and
debian-archive-keyring), and where one of them is missing that is said, and HTTPS alone vouches for the mirror. pip checks the wheels against the hashes of its registry.

qemu 7 (Debian 12) crashes while ONNX Runtime is imported, so qemu 10 (Debian 13) is taken; a processor with SVE takes ten times as long to emulate, so it is a Cortex-A72.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

MIRROR = "https://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
QEMU, SYSTEM = "trixie", "bookworm"
# What python3.11, numpy and ONNX Runtime load.
PACKAGES = [
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libssl3",
    "libffi8",
    "liblzma5",
    "libbz2-1.0",
    "libuuid1",
    "libcrypt1",
    "libgomp1",
]
WHEELS = ("numpy", "onnxruntime")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "actlet" / "aarch64"
REPOSITORY = Path(__file__).resolve().parent.parent

ASK = """
import json, sys
import numpy as np
import onnxruntime
from runtime.policy import BundlePolicy
found = {}
for path in sys.argv[1:]:
    policy = BundlePolicy(path)
    golden = policy.bundle.golden
    rows = range(len(golden))
    got = [policy.networks.answer({n: f[i] for n, f in golden.images.items()}, golden.state[i], golden.instruction[i], golden.committed[i]) for i in rows]
    actions, confidence = (np.stack([answer[part] for answer in got]) for part in (0, 1))
    unit = np.maximum(policy.bundle.manifest.tokenizer.high - policy.bundle.manifest.tokenizer.low, 1e-3)
    found[path] = {
        "precision": policy.bundle.manifest.precision,
        "actions": float(np.abs((actions - golden.actions) / unit).max()),
        "confidence": float(np.abs(confidence - golden.confidence).max()),
        "questions": len(golden),
    }
import platform
imported = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "onnx", "transformers", "pyarrow", "mujoco", "distill", "export", "quantize", "benchmarks"})
print(json.dumps({"machine": platform.machine(), "onnxruntime": onnxruntime.__version__, "training_side": imported, "bundles": found}))
"""


def download(file: str, digest: str | None = None) -> bytes:
    """A file of the mirror, if it has this SHA-256."""
    with urllib.request.urlopen(f"{MIRROR}/{file}", timeout=600) as answer:
        content = answer.read()
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit(f"{file}: not the file that the mirror lists (SHA-256 {digest[:12]}… expected); try again, or another network.")
    return content


def signed_text(content: bytes, what: str) -> str:
    """What Debian signed of a file, and nothing beside it; the whole of it, with a warning, where nobody here can check."""
    gpgv = shutil.which("gpgv")
    if gpgv is None or not KEYRING.is_file():
        missing = "gpgv" if gpgv is None else f"Debian's keyring {KEYRING}"
        print(
            f"{what}: its signature is NOT verified ({missing} is missing): {MIRROR.split(':')[0]} alone vouches for it.",
            file=sys.stderr,
            flush=True,
        )
        return content.decode()
    with tempfile.TemporaryDirectory() as folder:
        given, signed = Path(folder) / "given", Path(folder) / "signed"
        given.write_bytes(content)
        command = [gpgv, "--status-fd", "1", "--keyring", str(KEYRING), "--output", str(signed), str(given)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        # Debian signs with several keys, and an older keyring has not all of them: one good signature is enough, a bad one too many.
        found = {line.split()[1] for line in said.stdout.splitlines() if line.startswith("[GNUPG:] ")}
        if "GOODSIG" not in found or "BADSIG" in found:
            raise SystemExit(
                f"{what}: not signed with a key of {KEYRING} ({' '.join(sorted(found)) or said.stderr.strip()[-200:]}): update debian-archive-keyring, or use "
                "another mirror."
            )
        return signed.read_text()


def packages(suite: str, architecture: str) -> dict[str, tuple[str, str]]:
    """Name -> (file, SHA-256) of a Debian suite."""
    release = signed_text(download(f"dists/{suite}/InRelease"), f"{suite}'s list of lists")
    if f"Codename: {suite}" not in release.splitlines():
        raise SystemExit(f"the mirror's {suite} is another suite: try again, or another network.")
    wanted = f"main/binary-{architecture}/Packages.xz"
    lines = [line.split() for line in release.partition("\nSHA256:\n")[2].splitlines()]
    digests = [line[0] for line in lines if line[1:] and line[-1] == wanted]
    if not digests:
        raise SystemExit(f"{suite}: the mirror lists no {wanted}; try again.")
    text = lzma.decompress(download(f"dists/{suite}/main/binary-{architecture}/by-hash/SHA256/{digests[0]}", digests[0])).decode()
    found: dict[str, tuple[str, str]] = {}
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        if "Package" in fields:
            found[fields["Package"]] = fields["Filename"], fields["SHA256"]
    return found


def unpack(suite: str, architecture: str, names: list[str], place: Path) -> None:
    """Fetch packages, check their hashes, and unpack them below a folder."""
    known = packages(suite, architecture)
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"fetching {name} ({suite}, {architecture}) ...", file=sys.stderr, flush=True)
        package = place / "package.deb"
        package.write_bytes(download(*known[name]))
        subprocess.run(["dpkg-deb", "-x", str(package), str(place)], check=True)
        package.unlink()


def fetch() -> Path:
    """The folder with emulator, system and wheels; made whole or not at all."""
    if (CACHE / "done").is_file():
        return CACHE
    growing = CACHE.with_name("aarch64.partial")
    shutil.rmtree(growing, ignore_errors=True)
    unpack(QEMU, "amd64", ["qemu-user"], growing / "qemu")
    unpack(SYSTEM, "arm64", PACKAGES, growing / "system")
    wheels, site = growing / "wheels", growing / "site"
    wanted = [
        "--platform",
        "manylinux_2_28_aarch64",
        "--platform",
        "manylinux2014_aarch64",
        "--python-version",
        "3.11",
        "--only-binary=:all:",
    ]
    same = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]  # Another version may round otherwise.
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *wanted, "-d", str(wheels), *same], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    shutil.rmtree(wheels)
    (growing / "done").write_text("")
    shutil.rmtree(CACHE, ignore_errors=True)
    growing.rename(CACHE)
    return CACHE


def ask(bundles: list[Path], timeout_s: float = 1800) -> dict:
    """What the bundles answer on the emulated processor, beside what they recorded: see `ASK`."""
    place = fetch()
    command = [
        str(place / "qemu/usr/bin/qemu-aarch64"),
        "-cpu",
        "cortex-a72",
        "-L",
        str(place / "system"),
        str(place / "system/usr/bin/python3.11"),
    ]
    environment = {"PYTHONPATH": f"{place / 'site'}:{REPOSITORY}", "PATH": os.environ["PATH"], "HOME": str(place), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-c", ASK, *(str(Path(bundle).resolve()) for bundle in bundles)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the emulated process failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="folders of bundles")
    for bundle in parser.parse_args().bundles:
        print(f"asking {bundle}, some minutes where it reads instructions ...", file=sys.stderr, flush=True)
        found = ask([bundle])
        print(
            f"{found['machine']}, onnxruntime {found['onnxruntime']}; of the training side imported: {found['training_side'] or 'nothing'}"
        )
        ((path, row),) = found["bundles"].items()
        print(
            f"{Path(path).name:<24} {row['precision']:<10} actions {row['actions']:.2e} of their range, confidence {row['confidence']:.2e}, {row['questions']} questions",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
