"""The official weights from the Hugging Face hub, as a folder in the layout that `convert` reads.

    DIR/
      config.yaml gpt.pth ...     of IndexTeam/IndexTTS-2
      hf_cache/ ...               what the reference fetches when it first runs
      download.json               where each file came from, with its size and checksum: what `check` reads
      .gpt.pth.CHECKSUM.part      a file that is not complete yet

Sizes and checksums are the hub's own, of a pinned revision. A file has its name only once its checksum is right; until
then what has come is kept, and the next run asks for the rest alone.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from indextts_jax import files, interrupts
from indextts_jax.errors import Error, shown
from indextts_jax.files import FileError

log = logging.getLogger(__name__)

RECORD = "download.json"
QWEN = "qwen0.6bemo4-merge"
AGAIN = "run the same command again: it goes on where it was"
_MOST_RECORD = 1_000_000  # bytes
_BLOCK = 1 << 20
_ATTEMPTS = 3  # that bring nothing, until the network counts as gone


class DownloadError(Error):
    """What the hub or the network does not give; the message names the repository and says what to do."""


@dataclass(frozen=True)
class Repository:
    """One repository of the hub: `files` says where in the model folder each of its files belongs."""

    name: str
    revision: str
    licence: str
    files: dict[str, str]


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


# Each revision is the one that several independent public projects pin for IndexTTS-2.
REPOSITORIES = (
    Repository(
        "IndexTeam/IndexTTS-2",
        "740dcaff396282ffb241903d150ac011cd4b1ede",
        "bilibili Model Use License Agreement",
        _same(
            "config.yaml", "bpe.model", "gpt.pth", "s2mel.pth", "wav2vec2bert_stats.pt", "feat1.pt", "feat2.pt",
            *(f"{QWEN}/{name}" for name in ("config.json", "generation_config.json", "tokenizer.json")),
            f"{QWEN}/model.safetensors",
        ),
    ),
    Repository(
        "facebook/w2v-bert-2.0",
        "da985ba0987f70aaeb84a80f2851cfac8c697a7b",
        "MIT",
        {
            name: f"hf_cache/w2v-bert-2.0/{name}"
            for name in ("config.json", "model.safetensors", "preprocessor_config.json")
        },
    ),
    Repository(
        "amphion/MaskGCT",
        "265c6cef07625665d0c28d2faafb1415562379dc",
        "CC-BY-NC 4.0: not for commercial use",
        {"semantic_codec/model.safetensors": "hf_cache/semantic_codec_model.safetensors"},
    ),
    Repository(
        "funasr/campplus",
        "e4b6ede7ce16997aff4ae69fbca1f0175e2afede",
        "Apache-2.0",
        {"campplus_cn_common.bin": "hf_cache/campplus_cn_common.bin"},
    ),
    Repository(
        "nvidia/bigvgan_v2_22khz_80band_256x",
        "633ff708ed5b74903e86ff1298cf4a98e921c513",
        "MIT",
        {name: f"hf_cache/bigvgan/{name}" for name in ("config.json", "bigvgan_generator.pt")},
    ),
)  # fmt: skip


def needed(qwen: bool = True) -> tuple[Repository, ...]:
    """What a model folder is made of; without `qwen`, emotions cannot be read off texts."""
    if qwen:
        return REPOSITORIES
    first, *others = REPOSITORIES
    kept = {path: place for path, place in first.files.items() if not path.startswith(QWEN)}
    return (Repository(first.name, first.revision, first.licence, kept), *others)


class File(NamedTuple):
    """A file of a repository as the hub describes it."""

    repository: Repository
    path: str  # in the repository
    place: str  # in the model folder
    size: int  # bytes
    checksum: str  # "sha256:..." of its content, or "git:...", the name that git gives to a small file


def describe(repositories: Sequence[Repository]) -> list[File]:
    """Ask the hub for the sizes and checksums of all files. Raises DownloadError."""
    import huggingface_hub

    api, found = huggingface_hub.HfApi(endpoint=endpoint()), []
    for repository in repositories:
        interrupts.check()
        with _explained(repository):
            answer = api.get_paths_info(repository.name, list(repository.files), revision=repository.revision)
            infos: dict[str, Any] = {info.path: info for info in answer if hasattr(info, "blob_id")}
        for path, place in repository.files.items():
            if (info := infos.get(path)) is None:
                raise DownloadError(f"{repository.name}: has no {path} at revision {repository.revision}")
            checksum = f"sha256:{info.lfs.sha256}" if info.lfs else f"git:{info.blob_id}"
            found.append(File(repository, path, place, info.size, checksum))
    return found


def endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or the official one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def missing(folder: Path, described: Sequence[File]) -> dict[str, int]:
    """The files that are not there, by their places, each with the bytes that are still to come."""
    return {
        file.place: max(0, file.size - _size(_part(folder, file)))
        for file in described
        if not os.path.lexists(folder / file.place)
    }


def check_space(folder: Path, described: Sequence[File], out: Path | None = None) -> None:
    """See that the disk has room for what is missing, and for the conversion to `out`. Raises FileError.

    The converted model takes less than what it is made of, so that much is asked for.
    """
    wanted: dict[int, tuple[Path, int]] = {}
    sizes = [(folder, sum(missing(folder, described).values()))]
    if out is not None:
        sizes.append((out, sum(file.size for file in described)))
    for path, size in sizes:
        while not path.exists():  # not made yet
            path = path.absolute().parent
        disk = path.stat().st_dev
        wanted[disk] = (path, wanted.get(disk, (path, 0))[1] + size)
    for path, size in wanted.values():
        if (free := shutil.disk_usage(path).free) < size:
            raise FileError(
                f"{path}: {gigabytes(size)} are needed, but its disk has only {gigabytes(free)} free; "
                "free some space or choose another place"
            )


def gigabytes(size: int) -> str:
    """A number of bytes as a person reads it."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all


def _tell(progress: Progress, stage: str, total: int, before: int, done: int) -> None:
    progress(stage, before + done, total)


def fetch(folder: Path, described: Sequence[File], progress: Progress, force: bool = False) -> None:
    """Have every file in `folder`, which is there, with the right content, and then the record of them.

    What is there is checked; with `force`, what differs is fetched again. Raises DownloadError and FileError, and then
    keeps what has come.
    """
    total = sum(file.size for file in described)

    with _locked(folder):
        there = [file for file in described if os.path.lexists(folder / file.place)]
        checked = 0
        for file in there:
            if not _is_right(folder / file.place, file, partial(_tell, progress, "checking", total, checked)):
                if not force:
                    raise FileError(
                        f"{folder / file.place}: is not the file of {file.repository.name}; add --force to replace it, "
                        "or choose another folder"
                    )
                (folder / file.place).unlink()
            checked += file.size
        done = total - sum(missing(folder, described).values())
        for file in described:
            if os.path.lexists(folder / file.place):
                continue
            had = min(file.size, _size(_part(folder, file)))
            with _explained(file.repository, folder):
                (folder / file.place).parent.mkdir(parents=True, exist_ok=True)
                _fetch(folder, file, partial(_tell, progress, "downloading", total, done))
            done += file.size - had
        content = {
            "repositories": {file.repository.name: file.repository.revision for file in described},
            "files": {file.place: [file.size, file.checksum] for file in described},
        }
        files.write_whole(folder / RECORD, (json.dumps(content, indent=1) + "\n").encode())


def problems(folder: Path, progress: Progress = lambda *_: None) -> dict[str, str]:
    """What is wrong with the files of a model folder in the official layout: place -> what.

    Against the record of the download, where there is one; else only that they are there. Raises FileError.
    """
    found: dict[str, str] = {}
    try:
        record = json.loads(files.read(folder / RECORD, _MOST_RECORD))
        entries = {str(place): (int(size), str(checksum)) for place, (size, checksum) in record["files"].items()}
    except FileNotFoundError:
        entries = {}
        for repository in needed(qwen=(folder / QWEN).is_dir()):
            entries |= dict.fromkeys(repository.files.values(), (-1, ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        return {RECORD: "damaged; remove it and download again"}
    total, done = sum(max(0, size) for size, _ in entries.values()), 0
    for place, (size, checksum) in entries.items():
        path = folder / place
        if not path.is_file():
            found[place] = "missing; download it again"
        elif size >= 0:
            file = File(REPOSITORIES[0], place, place, size, checksum)
            if not _is_right(path, file, partial(_tell, progress, "checking", total, done)):
                found[place] = "damaged; download it again with --force"
            done += size
    return found


# ---- one file -------------------------------------------------------------------------------------------------------


def _part(folder: Path, file: File) -> Path:
    path = folder / file.place
    return path.with_name(f".{path.name}.{file.checksum.partition(':')[2][:12]}.part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _Counted:
    """A file that is written, and says how far it is: a signal ends it between two blocks."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]):
        self._file, self._progress = file, progress
        self.seek, self.tell, self.truncate = file.seek, file.tell, file.truncate

    def write(self, block: bytes) -> None:
        self._file.write(block)
        self._progress(self._file.tell())
        interrupts.check()


def _fetch(folder: Path, file: File, progress: Callable[[int], None]) -> None:
    """What is missing of one file, which then has its name."""
    from huggingface_hub import constants, file_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    constants.DOWNLOAD_CHUNK_SIZE = _BLOCK  # of 10 MB, all that has come of one would be lost with the connection
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each attempt
    part, repository = _part(folder, file), file.repository
    had = _size(part)
    if had > file.size:
        part.unlink()
        had = 0
    cached = try_to_load_from_cache(repository.name, file.path, revision=repository.revision)
    with open(part, "ab") as opened:
        counted: Any = _Counted(opened, lambda n: progress(n - had))
        if isinstance(cached, str) and not had:
            with open(cached, "rb") as source:
                shutil.copyfileobj(source, counted, _BLOCK)
        elif had < file.size or not file.size:
            url = hf_hub_url(repository.name, file.path, revision=repository.revision, endpoint=endpoint())
            headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # of a compressed one no part can be had
            attempts = _ATTEMPTS
            while attempts:
                before = counted.tell()
                try:
                    file_download.http_get(url, counted, resume_size=before, headers=headers, expected_size=file.size)
                    break
                except Exception as error:  # of whichever library it uses
                    interrupts.check()
                    attempts = _ATTEMPTS if counted.tell() > before else attempts - 1
                    if not attempts or not _is_network(error):
                        raise
                    log.info("%s: the connection broke (%s); it is taken up again", file.path, shown(error))
                    time.sleep(1)
        opened.flush()
        os.fsync(opened.fileno())
    if not _is_right(part, file, lambda n: interrupts.check()):
        part.unlink()
        raise DownloadError(f"{repository.name}: what came of {file.path} has not its checksum; download it again")
    os.replace(part, folder / file.place)
    files.sync_folder(part.parent)


def _is_right(path: Path, file: File, progress: Callable[[int], None]) -> bool:
    """Whether a file has the size and the checksum that the hub says. Raises FileError."""
    kind, _, wanted = file.checksum.partition(":")
    with files.open_file(path) as opened:
        if os.fstat(opened.fileno()).st_size != file.size:
            return False
        digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        done = 0
        while block := opened.read(_BLOCK):
            digest.update(block)
            done += len(block)
            interrupts.check()
            progress(done)
    return digest.hexdigest() == wanted


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder is this process's alone. Raises FileError."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{folder}: another process is downloading into it; wait for that one") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(lock)


# ---- what went wrong ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(repository: Repository, folder: Path | None = None) -> Iterator[None]:
    """Failures of the network, the hub and the disk as one line. Raises DownloadError and FileError."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(AGAIN)
        raise
    except Error:
        raise
    except Exception as error:
        interrupts.check()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder"
            raise FileError(f"{folder}: cannot be written ({files.reason(error)}); {advice}, and {AGAIN}") from error
        if (message := _message(error, repository)) is None:
            raise
        raise DownloadError(message) from error


def _is_network(error: Exception) -> bool:
    """Whether the connection failed, and not what was asked for."""
    library = type(error).__module__.split(".")[0].startswith(("httpx", "httpcore", "requests", "urllib3"))
    return isinstance(error, ConnectionError | TimeoutError) or library


def _message(error: Exception, repository: Repository) -> str | None:
    """In one line; None for what is a bug."""
    from huggingface_hub import errors

    where, name = endpoint(), repository.name
    status = getattr(getattr(error, "response", None), "status_code", None)
    token = "HF_TOKEN, or log in with `hf auth login`"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be downloaded; unset it"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return f"{name}: access is refused; accept its terms at {where}/{name}, and give a token: set {token}"
    if status == 401:
        return f"{name}: {where} refuses the token or asks for one; check {token}"
    if status == 404:
        return f"{name}: {where} has no such repository, revision or file ({repository.revision}); check HF_ENDPOINT"
    if status is not None:
        return f"{name}: {where} answers with status {status}; wait, and {AGAIN}"
    if isinstance(error, OSError) and "Consistency check" in str(error):
        return f"{name}: less or more came than the hub announced; {AGAIN}"
    if _is_network(error):
        return f"{name}: {where} cannot be reached ({shown(error)}); check the network and HF_ENDPOINT, and {AGAIN}"
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)):
        return f"{name}: {where} does not answer as a Hugging Face hub does; check HF_ENDPOINT"
    return None
