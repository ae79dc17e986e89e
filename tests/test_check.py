"""What `indextts-jax check` finds: of models that are whole, damaged, unconverted or none."""

import json
import shutil

import jax

from debug.golden import FIXTURES
from indextts_jax import check, cli, download

TINY = FIXTURES / "tiny"


def run(*arguments) -> int:
    return cli.main(["check", *map(str, arguments)])


def states(findings) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings if finding.state not in check.GOOD}


def test_a_whole_model_is_good(official, capsys, monkeypatch):
    assert run(official) == 0
    printed = capsys.readouterr().out
    for line in ("gpt              ok", "device 0         ok       cpu: cpu, ", "jax              ok       "):
        assert f"\n{line}" in printed
    assert "converted from tiny, format 3" in printed
    assert "speaking in float32 takes about" in printed
    monkeypatch.setenv("INDEXTTS_MODEL", str(official))
    assert run("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert {"what": "jax", "state": "ok", "message": jax.__version__} in report["findings"]
    assert run("--quiet") == 0
    assert capsys.readouterr().out == ""


def test_what_is_damaged_and_missing_is_named(official, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(official, model)
    largest = max((model / "gpt").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    shutil.rmtree(model / "s2mel")
    (model / "bpe.model").unlink()
    assert states(check.files_of(model)) == {"gpt": "damaged", "s2mel": "missing", "files": "damaged"}
    assert run(model) == 1
    printed = capsys.readouterr()
    assert f"gpt              damaged  {largest}: damaged" in printed.out
    assert f"files            damaged  {model}/bpe.model: is missing" in printed.out
    assert printed.err.startswith("indextts-jax: error: not good: gpt, s2mel, files; ")
    assert run(model, "--json") == 1
    assert not json.loads(capsys.readouterr().out)["ok"]
    (model / "model.json").write_text("{}")
    assert states(check.files_of(model)) == {"model": "damaged"}


def test_an_unconverted_model_says_so(tmp_path, capsys):
    assert run(TINY) == 1
    assert f"{TINY}: not converted yet; run `indextts-jax convert {TINY} OUT`" in capsys.readouterr().out
    folder = tmp_path / "checkpoints"
    shutil.copytree(TINY, folder)
    (folder / "gpt.pth").unlink()
    assert states(check.files_of(folder)) == {"gpt.pth": "missing", "model": "wrong"}
    (folder / download.RECORD).write_text(
        json.dumps({"files": {"feat1.pt": [(folder / "feat1.pt").stat().st_size, "sha256:0"]}})
    )
    assert states(check.files_of(folder)) == {"feat1.pt": "damaged", "model": "wrong"}


def test_no_model(tmp_path, capsys):
    assert run() == 1
    assert "model            missing  none is named; run `indextts-jax config set model DIR`" in capsys.readouterr().out
    assert states(check.files_of(tmp_path / "none")) == {"model": "missing"}
    assert states(check.files_of(tmp_path)) == {"model": "missing"}


def test_too_little_memory_and_no_device(official, monkeypatch):
    from indextts_jax import checkpoint

    cfg, _ = checkpoint.read_description(official)
    monkeypatch.setattr(check, "_memory_of", lambda device: 10_000_000)
    [finding] = check.memory(official, cfg, "float32")
    assert finding.state == "wrong"
    assert "but there are only 10.00 MB; use --dtype bfloat16 or a larger machine" in finding.message
    [narrow] = check.memory(official, cfg, "bfloat16")
    assert float(narrow.message.split()[5]) < float(finding.message.split()[5])

    def none() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", none)
    assert states(check.devices()) == {"devices": "wrong"}
