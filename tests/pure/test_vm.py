"""The virtual machine, as far as it can be tried without booting one."""

import doctest
import importlib
import lzma
import re
import struct
from pathlib import Path

import pytest

from vm import bzimage, cache, image, kernels, tree
from vm.__main__ import main, parse
from vm.boot import BootFiles, load_order
from vm.command import Unavailable, run
from vm.emulator import Emulator
from vm.machine import KERNEL_ARGUMENTS, Machine, exit_status, qemu_command

MACHINE = Machine(
    emulator=Emulator(program="qemu", firmware=(Path("/firmware"),)),
    boot=BootFiles(kernel=Path("/k"), initrd=Path("/i"), modules_disk=Path("/m")),
    root_disk=Path("/root.img"),
)


@pytest.mark.parametrize("name", ["boot", "emulator", "machine", "tree"])
def test_the_examples_in_the_docstrings_hold(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"vm.{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


class TestKernels:
    def test_each_version_is_named_once(self) -> None:
        versions = [kernel.version for kernel in kernels.KERNELS]
        assert len(set(versions)) == len(versions)

    @pytest.mark.parametrize("kernel", kernels.KERNELS, ids=lambda kernel: kernel.version)
    def test_an_entry_names_packages_of_its_own_version_and_a_reason(
        self, kernel: kernels.Kernel
    ) -> None:
        assert kernel.reason
        assert kernel.packages
        for pattern in kernel.packages:
            assert re.escape(kernel.version) in pattern
            assert pattern.endswith("-amd64")

    def test_the_newest_is_found_by_number_and_not_by_letter(self) -> None:
        names = ["linux-image-6.1.0-9-amd64", "linux-image-6.1.0-56-amd64"]
        assert kernels.newest(r"linux-image-6\.1\.0-\d+-amd64", names) == names[1]

    def test_the_cloud_flavour_and_debug_symbols_do_not_match(self) -> None:
        names = ["linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-56-amd64-dbg"]
        assert kernels.newest(r"linux-image-6\.1\.0-\d+-amd64", names) is None

    def test_the_table_has_a_line_for_each(self) -> None:
        assert [line.split()[0] for line in kernels.table().splitlines()] == [
            kernel.version for kernel in kernels.KERNELS
        ]


class TestCommandLine:
    def test_what_follows_the_dashes_is_the_command_even_if_it_looks_like_an_option(self) -> None:
        options, command = parse(["6.1", "--memory", "1G", "--", "sh", "--", "--list"])
        assert (options.kernel, options.memory, options.list) == ("6.1", "1G", False)
        assert command == ["sh", "--", "--list"]

    @pytest.mark.parametrize("words", [["6.1"], ["9.9", "--", "true"], ["--", "true"], []])
    def test_wrong_use_ends_with_2(self, words: list[str]) -> None:
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2

    def test_the_list_needs_nothing_else(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--list"]) == 0
        assert capsys.readouterr().out.strip() == kernels.table()


class TestQemu:
    line = qemu_command(MACHINE, Path("/run/it"), console="file,path=/c")

    def test_there_is_no_network_and_no_kvm(self) -> None:
        assert self.line[self.line.index("-nic") + 1] == "none"
        assert self.line[self.line.index("-accel") + 1].startswith("tcg")

    def test_the_cached_disks_are_never_written(self) -> None:
        drives = [word for word in self.line if word.startswith("file=")]
        assert [drive.split(",")[0] for drive in drives] == [
            "file=/root.img",
            "file=/m",
            "file=/run/it/tree.tar",
        ]
        assert all("snapshot=on" in drive or "readonly=on" in drive for drive in drives)

    def test_the_last_word_is_the_kernels_command_line(self) -> None:
        assert self.line[-2:] == ["-append", " ".join(KERNEL_ARGUMENTS)]

    def test_the_end_of_this_process_is_the_end_of_qemu(self) -> None:
        assert self.line[:4] == ["setpriv", "--pdeathsig", "KILL", "qemu"]

    def test_firmware_is_looked_for_where_the_emulator_has_it(self) -> None:
        assert self.line[4:6] == ["-L", "/firmware"]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("started\nexit 0\n", 0),
        ("started\nexit 137\n", 137),
        ("started\n", None),
        ("started\nexit \n", None),
        ("exit 3x\n", None),
        ("", None),
    ],
)
def test_a_status_is_a_whole_line_from_the_guest_or_unknown(text: str, status: int | None) -> None:
    assert exit_status(text) == status


class TestTree:
    def test_the_guest_gets_uncommitted_files_and_neither_ignored_nor_deleted_ones(
        self, tmp_path: Path
    ) -> None:
        run("git", "init", "-q", tmp_path)
        (tmp_path / ".gitignore").write_text("ignored\n")
        for name in ("committed", "deleted", "ignored", "näme"):
            (tmp_path / name).write_text("")
        run("git", "-C", tmp_path, "add", "committed", "deleted")
        (tmp_path / "deleted").unlink()
        assert tree.files(tmp_path) == [".gitignore", "committed", "näme"]

    def test_the_command_arrives_word_for_word(self) -> None:
        words = ["printf", "%s|", "a b", "$HOME", "it's", ""]
        script = tree.command_script(words, {}).replace("cd /whybox", "cd /")
        assert run("sh", "-c", script) == "a b|$HOME|it's||"


class TestCache:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def test_the_same_recipe_is_built_once_and_another_one_replaces_it(self) -> None:
        built: list[Path] = []
        first = cache.entry("piece", ("1",), built.append)
        assert cache.entry("piece", ("1",), built.append) == first
        assert len(built) == 1
        second = cache.entry("piece", ("2",), built.append)
        assert second.is_dir()
        assert not first.exists()

    def test_a_piece_whose_name_begins_alike_is_kept(self) -> None:
        kept = cache.entry("kernel-6.12", ("1",), lambda _: None)
        cache.entry("kernel-6.1", ("1",), lambda _: None)
        assert kept.is_dir()

    def test_an_interrupted_build_leaves_nothing(self) -> None:
        def interrupted(folder: Path) -> None:
            (folder / "half").write_text("")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cache.entry("piece", ("1",), interrupted)
        assert [path.name for path in cache.directory().iterdir()] == [".lock"]

    def test_words_of_a_recipe_cannot_run_together(self) -> None:
        assert cache.digest(("ab", "c")) != cache.digest(("a", "bc"))


class TestKernelFiles:
    def test_a_module_is_loaded_after_what_it_needs_and_once(self, tmp_path: Path) -> None:
        (tmp_path / "modules.dep").write_text(
            "v/virtio_pci.ko: v/ring.ko v/virtio.ko\n"
            "b/virtio_blk.ko.xz: v/ring.ko v/virtio.ko\n"
            "c/virtio_console.ko: v/ring.ko v/virtio.ko\n"
        )
        (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
        assert [str(path.relative_to(tmp_path)) for path in load_order(tmp_path)] == [
            "v/virtio.ko",
            "v/ring.ko",
            "v/virtio_pci.ko",
            "b/virtio_blk.ko.xz",
            "c/virtio_console.ko",
        ]

    def test_a_kernel_without_disks_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "modules.dep").write_text("")
        (tmp_path / "modules.builtin").write_text("")
        with pytest.raises(Unavailable, match="virtio_pci"):
            load_order(tmp_path)

    def test_the_kernel_in_a_bzimage_is_unpacked(self) -> None:
        kernel = b"\x7fELF" + bytes(1000)
        assert bzimage.unpacked(_bzimage(lzma.compress(kernel) + b"size")) == kernel

    def test_a_bzimage_of_unknown_compression_stays_as_it_is(self) -> None:
        whole = _bzimage(b"LZ4?")
        assert bzimage.unpacked(whole) == whole


def test_the_guest_has_what_the_tests_import_and_not_the_checkers() -> None:
    names = {re.split(r"[<>=]", requirement)[0] for requirement in image.requirements()}
    assert {"msgspec", "rich", "pyroute2", "pytest", "hypothesis"} <= names
    assert not names & {"mypy", "ruff", "types-jsonschema"}


def _bzimage(payload: bytes) -> bytes:
    """One boot sector, one of setup, sixteen bytes of decompressor, the payload."""
    header = bytearray(1024 + 16)
    header[bzimage.SETUP_SECTORS] = 1
    struct.pack_into("<II", header, bzimage.PAYLOAD_OFFSET, 16, len(payload))
    return bytes(header) + payload
