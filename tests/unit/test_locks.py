"""Locks and folders that are replaced: one writer at a time, and whatever a kill leaves is put right."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from dgpo_cli.core import folders, locks
from dgpo_cli.core.locks import Lock, is_held, lock_beside
from dgpo_cli.core.workspace import KEYS, Workspace
from dgpo_cli.errors import BusyError, ConfigError


def test_the_second_is_told_who_has_it_and_what_to_do(tmp_path: Path) -> None:
    with Lock.inside(tmp_path / "run"):
        assert is_held(tmp_path / "run" / ".lock")
        with pytest.raises(BusyError) as told:
            Lock.inside(tmp_path / "run")
        assert told.value.message == f"another process (pid {os.getpid()}) works in {tmp_path / 'run'}"
        assert told.value.hint == "wait for it, or give another folder"
    assert not is_held(tmp_path / "run" / ".lock")
    assert list((tmp_path / "run").iterdir()) == [], "nothing is left over"


def test_folders_made_for_a_place_go_where_nothing_was_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with Lock.beside(tmp_path / "there" / "a" / "b" / "place"):
        assert (tmp_path / "there" / "a" / "b").is_dir()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with Lock.beside(tmp_path / "c" / "d" / "place"):
        (tmp_path / "c" / "kept").write_text("")
    assert not (tmp_path / "c" / "d").exists() and (tmp_path / "c" / "kept").exists()


def test_a_folder_that_cannot_take_its_place_leaves_all_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to("ring")
    with pytest.raises(OSError), folders.replacing(tmp_path / "ring") as made:
        (made / "part").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["ring"]


def test_a_lock_file_without_a_holder_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1")
    with Lock.inside(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_lock_beside_a_link_is_that_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert lock_beside(tmp_path / "link") == tmp_path / ".real.lock"


def test_who_looks_whether_a_lock_is_held_ends_no_command_that_starts_just_then(tmp_path: Path) -> None:
    """`dgpo report --watch` looks at every run each second; on a busy machine its look can last longer than a grace."""
    file = tmp_path / ".lock"
    file.touch()
    with open(file, "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        later = threading.Timer(0.6, fcntl.flock, (looking, fcntl.LOCK_UN))
        later.start()
        with Lock.inside(tmp_path):
            assert is_held(file)
        later.join()


def test_who_looks_for_ever_is_waited_for_no_longer_than_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_LOOK_S", 0.1)
    file = tmp_path / ".lock"
    file.touch()
    with open(file, "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        with pytest.raises(BusyError, match="another process"):
            Lock.inside(tmp_path)


def _count(folder: Path, times: int) -> None:
    for _ in range(times):
        with Lock(folder / "lock", folder, wait_s=60):
            number = int((folder / "count").read_text())
            (folder / "count").write_text(str(number + 1))


def test_many_that_take_and_release_it_are_never_two_at_once(tmp_path: Path) -> None:
    """The file is removed at each release, so an opener may hold the lock of a file that is gone."""
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(tmp_path, 100)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "count").read_text() == "400"


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ConfigError, match="cannot lock files"):
        Lock.inside(tmp_path)


def test_two_commands_that_remember_at_once_keep_both_values(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=Workspace(tmp_path).remember, kwargs={"by": "x", key: f"of {key}"}) for key in KEYS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [Workspace(tmp_path).resolve(key, None).value for key in KEYS] == [f"of {key}" for key in KEYS]
    assert [p.name for p in tmp_path.iterdir()] == ["workspace.json"]


def made(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "x").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("there", "left", "kept"),
    [
        ([], ["old"], "old"),
        (["new"], ["old"], "new"),
        (["old"], ["writing"], "old"),
        ([], ["old", "writing"], "old"),
        (["new"], ["removed"], "new"),
        ([], ["removed"], None),
    ],
)
def test_what_a_kill_leaves_is_settled(tmp_path: Path, there: list[str], left: list[str], kept: str | None) -> None:
    place = tmp_path / "best"
    for content in there:
        made(place, content)
    for what in left:
        made(tmp_path / f".best.{what}", what)
    made(tmp_path / ".other.old", "untouched")
    folders.settle(place)
    assert ((place / "x").read_text() if place.exists() else None) == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".other.old", *(["best"] if kept else [])])


@pytest.mark.parametrize("reads", [False, True])
def test_a_kill_while_a_linked_place_was_replaced_is_settled_where_the_link_leads(tmp_path: Path, reads: bool) -> None:
    link, disk = tmp_path / "index", tmp_path / "disk"
    link.symlink_to(disk / "index")
    made(disk / ".index.old", "whole")
    if reads:
        folders.recover_to_read(link, lock_beside(link))
    else:
        folders.settle(link)
    assert link.is_symlink() and (link / "x").read_text() == "whole"
    assert [p.name for p in disk.iterdir()] == ["index"]


def test_what_killed_writers_left_of_a_linked_file_is_deleted_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "page.html").symlink_to("disk/page.html")
    (tmp_path / "disk" / ".page.html.77.writing").write_text("half")
    with folders.sole_writer(tmp_path / "page.html"):
        assert [p.name for p in (tmp_path / "disk").iterdir()] == [".page.html.lock"]


def test_a_reader_puts_back_what_a_killed_replacement_hid(tmp_path: Path) -> None:
    made(tmp_path / ".index.old", "whole")
    folders.recover_to_read(tmp_path / "index", lock_beside(tmp_path / "index"))
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_reader_leaves_a_replacement_alone_that_is_under_way(tmp_path: Path) -> None:
    place = made(tmp_path / "index", "old")
    written = made(tmp_path / ".index.writing", "new")
    with Lock.beside(place):
        place.rename(tmp_path / ".index.old")
        reader = threading.Thread(target=folders.recover_to_read, args=(place, lock_beside(place)))
        reader.start()
        reader.join(0.3)
        assert not place.exists()
        written.rename(place)
    reader.join()
    assert (place / "x").read_text() == "new"


def test_only_unfinished_files_are_swept(tmp_path: Path) -> None:
    names = {".run.json.123.writing": True, ".a.writing": False, "run.json.123.writing": False, ".b.12.writin": False}
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.1.writing").mkdir()
    folders.sweep(tmp_path)
    gone = {name for name in names if not (tmp_path / name).exists()}
    assert gone == {name for name, swept in names.items() if swept}
    assert (tmp_path / ".folder.1.writing").is_dir()


def test_a_folder_that_nothing_can_be_made_in_is_told_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        Lock.inside(Path("/proc"))


def test_the_root_of_the_disk_has_a_name_for_its_lock_and_leftovers() -> None:
    assert lock_beside(Path("/")).parent == folders.beside(Path("/"), "old").parent == Path("/")
