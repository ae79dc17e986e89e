"""The official weights from a small hub of our own, whatever breaks on the way."""

import errno
import os
import shutil
import signal
import threading
import time

import pytest

from debug.golden import FIXTURES
from indextts_jax import cli, download
from tests.hub import Hub, serving

pytest.importorskip("huggingface_hub")
TINY = FIXTURES / "tiny"
GPT = "gpt.pth"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the attempts of huggingface_hub
    monkeypatch.setattr(download, "_BLOCK", 100_000)  # what has come of one is lost
    with serving(Hub(TINY)) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        yield found


def run(*arguments) -> int:
    return cli.main(["download", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    """The one line of a download that fails."""
    assert run(*arguments, "--accept-licence", "--quiet") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("indextts-jax: error: ")
    return line


def fetched(hub: Hub) -> dict[str, list[str | None]]:
    """What was asked for, by the last part of its path: the ranges."""
    found: dict[str, list[str | None]] = {}
    for method, path, part in hub.asked:
        if method == "GET" and "/elsewhere/" not in path:
            found.setdefault(path.rpartition("/")[2], []).append(part)
    return found


def test_a_model_folder_comes_whole(hub, tmp_path, capsys):
    """With the bytes of every file in its place; a second run fetches nothing, and finds what was changed."""
    out = tmp_path / "checkpoints"
    assert run(out, "--accept-licence") == 0
    printed = capsys.readouterr().out
    assert "CC-BY-NC 4.0: not for commercial use" in printed
    assert "18 files, 20.14 MB; to come: 20.14 MB" in printed
    for repository in download.REPOSITORIES:
        for place in repository.files.values():
            assert (out / place).read_bytes() == (TINY / place).read_bytes()
    assert not list(out.rglob("*.part"))
    assert download.problems(out) == {}
    hub.asked.clear()
    assert run(out, "--accept-licence", "--quiet") == 0
    assert fetched(hub) == {}
    (out / "feat1.pt").write_bytes((TINY / "feat2.pt").read_bytes())
    (out / "bpe.model").unlink()
    assert download.problems(out) == {
        "bpe.model": "missing; download it again",
        "feat1.pt": "damaged; download it again with --force",
    }
    assert "feat1.pt: is not the file of IndexTeam/IndexTTS-2; add --force" in refused(capsys, out)
    assert run(out, "--accept-licence", "--force", "--quiet") == 0
    assert set(fetched(hub)) == {"feat1.pt", "bpe.model"}
    assert download.problems(out) == {}


def test_licences_are_shown_and_asked_for(hub, tmp_path, capsys):
    assert run(tmp_path / "out") == 1
    printed = capsys.readouterr()
    shown = [line.split()[0] for line in printed.out.splitlines()]
    assert shown[:-1] == [each.name for each in download.REPOSITORIES]
    assert "CC-BY-NC 4.0, Apache-2.0; add --accept-licence if you accept all of these" in printed.err
    assert hub.asked == []
    assert not (tmp_path / "out").exists()


def test_a_connection_that_breaks_is_taken_up_again(hub, tmp_path, monkeypatch):
    """Where it broke, within a run."""
    hub.breaks[GPT] = [1_000_000, 500_000]
    assert run(tmp_path / "out", "--accept-licence", "--quiet") == 0
    assert fetched(hub)[GPT] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert (tmp_path / "out" / GPT).read_bytes() == (TINY / GPT).read_bytes()


def test_a_connection_that_is_reset_is_taken_up_again(hub, tmp_path, monkeypatch):
    """Of which huggingface_hub makes no second attempt; without bytes in between, it is given up."""
    from huggingface_hub import file_download

    resumed, get = [], file_download.http_get

    def reset(url, file, *, resume_size, **more):
        if url.endswith(GPT):
            resumed.append(resume_size)
            if len(resumed) < 4:
                file.write((TINY / GPT).read_bytes()[resume_size : resume_size + (1000 if brings else 0)])
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        get(url, file, resume_size=resume_size, **more)

    monkeypatch.setattr(file_download, "http_get", reset)
    brings = True
    assert run(tmp_path / "out", "--accept-licence", "--quiet") == 0
    assert resumed == [0, 1000, 2000, 3000]
    assert download.problems(tmp_path / "out") == {}
    brings = False
    resumed.clear()
    assert run(tmp_path / "other", "--accept-licence", "--quiet") == 1
    assert resumed == [0, 0, 0]


def test_a_network_that_is_gone_is_one_line_and_nothing_comes_twice(hub, tmp_path, capsys):
    hub.breaks[GPT] = [2_000_000] + [0] * 100  # and no attempt brings more
    line = refused(capsys, tmp_path / "out")
    assert f"{hub.endpoint} cannot be reached" in line
    assert download.AGAIN in line
    assert not (tmp_path / "out" / GPT).exists()
    hub.breaks.clear()
    hub.asked.clear()
    assert run(tmp_path / "out", "--accept-licence", "--quiet") == 0
    assert fetched(hub)[GPT] == ["bytes=2000000-"]
    assert "config.yaml" not in fetched(hub)
    assert (tmp_path / "out" / GPT).read_bytes() == (TINY / GPT).read_bytes()


def test_an_interruption_goes_on_where_it_was(hub, tmp_path, capsys):
    def interrupt() -> None:
        while not any(part.stat().st_size for part in (tmp_path / "out").glob(".gpt.pth.*.part")):
            threading.Event().wait(0.01)  # for what was sent to be there
        os.kill(os.getpid(), signal.SIGINT)

    hub.breaks[GPT] = [3_000_000]
    hub.broken = interrupt
    assert run(tmp_path / "out", "--accept-licence", "--quiet") == 130
    assert capsys.readouterr().err == f"indextts-jax: error: interrupted; {download.AGAIN}\n"
    [part] = (tmp_path / "out").glob(".gpt.pth.*.part")
    had = part.stat().st_size
    assert had > 0
    hub.asked.clear()
    assert run(tmp_path / "out", "--accept-licence", "--quiet") == 0
    assert fetched(hub)[GPT] == [f"bytes={had}-"]
    assert download.problems(tmp_path / "out") == {}


def test_a_token_is_not_told_to_the_network_of_servers(hub, tmp_path, monkeypatch):
    """Large files come from another host, to which the hub leads."""
    hub.token = "right"
    monkeypatch.setenv("HF_TOKEN", "right")
    hub.breaks[GPT] = [1_000_000]
    assert run(tmp_path / "out", "--accept-licence", "--quiet") == 0
    assert len(hub.elsewhere) >= 6
    assert set(hub.elsewhere) == {None}
    assert download.problems(tmp_path / "out") == {}


def test_what_is_damaged_on_the_way_is_not_kept(hub, tmp_path, capsys):
    hub.damaged.add("semantic_codec/model.safetensors")
    line = refused(capsys, tmp_path / "out")
    assert "amphion/MaskGCT: what came of semantic_codec/model.safetensors has not its checksum" in line
    assert not (tmp_path / "out" / "hf_cache" / "semantic_codec_model.safetensors").exists()
    assert not list((tmp_path / "out").rglob("*.part"))
    hub.damaged = {"config.yaml"}  # a small file, which git names
    assert "what came of config.yaml has not its checksum" in refused(capsys, tmp_path / "other")


def test_refusals_are_one_line(hub, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    hub.token = "right"
    assert "the token or asks for one; check HF_TOKEN" in refused(capsys, out)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "the token or asks for one; check HF_TOKEN" in refused(capsys, out)
    monkeypatch.setenv("HF_TOKEN", "right")
    hub.gated = "amphion/MaskGCT"
    assert f"amphion/MaskGCT: access is refused; accept its terms at {hub.endpoint}/amphion/MaskGCT" in refused(
        capsys, out
    )
    hub.gated = None
    assert run(out, "--accept-licence", "--quiet") == 0
    hub.nonsense = True
    assert "does not answer as a Hugging Face hub does; check HF_ENDPOINT" in refused(capsys, out)
    hub.nonsense = False
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint}/elsewhere")
    assert "has no such repository, revision or file (740dcaff" in refused(capsys, out)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refused(capsys, out)
    monkeypatch.setenv("HF_ENDPOINT", "nowhere")
    assert "nowhere cannot be reached" in refused(capsys, out)


def test_wrong_places_are_one_line(hub, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path}/file: is a file; give a folder" in refused(capsys, tmp_path / "file")
    assert "no such folder" in refused(capsys, tmp_path / "none" / "out")
    (tmp_path / "model").mkdir()
    assert "model: exists already" in refused(capsys, tmp_path / "out", "--convert", tmp_path / "model")
    with download._locked(tmp_path / "model"):
        assert "another process is downloading into it" in refused(capsys, tmp_path / "model")
    assert (tmp_path / "file").read_text() == "mine"


def test_space_is_looked_for_first(hub, tmp_path, capsys, monkeypatch):
    """Of what is missing, and of the conversion."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=30_000_000))
    assert run(tmp_path / "out", "--dry-run", "--quiet") == 0
    line = refused(capsys, tmp_path / "out", "--convert", tmp_path / "model")
    assert "40.27 MB are needed, but its disk has only 30.00 MB free" in line
    assert fetched(hub) == {}
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_meanwhile(hub, tmp_path, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = refused(capsys, tmp_path / "out")
    assert "cannot be written (No space left on device); free some space, and run the same command again" in line


def test_the_cache_of_the_hub_is_used(hub, tmp_path, monkeypatch):
    """What the reference has fetched lies in HF_HOME."""
    import huggingface_hub

    codec = TINY / "hf_cache" / "semantic_codec_model.safetensors"
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda name, path, revision: str(codec) if name == "amphion/MaskGCT" else None,
    )
    assert run(tmp_path / "out", "--accept-licence", "--quiet", "--no-qwen") == 0
    asked = {path for method, path, _ in hub.asked if method == "GET"}
    assert not any("MaskGCT" in path or download.QWEN in path for path in asked)
    assert (tmp_path / "out" / "hf_cache" / codec.name).read_bytes() == codec.read_bytes()


def test_revisions_are_pinned():
    for repository in download.REPOSITORIES:
        assert len(repository.revision) == 40
        assert int(repository.revision, 16)


def test_a_record_that_makes_no_sense(tmp_path):
    (tmp_path / download.RECORD).write_text("[1")
    assert download.problems(tmp_path) == {download.RECORD: "damaged; remove it and download again"}
    (tmp_path / download.RECORD).unlink()
    assert set(download.problems(TINY)) == set()
    assert set(download.problems(tmp_path)) >= {"gpt.pth", "hf_cache/bigvgan/config.json"}


def test_without_its_library(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "downloading needs huggingface_hub: pip install 'indextts-jax[download]'" in refused(capsys, tmp_path / "o")


def test_download_and_convert_in_one_go(hub, tmp_path, capsys, monkeypatch):
    """Once all is there; what it becomes, tests/test_documents.py hears."""
    from indextts_jax import convert

    def converted(folder, out, strict, report):
        assert download.problems(folder) == {}
        if interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        out.mkdir()
        return []

    monkeypatch.setattr(convert, "convert", converted)
    out, command = tmp_path / "model", (tmp_path / "checkpoints", "--convert", tmp_path / "model", "--accept-licence")
    interrupted = True
    assert run(*command) == 130
    assert "interrupted; all is downloaded; the same command converts it" in capsys.readouterr().err
    interrupted = False
    hub.asked.clear()
    assert run(*command) == 0
    assert capsys.readouterr().out.endswith(f"converted to {out}\n")
    assert fetched(hub) == {}
    assert out.is_dir()
