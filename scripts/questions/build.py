"""Build the twelve collections of scripts/bench_ask.py from packages of Debian and npm, and from own/.

    python scripts/questions/build.py FOLDER [CACHE]

Nothing of the packages' text is kept here but the sentences that answer the questions of tune.jsonl and held-out.jsonl.
"""

import fnmatch
import gzip
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
DOC = "usr/share/doc/"
# name: (client, [(package, version range, [(pattern, target or None)])])   licence in the comment
SPECS = {
    # BSD-3-Clause (The Borg Collective)
    "borg-docs": (
        "apt",
        [
            (
                "borgbackup-doc",
                "1.4.*",
                [
                    (DOC + f"borgbackup-doc/html/_sources/{n}.rst.txt", n.replace("/", "-") + ".rst")
                    for n in (
                        "faq",
                        "quickstart",
                        "installation",
                        "introduction",
                        "deployment",
                        "support",
                        "development",
                        "usage/general",
                        "usage/notes",
                        "deployment/central-backup-server",
                        "deployment/automated-local",
                        "deployment/hosting-repositories",
                        "deployment/pull-backup",
                        "deployment/non-root-user",
                        "deployment/image-backup",
                        "internals/security",
                    )
                ],
            )
        ],
    ),
    # GPL-2 (Debian installer team)
    "install-de": (
        "apt",
        [
            (
                "installation-guide-amd64",
                "20250803*",
                [
                    (DOC + f"installation-guide-amd64/de/{c}*.html", None)
                    for c in ("ch01", "ch02", "ch03", "ch04", "ch08", "apd")
                ],
            )
        ],
    ),
    # verbatim and modified copies allowed with the notice kept (SPI, authors of the Debian FAQ)
    "debian-faq-fr": ("apt", [("debian-faq-fr", "12.*", [(DOC + "debian/FAQ/fr/*.html", None)])]),
    # project history: GPL-2; developers' reference: GPL-2+; FAQ: as debian-faq-fr
    "debian-pdf": (
        "apt",
        [
            ("debian-history", "13.*", [(DOC + "debian-history/docs/project-history.en.pdf", None)]),
            ("developers-reference", "13.*", [("usr/share/developers-reference/developers-reference.pdf", None)]),
            ("debian-faq", "12.*", [(DOC + "debian/FAQ/debian-faq.en.pdf.gz", "debian-faq.en.pdf")]),
        ],
    ),
    # MIT: chalk commander cors dayjs express helmet multer nodemailer(MIT-0) papaparse qrcode uuid;
    # ISC: node-cron rate-limiter-flexible; BSD-2-Clause: dotenv; Apache-2.0: sharp
    "npm-readmes": (
        "npm",
        [
            (p, v, [("package/[Rr][Ee][Aa][Dd][Mm][Ee].md", p + "-README.md")])
            for p, v in (
                ("chalk", "5.6.2"),
                ("commander", "14.0.3"),
                ("cors", "2.8.6"),
                ("dayjs", "1.11.23"),
                ("dotenv", "18.0.10"),
                ("express", "5.3.0"),
                ("helmet", "8.3.0"),
                ("multer", "2.5.0"),
                ("node-cron", "4.6.0"),
                ("nodemailer", "10.6.1"),
                ("papaparse", "5.7.1"),
                ("qrcode", "1.5.4"),
                ("rate-limiter-flexible", "11.4.0"),
                ("sharp", "0.35.5"),
                ("uuid", "14.0.3"),
            )
        ],
    ),
    # the licences themselves (verbatim copying allowed by each)
    "licences": (
        "apt",
        [
            (
                "base-files",
                "13.8*",
                [
                    ("usr/share/common-licenses/" + n, None)
                    for n in (
                        "Apache-2.0",
                        "Artistic",
                        "BSD",
                        "CC0-1.0",
                        "GPL-2",
                        "GPL-3",
                        "LGPL-2.1",
                        "GFDL-1.3",
                        "MPL-1.1",
                        "MPL-2.0",
                    )
                ],
            )
        ],
    ),
    # exim4 GPL-2+, sudo ISC, fail2ban GPL-2, apt-listchanges GPL-2+, base-files GPL-2+,
    # unattended-upgrades GPL-2+, popularity-contest GPL-2+, cups Apache-2.0 with exceptions,
    # cron Paul Vixie's licence, GPL-2+, ISC
    "debian-readmes": (
        "apt",
        [
            (
                "exim4-config",
                "4.98*",
                [
                    (DOC + "exim4-config/README.Debian.gz", "exim4-config.README.Debian"),
                    (DOC + "exim4-config/NEWS.Debian.gz", "exim4-config.NEWS.Debian"),
                ],
            ),
            (
                "sudo",
                "1.9*",
                [
                    (DOC + "sudo/README.Debian", "sudo.README.Debian"),
                    (DOC + "sudo/NEWS.Debian.gz", "sudo.NEWS.Debian"),
                    (DOC + "sudo/HISTORY.md", "sudo.HISTORY"),
                    (DOC + "sudo/TROUBLESHOOTING.md.gz", "sudo.TROUBLESHOOTING"),
                    (DOC + "sudo/SECURITY.md", "sudo.SECURITY"),
                ],
            ),
            (
                "fail2ban",
                "1.1*",
                [
                    (DOC + "fail2ban/README.Debian.gz", "fail2ban.README.Debian"),
                    (DOC + "fail2ban/run-rootless.txt", "fail2ban.run-rootless"),
                ],
            ),
            (
                "apt-listchanges",
                "4.*",
                [
                    (DOC + "apt-listchanges/README.Debian", "apt-listchanges.README.Debian"),
                    (DOC + "apt-listchanges/NEWS.Debian.gz", "apt-listchanges.NEWS.Debian"),
                ],
            ),
            (
                "base-files",
                "13.8*",
                [
                    (DOC + "base-files/README", "base-files.README"),
                    (DOC + "base-files/README.FHS", "base-files.README.FHS"),
                ],
            ),
            (
                "unattended-upgrades",
                "2.12*",
                [
                    (DOC + "unattended-upgrades/README.md.gz", "unattended-upgrades.README"),
                    (DOC + "unattended-upgrades/NEWS.Debian.gz", "unattended-upgrades.NEWS.Debian"),
                ],
            ),
            (
                "popularity-contest",
                "1.78*",
                [
                    (DOC + "popularity-contest/FAQ.gz", "popularity-contest.FAQ"),
                    (DOC + "popularity-contest/README.gz", "popularity-contest.README"),
                ],
            ),
            (
                "cups-daemon",
                "2.4*",
                [
                    (DOC + "cups-daemon/NEWS.Debian.gz", "cups-daemon.NEWS.Debian"),
                    (DOC + "cups-daemon/changelog.Debian.gz", "cups-daemon.changelog.Debian"),
                ],
            ),
            ("cron-daemon-common", "3.0*", [(DOC + "cron-daemon-common/changelog.gz", "cron.changelog")]),
        ],
    ),
}


def unpack(client, package, version, into, cache):
    if client == "apt":
        found = sorted(cache.glob(package + "_*.deb"))
        if not found:
            subprocess.run(["apt-get", "download", package], cwd=cache, check=True, stdout=subprocess.DEVNULL)
            found = sorted(cache.glob(package + "_*.deb"))
        got = found[-1].name.split("_")[1].replace("%3a", ":").split(":")[-1]
        if not fnmatch.fnmatch(got, version):
            print(f"warning: {package} is {got}, the set was made from {version}", file=sys.stderr)
        subprocess.run(["dpkg", "-x", str(found[-1]), str(into)], check=True)
    else:
        file = cache / f"{package}-{version}.tgz"
        if not file.exists():
            subprocess.run(
                ["npm", "pack", "-s", f"{package}@{version}"], cwd=cache, check=True, stdout=subprocess.DEVNULL
            )
        with tarfile.open(file) as tar:
            tar.extractall(into, filter="data")


def main(folder, cache):
    cache.mkdir(parents=True, exist_ok=True)
    for name, (client, packages) in SPECS.items():
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for package, version, patterns in packages:
            with tempfile.TemporaryDirectory() as tmp:
                unpack(client, package, version, pathlib.Path(tmp), cache)
                for pattern, to in patterns:
                    files = sorted(pathlib.Path(tmp).glob(pattern))
                    if not files:
                        print(f"warning: {package}: nothing matches {pattern}", file=sys.stderr)
                    for file in files:
                        data = file.read_bytes()
                        if file.suffix == ".gz":
                            data = gzip.decompress(data)
                        assert len(data) < 1_000_000, file
                        (target / (to or file.name)).write_bytes(data)
    for own in sorted((HERE / "own").iterdir()):
        shutil.rmtree(folder / own.name, ignore_errors=True)
        shutil.copytree(own, folder / own.name)
    for path in sorted(folder.iterdir()):
        print(f"{path.name:16} {len(list(path.iterdir())):3} files")


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[1]).resolve()
    main(where, pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else where.parent / "download-cache")
