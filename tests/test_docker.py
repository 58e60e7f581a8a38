"""The image: what its Dockerfile and .dockerignore promise, its entry with a stand-in for make, docs/docker.md; (slow) a built one.

Without a daemon the image is not built: the Dockerfile is linted and read instead.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from PIL import Image

from small_archives import zip_bytes

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
# What a stand-in for make leaves: what it was called with, and a report.
MAKE = """#!/bin/sh
printf '%s\\n' "$@" > "$CALLED"
while [ "$1" != --directory ]; do shift; done
cd "$2" && echo "$HOME $USER $DVC_SITE_CACHE_DIR" > environment
mkdir -p reports/cards && echo page > reports/index.html && echo card > reports/cards/model.md
ln -sf index.html reports/link.html && echo hidden > reports/.gitignore
[ ! -e "$CALLED.wait" ] || sleep 60
exit "${STATUS:-0}"
"""
SECRET = re.compile(r"passw|secret|token|credential|api_?key|access_?key|private_?key|\bauth", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and their values, continued lines joined."""
    parser = DockerfileParser(path=str(ROOT / "Dockerfile"))
    return [(each["instruction"], each["value"]) for each in parser.structure if each["instruction"] != "COMMENT"]


def values(instruction: str) -> list[str]:
    return [value for name, value in instructions() if name == instruction]


def pattern(line: str) -> re.Pattern[str]:
    """A line of .dockerignore: `*` within a name, `**` for any number of folders; a folder stands for all that is in it."""
    text = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return re.compile(rf"{text}(?:/.*)?")


def reaches_the_daemon(path: str) -> bool:
    """Whether a file is part of what is built from: of the lines of .dockerignore that fit, the last one decides."""
    lines = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()]
    fitting = [line for line in lines if line and not line.startswith("#") and pattern(line).fullmatch(path)]
    return not fitting or fitting[-1].startswith("!")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def tool(name: str) -> str:
    """The environment's own, whatever is on PATH."""
    return str(Path(sys.executable).parent / name)


class TestDockerfile:
    def test_linter_finds_nothing(self) -> None:
        found = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
        assert (found.returncode, found.stdout) == (0, "")

    def test_ends_as_a_user_who_is_not_root(self) -> None:
        last = [value for name, value in instructions() if name in ("FROM", "USER")][-1]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last), "by number, as Kubernetes cannot tell what a name stands for"

    def test_base_images_have_a_tag(self) -> None:
        arguments = dict(value.split("=", 1) for value in values("ARG") if "=" in value)
        assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", arguments["PYTHON_IMAGE"])
        stages = {value.split(" AS ")[1] for value in values("FROM")}
        bases = {value.split(" AS ")[0] for value in values("FROM")}
        assert bases - stages == {"${PYTHON_IMAGE}", "torch-${VARIANT}"}
        assert f"torch-{arguments['VARIANT']}" in stages

    def test_holds_no_secret_and_adds_nothing_from_elsewhere(self) -> None:
        assert not values("ADD")
        assert [value for name in ("ARG", "ENV") for value in values(name) if SECRET.search(value)] == []
        assert not any("--mount=type=secret" in value or SECRET.search(value) for value in values("RUN"))

    def test_what_is_copied_is_there(self) -> None:
        copied = [value.split() for value in values("COPY")]
        own = [source for words in copied if not words[0].startswith("--") for source in words[:-1]]
        assert own == ["requirements.txt", "."]
        assert reaches_the_daemon("requirements.txt")
        # From another stage: a file that it writes.
        others = {word for words in copied if words[0] == "--from=pins" for word in words[1:-1]}
        made = {f"/pins/{name}" for name in re.findall(r"> (\S+)", values("RUN")[0])}
        assert others == made

    def test_pins_are_divided_where_requirements_are(self, tmp_path: Path) -> None:
        shutil.copy(ROOT / "requirements.txt", tmp_path)
        subprocess.run(["bash", "-c", values("RUN")[0]], cwd=tmp_path, check=True)
        pins = {path: (tmp_path / path).read_text() for path in ("torch.txt", "run.txt")}
        assert re.fullmatch(r"torch==\S+\ntorchvision==\S+\n", pins["torch.txt"])
        assert pins["torch.txt"] in pins["run.txt"]
        assert "\ndvc==" in pins["run.txt"]
        assert not re.search(r"pytest|ruff|-e ", pins["run.txt"])

    def test_setup_has_nothing_to_do(self, tmp_path: Path) -> None:
        # In the order of the Dockerfile, whatever the times of a checkout.
        shutil.copy(ROOT / "Makefile", tmp_path)
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / ".ready").touch()
        for name in ("requirements.txt", "pyproject.toml"):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (time.time() + 9,) * 2)
        question = ["make", "--question", "setup"]
        assert subprocess.run(question, cwd=tmp_path).returncode == 1
        commands = values("RUN")[-2].split(" && ")
        touched = "; ".join(command for command in commands if command.strip().startswith("touch"))
        subprocess.run(["bash", "-ec", touched], cwd=tmp_path, check=True)
        assert subprocess.run(question, cwd=tmp_path).returncode == 0


class TestContext:
    @pytest.mark.parametrize(
        "path",
        [
            ".git/config",
            ".git/HEAD",
            ".env",
            "src/.env",
            "stages/.env.local",
            "src/unpoison/server.pem",
            ".dvc/config.local",
            ".dvc/cache/files/md5/00/1",
            ".dvc/tmp/lock",
            ".unpoison/assets/1",
            ".venv/bin/python",
            "data/photos.zip",
            "data/source/cat/0.png",
            "data/base/train/images.npy",
            "models/backdoored/model.safetensors",
            "models/mine.pt",
            "reports/index.html",
            "src/unpoison/__pycache__/a.cpython-311.pyc",
            "src/unpoison.egg-info/PKG-INFO",
            "id_rsa",
        ],
    )
    def test_what_is_none_of_the_projects_stays_out(self, path: str) -> None:
        assert not reaches_the_daemon(path)

    def test_every_part_of_the_project_is_in_or_known_to_be_out(self) -> None:
        # Whoever adds a part says here, or in .dockerignore, whether `scan` and `audit` need it.
        out = {".ci", ".github", ".dockerignore", "CONTRIBUTING.md", "Dockerfile", "SECURITY.md"}
        out |= {"CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "board.yaml", "docs", "suites", "tests"}
        parts = {path.split("/")[0] for path in tracked()} | {".dockerignore", "Dockerfile", "docker"}
        assert {path.split("/")[0] for path in tracked() if reaches_the_daemon(path)} | {"docker"} == parts - out
        for part in ("src", "stages", "params", ".dvc", "data", "models", "docker"):
            assert [path for path in tracked() if path.startswith(f"{part}/") and not reaches_the_daemon(path)] == []

    def test_every_line_lets_something_through(self) -> None:
        lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        assert [line for line in lines if not any(pattern(line).fullmatch(path) for path in tracked())] == []
        # Builders that skip a folder which is left out look for what is let through in it by the start of its name alone.
        assert not [line for line in lines if "*" in line]


class Container:
    """The entry with folders of a test in the place of the container's, and a stand-in for make."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project, self.work, self.out = folder / "project", folder / "work", folder / "out"
        (self.project / "docker").mkdir(parents=True)
        shutil.copy(ROOT / "docker" / "entry", self.project / "docker" / "entry")
        (self.project / ".git").mkdir()
        (self.project / ".git" / "image").write_text("0123abcd\n")
        (self.project / "Makefile").write_text("# of the image\n")
        (self.project / ".venv").symlink_to(folder)
        for path in (self.work, self.out, folder / "bin", folder / "data" / "cat"):
            path.mkdir(parents=True)
        (folder / "data" / "photos.zip").write_bytes(b"PK")
        (folder / "model.safetensors").write_bytes(b"x")
        (folder / "bin" / "make").write_text(MAKE)
        (folder / "bin" / "make").chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "UNPOISON_WORK": str(self.work),
            "UNPOISON_OUT": str(self.out),
            "CALLED": str(folder / "called"),
        }
        self.command = [str(self.project / "docker" / "entry")]

    @property
    def copy(self) -> Path:
        return self.work / f"0123abcd-{os.getuid()}"

    @property
    def called(self) -> list[str] | None:
        """What make was asked for, if it was."""
        path = self.folder / "called"
        return path.read_text().splitlines() if path.exists() else None

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments], env=self.environment | environment, capture_output=True, text=True, timeout=60
        )

    def refused(self, *arguments: str, **environment: str) -> str:
        """The one line that a call ends with before make is called."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 1, done
        assert self.called is None
        assert done.stdout == ""
        assert re.fullmatch(r"error: [^\n]*, allowed: [^\n]*\n|error: [^\n]*; allowed: [^\n]*\n", done.stderr), (
            done.stderr
        )
        assert not done.stderr.count("\x1b")
        return done.stderr


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


class TestEntry:
    def test_scan_is_make_scan_and_its_report_is_copied(self, container: Container) -> None:
        done = container.run("scan", str(container.folder / "data"))
        assert (done.returncode, done.stderr) == (0, "")
        expected = [
            "--no-print-directory",
            "--directory",
            str(container.copy),
            "scan",
            f"DATA={container.folder / 'data'}",
        ]
        assert container.called == expected
        assert sorted(path.name for path in container.out.iterdir()) == ["cards", "index.html", "link.html"]
        assert (container.out / "cards" / "model.md").read_text() == "card\n"
        # What lies in DVC's cache may be a link, which would lead nowhere outside.
        assert not (container.out / "link.html").is_symlink()
        assert done.stdout == f"copied to {container.out}: cards index.html link.html \n"

    def test_arguments(self, container: Container) -> None:
        data, archive, model = (
            str(container.folder / name) for name in ("data", "data/photos.zip", "model.safetensors")
        )
        cases: list[tuple[list[str], dict[str, str], list[str]]] = [
            (["scan", archive], {}, ["scan", f"DATA={archive}"]),
            (["scan", "--trusted", data, archive], {}, ["scan", f"DATA={archive}", f"TRUSTED={data}"]),
            (["scan", archive, f"--trusted={data}"], {}, ["scan", f"DATA={archive}", f"TRUSTED={data}"]),
            (["scan", archive], {"TRUSTED": data}, ["scan", f"DATA={archive}", f"TRUSTED={data}"]),
            (["scan", archive, "--trusted", data], {"TRUSTED": "x"}, ["scan", f"DATA={archive}", f"TRUSTED={data}"]),
            (["audit", model, data], {}, ["audit", f"MODEL={model}", f"DATA={data}"]),
        ]
        for arguments, environment, asked in cases:
            done = container.run(*arguments, **environment)
            assert done.returncode == 0, done.stderr
            assert container.called is not None
            assert container.called[3:] == asked
            shutil.rmtree(container.out)
            container.out.mkdir()

    @pytest.mark.parametrize("name", ["größe (neu) 'ß' # %.zip", "a=b, c;d&e|f.zip", "-rf ~ *?[x].zip"])
    def test_names_reach_make_as_they_are(self, name: str, container: Container) -> None:
        path = container.folder / name
        path.write_bytes(b"PK")
        assert container.run("scan", str(path)).returncode == 0
        assert container.called is not None
        assert container.called[4] == f"DATA={path}"

    def test_the_working_copy_is_the_users_and_is_kept(self, container: Container) -> None:
        os.utime(container.project / "Makefile", (1_000_000_000, 1_000_000_000))
        container.run("scan", str(container.folder / "data"))
        assert (container.copy / "Makefile").read_text() == "# of the image\n"
        assert (container.copy / "Makefile").stat().st_mtime == 1_000_000_000
        assert (container.copy / ".venv").is_symlink()
        home = container.work / f"home-{os.getuid()}"
        assert (container.copy / "environment").read_text() == f"{home} unpoison {home}/dvc\n"
        (container.copy / "data").mkdir()
        shutil.rmtree(container.out)
        container.out.mkdir()
        container.run("scan", str(container.folder / "data"))
        assert (container.copy / "data").is_dir()
        assert {path.name for path in container.work.iterdir()} == {container.copy.name, home.name}

    def test_help(self, container: Container) -> None:
        for arguments in (["help"], ["--help"], ["scan", "--help"], ["audit", "-h"]):
            done = container.run(*arguments)
            assert done.returncode == 0
            assert "audit MODEL [DATA] [--trusted FOLDER]" in done.stdout
            assert "audit MODEL [DATA]" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            ([], "command: nothing given, allowed: scan, audit, help"),
            (["sacn"], "command: sacn given, allowed: scan, audit, help"),
            (["make", "scan"], "command: make given"),
            (["\x1b[31m"], r"command: $'\E[31m' given"),
            (["scan", "--cuda"], "scan: option --cuda given, allowed: --help, --trusted FOLDER"),
            (["audit", "--cuda"], "audit: option --cuda given, allowed: --help, --trusted FOLDER\n"),
            (["scan", "{}/data", "--trusted"], "--trusted: nothing given, allowed: a folder"),
            (["scan", "--trusted="], "--trusted: nothing given"),
            (["audit", "{}/model.safetensors", "{}/data", "--trusted", "{}/x"], "/x is not in the container"),
            (["scan", "{}/data", "{}/data"], "scan: 2 paths given, allowed: at most 1"),
            (["audit", "/a", "/b", "/c"], "audit: 3 paths given, allowed: at most 2"),
            (["audit"], "MODEL: nothing given, allowed: a .safetensors file"),
            (["scan", "photos.zip"], "DATA: photos.zip given, allowed: a path inside the container that begins with /"),
            (["scan", ""], "DATA: nothing given, allowed: a path inside the container"),
            (["scan", "{}/none.zip"], "/none.zip is not in the container, or hidden from user "),
            (["scan", "{}/data", "--trusted", "{}/mine"], "/mine is not in the container"),
            (["audit", "{}/none.safetensors"], "MODEL: "),
            (["scan", "/da$(id)ta"], 'given, allowed: a path without ", $, `, \\ and control characters'),
            (["scan", "/a\nb"], r"DATA: $'/a\nb' given, allowed: a path without"),
        ],
    )
    def test_bad_arguments_are_one_line(self, arguments: list[str], line: str, container: Container) -> None:
        assert line in container.refused(*(word.replace("{}", str(container.folder)) for word in arguments))
        assert not list(container.work.iterdir())

    def test_nothing_at_data_or_out(self, container: Container) -> None:
        if not Path("/data").exists():
            assert "DATA: /data is not in the container" in container.refused("scan")
        data = str(container.folder / "data")
        container.out.rmdir()
        assert f"{container.out}: no folder is mounted there" in container.refused("scan", data)
        container.out.write_text("a file")
        assert "no folder is mounted there" in container.refused("scan", data)
        container.out.unlink()
        container.out.mkdir()
        (container.out / "index.html").write_text("an earlier one")
        assert f"{container.out}: index.html is in it; allowed: an empty folder" in container.refused("scan", data)
        assert (container.out / "index.html").read_text() == "an earlier one"

    def test_what_another_user_may_not(self) -> None:
        # Not below pytest's own folder, which is closed to others.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            self.check_another_user(Container(Path(folder)))

    def check_another_user(self, container: Container) -> None:
        if os.getuid() == 0:
            # Root may do everything, so that the entry runs as a user that has no name, as with `--user`.
            if not shutil.which("setpriv"):
                pytest.skip("root may do everything here, and there is no setpriv to be another user")
            container.command[:0] = ["setpriv", "--reuid=54321", "--regid=54322", "--clear-groups"]
            owner, user = (54321, 54322), "54321:54322"
        else:
            owner, user = (os.getuid(), os.getgid()), f"{os.getuid()}:{os.getgid()}"
        data = container.folder / "data"
        if os.getuid() == 0:
            (container.folder / "called").touch()
            (container.folder / "called").chmod(0o666)
        for path in (data, container.out, container.work):
            os.chown(path, *owner)
        for path, mode, line in (
            (data, 0o000, f"DATA: {data} cannot be read by user {user}"),
            (container.out, 0o500, f'{container.out}: cannot be written by user {user}; .*--user "$(id -u):$(id -g)"'),
            (container.out, 0o300, f"{container.out}: cannot be read by user {user}"),
            (container.work, 0o500, f"{container.work}: cannot be written by user {user}"),
        ):
            path.chmod(mode)
            done = container.run("scan", str(data))
            path.chmod(0o755)
            start, _, end = line.partition(".*")
            assert done.returncode == 1, done.stderr
            assert done.stderr.startswith(f"error: {start}")
            assert end in done.stderr
            assert done.stderr.count("\n") == 1
        # And then he may: a user without a name or a home, in a working copy of his own.
        done = container.run("scan", str(data))
        assert (done.returncode, done.stderr) == (0, "")
        assert (container.out / "index.html").stat().st_uid == owner[0]
        assert (container.work / f"0123abcd-{owner[0]}" / "Makefile").stat().st_uid == owner[0]

    def test_what_fails_copies_nothing(self, container: Container) -> None:
        done = container.run("scan", str(container.folder / "data"), STATUS="3")
        assert done.returncode == 3
        assert (
            done.stderr
            == f"error: scan: ended with status 3, for the reason above; nothing was copied to {container.out}\n"
        )
        assert not list(container.out.iterdir())

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_docker_stop_ends_it_at_once(self, number: signal.Signals, container: Container) -> None:
        (container.folder / "called.wait").touch()
        command = [*container.command, "scan", str(container.folder / "data")]
        # Of a run in the background SIGINT is ignored, and a shell cannot trap what was ignored when it began.
        usual = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(command, env=container.environment, preexec_fn=usual) as process:
            deadline = time.monotonic() + 30
            while not (container.copy / "reports" / ".gitignore").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(number)
            assert process.wait(timeout=10) == 128 + number
        assert not list(container.out.iterdir())


def commands_of_the_page() -> list[list[str]]:
    """The commands shown in docs/docker.md, as a shell takes them apart."""
    blocks = "\n".join(line.strip() for line in PAGE.splitlines() if line.startswith("    "))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in [*lines, *re.findall("`(docker run [^`]*)`", PAGE)]]


class TestPage:
    def test_commands_are_ones_that_the_entry_takes(self, container: Container) -> None:
        shown = [words for words in commands_of_the_page() if words[:2] == ["docker", "run"]]
        kinds = []
        for words in shown:
            image = next(place for place, word in enumerate(words) if word in ("unpoison", "unpoison:cuda"))
            options, arguments = words[2:image], words[image + 1 :]
            inside = {}
            for option, value in itertools.pairwise(options):
                if option == "-v":
                    inside[value.split(":")[1]] = value
            root = container.folder / "inside"
            for path in inside:
                (root / path[1:]).mkdir(parents=True, exist_ok=True)
            for path in arguments[1:]:
                if "." in path:
                    assert str(Path(path).parent) in inside
                    (root / path[1:]).touch()
            arguments = [str(root / word[1:]) if word.startswith("/") else word for word in arguments]
            if arguments[0] == "scan" and len(arguments) in (1, 3):
                # The path that is understood, which is not a test's to make.
                arguments.append(str(root / "data"))
                assert "/data" in inside
            done = container.run(*arguments, UNPOISON_OUT=str(root / "out"))
            assert done.returncode == 0, (words, done.stderr)
            assert ("/out" in inside) == (arguments[0] != "help")
            shutil.rmtree(root, ignore_errors=True)
            kinds.append(arguments[0])
        assert set(kinds) == {"scan", "audit", "help"}

    def test_builds_are_of_arguments_and_variants_that_there_are(self) -> None:
        shown = [words for words in commands_of_the_page() if words[:2] == ["docker", "build"]]
        assert len(shown) == 2
        stages = {value.split(" AS ")[1] for value in values("FROM")}
        arguments = {value.split("=")[0] for value in values("ARG")}
        for words in shown:
            assert words[-1] == "."
            for option, value in itertools.pairwise(words):
                if option == "--build-arg":
                    assert value.split("=")[0] in arguments
                    assert f"torch-{value.removeprefix('VARIANT=')}" in stages

    def test_variables_are_ones_that_something_reads(self) -> None:
        sources = [ROOT / "docker" / "entry", *(ROOT / "src").rglob("*.py")]
        read = {name for path in sources for name in re.findall(r"UNPOISON_[A-Z]+", path.read_text(encoding="utf-8"))}
        assert set(re.findall(r"UNPOISON_[A-Z]+", PAGE)) <= read

    def test_the_error_line_that_is_shown(self, container: Container) -> None:
        shown = re.findall(r"`error: DATA: (\S+) (is not in the container) …`", PAGE)
        assert len(shown) == 1
        assert f"DATA: {shown[0][0]} {shown[0][1]}" in container.refused("scan", shown[0][0])


def no_daemon() -> str:
    """Why no image can be built here, or nothing."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True)
    return "" if asked.returncode == 0 else "docker has no daemon that answers here"


@pytest.mark.slow
class TestImage:
    """The real image, CPU. Needs a daemon, the network for the build, some GB of disk."""

    @pytest.fixture(scope="class")
    def image(self) -> str:
        if reason := no_daemon():
            pytest.skip(reason)
        subprocess.run(["docker", "build", "-t", "unpoison:test", str(ROOT)], check=True)
        return "unpoison:test"

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("container")
        files = {}
        for shade, name in ((40, "dark"), (140, "grey"), (240, "light")):
            for i in range(80):
                content = io.BytesIO()
                Image.new("RGB", (16, 16), (shade, i * 3, 255 - shade)).save(content, "PNG")
                files[f"{name}/{i}.png"] = content.getvalue()
        (folder / "photos.zip").write_bytes(zip_bytes(files))
        return folder

    def run(
        self, image: str, out: Path, *arguments: str, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        out.mkdir(exist_ok=True)
        user = f"{os.getuid() or 54321}:{os.getgid() or 54322}"
        if os.getuid() == 0:
            os.chown(out, 54321, 54322)
        base = ["docker", "run", "--rm", "--network", "none", "--user", user, "-v", f"{out}:/out"]
        return subprocess.run([*base, *options, image, *arguments], capture_output=True, text=True)

    def test_scan_and_audit(self, image: str, data: Path) -> None:
        mount = ("-v", f"{data}:/data:ro", "-v", "unpoison-test:/work", "--read-only", "--tmpfs", "/tmp")
        try:
            done = self.run(image, data / "scanned", "scan", "/data/photos.zip", options=mount)
            assert done.returncode == 0, done.stderr
            assert {path.name for path in (data / "scanned").iterdir()} >= {"index.html", "suspects.csv", "cards"}
            # The model that the scan has trained is audited in its turn.
            find = 'find /work -name model.safetensors | head -1 | while read -r file; do cp "$(dirname "$file")"/* /out; done'
            copied = self.run(image, data / "model", "-c", find, options=(*mount, "--entrypoint", "bash"))
            assert copied.returncode == 0, copied.stderr
            done = self.run(
                image, data / "audited", "audit", "/data/model/model.safetensors", "/data/photos.zip", options=mount
            )
            assert done.returncode == 0, done.stderr
            assert (data / "audited" / "index.html").exists()
        finally:
            subprocess.run(["docker", "volume", "rm", "--force", "unpoison-test"], capture_output=True)

    def test_no_secret_and_no_history(self, image: str) -> None:
        look = "id -u; cd /opt/unpoison/project; ls -A; ls -A data/source .git/logs/refs; wc -l < .git/logs/HEAD"
        command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "bash", image, "-c", look]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert (shown[0], shown[-1]) == ("1000", "1")
        assert not {".env", "tests", "reports", "remotes"} & set(shown)
