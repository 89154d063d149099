"""What `make install`, `make deb` and `make dist` put where. tests/packaging/deb.sh installs the package in a fresh system."""
import os
import re
import shutil
import subprocess
import tarfile

import pytest

from harness import BINARY, ROOT, SANITIZE

pytestmark = pytest.mark.skipif(bool(SANITIZE), reason="packages are made of release builds")

VERSION = re.search(r'TIERCEL_VERSION "(.*)"', (ROOT / "include/tiercel/version.h").read_text()).group(1)


def make(*args):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    # The programs are there: nothing is built, whatever their flags were.
    run = subprocess.run(["make", "-C", str(ROOT), "-o", "all", "BUILD=%s" % BINARY.parent, *args], env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout
    return run.stdout


def files(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir())


def test_install_and_uninstall(tmp_path):
    make("install", "DESTDIR=%s" % tmp_path, "PREFIX=/opt/t")
    assert files(tmp_path / "opt/t") == [
        "bin/tiercel", "bin/tiercel-bench", "etc/tiercel/tiercel.conf.sample", "lib/systemd/system/tiercel.service",
        "share/man/man1/tiercel-bench.1", "share/man/man1/tiercel.1", "share/man/man5/tiercel.conf.5"]
    unit = (tmp_path / "opt/t/lib/systemd/system/tiercel.service").read_text()
    assert "ExecStart=/opt/t/bin/tiercel /opt/t/etc/tiercel/tiercel.conf\n" in unit and "@BIN" not in unit and "@SYSC" not in unit
    version = subprocess.run([str(tmp_path / "opt/t/bin/tiercel"), "--version"], stdout=subprocess.PIPE, text=True)
    assert version.stdout.startswith("tiercel %s " % VERSION)
    make("uninstall", "DESTDIR=%s" % tmp_path, "PREFIX=/opt/t")
    assert files(tmp_path) == []


def test_manual_pages_are_clean(tmp_path):
    if not shutil.which("groff"):
        pytest.skip("no groff")
    make("install", "DESTDIR=%s" % tmp_path, "PREFIX=/usr")
    pages = list((tmp_path / "usr/share/man").rglob("*.[15]"))
    assert len(pages) == 3
    for page in pages:
        run = subprocess.run(["groff", "-man", "-ww", "-z", str(page)], stderr=subprocess.PIPE, text=True)
        assert run.returncode == 0 and run.stderr == "", run.stderr
    settings = (tmp_path / "usr/share/man/man5/tiercel.conf.5").read_text()
    for line in (ROOT / "conf/tiercel.conf").read_text().splitlines():
        if line and line[0] != "#":
            assert "\\fB%s\\fR " % line.split()[0].replace("-", "\\-") in settings


@pytest.mark.heavy
def test_the_unit_is_one(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd")
    make("install", "DESTDIR=%s" % tmp_path, "PREFIX=/usr")
    unit = tmp_path / "usr/lib/systemd/system/tiercel.service"
    unit.write_text(unit.read_text().replace("/usr/bin/tiercel", str(BINARY)))

    def analyze(*args):
        return subprocess.run(["systemd-analyze", *args, str(unit)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = analyze("verify", "--man=no")
    assert "tiercel" not in run.stdout, run.stdout
    run = analyze("security", "--offline=yes", "--no-pager", "--threshold=20")  # an exposure of 2.0 of 10
    if "unrecognized option" not in run.stdout:  # systemd 250 and later
        assert run.returncode == 0, run.stdout


def test_debian_package():
    if not shutil.which("dpkg-shlibdeps"):
        pytest.skip("no dpkg-dev")
    make("deb")
    package = next(BINARY.parent.glob("tiercel_%s_*.deb" % VERSION))
    names = subprocess.run(["dpkg-deb", "-c", str(package)], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert all(" root/root " in line for line in names)
    names = {line.split()[5][1:] for line in names if line[0] != "d"}
    assert {"/usr/bin/tiercel", "/etc/tiercel/tiercel.conf", "/lib/systemd/system/tiercel.service",
            "/usr/share/man/man5/tiercel.conf.5.gz"} <= names
    fields = subprocess.run(["dpkg-deb", "-f", str(package)], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "Version: %s\n" % VERSION in fields and "liblmdb0" in fields and "lua-cjson" in fields


def test_source_archive():
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], stdout=subprocess.DEVNULL,
                      stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("not a git repository")
    make("dist")
    with tarfile.open(BINARY.parent / ("tiercel-%s.tar.gz" % VERSION)) as tar:
        names = tar.getnames()
    top = "tiercel-%s/" % VERSION
    assert {top + "Makefile", top + "README.md", top + "src/main.c", top + "deps/install.sh"} <= set(names)
    assert all(n == top[:-1] or n.startswith(top) for n in names)
