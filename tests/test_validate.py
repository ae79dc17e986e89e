"""Every stage against the reference on every golden file, that a scaled weight is named, and the command itself."""

import json
import os
import re
import zlib
from dataclasses import replace

import jax
import numpy as np
import pytest

from debug import validate
from debug.follow import Case, Golden
from debug.golden import FIXTURES, golden
from debug.stages import STAGES
from indextts_jax import checkpoint
from indextts_jax.model import Model, load
from tests.test_decoding import with_stop_bias

pytestmark = pytest.mark.whole

# What each golden file is compared in. The full files hold more (INDEXTTS_GOLDEN), these at least.
COMPARED = {
    "en_layers": set(STAGES),
    "en_greedy": {"text", "repcodec", "gpt", "s2mel"},  # the others are those of en_layers, in fewer layers
    "en_segments": {"text", "gpt"},
    "en_stop_greedy": {"gpt"},
    "en_stop_beam3": {"gpt"},
    "en_beam3": {"gpt"},
    "en_sample": {"gpt"},
    "en_beam3_sample": {"gpt"},
    "zh_greedy_emotion_audio": {"w2vbert", "audio"},
    "zh_beam3_emotion_vector": {"conditioner", "gpt"},
}


@pytest.fixture(scope="session")
def converted(official):
    return official


@pytest.fixture(scope="module")
def model(converted) -> Model:
    return load(converted, "float32")


def case(model, name, converted=None):
    """A golden file with the weights it was made with."""
    if "stop" in name:
        gpt = with_stop_bias(model.params["gpt"], model.cfg.gpt, 4.5)
        model = replace(model, params={**model.params, "gpt": gpt})
    return Case(model, Golden(golden(name)), converted and (lambda: checkpoint.load_reader(converted, "float32")))


# From files to samples the command line and the pipeline are compared, too; here it takes a minute and a half.
LONG = pytest.mark.skipif("INDEXTTS_LONG" not in os.environ, reason="takes long: set INDEXTTS_LONG to run it")
PAIRS = [
    pytest.param(name, stage, marks=LONG if stage == "end-to-end" else ())
    for name, stages in COMPARED.items()
    for stage in STAGES
    if stage in stages
]


@pytest.mark.parametrize(("name", "stage"), PAIRS)
def test_every_stage_equals_reference(model, converted, name, stage):
    verdicts = list(validate.validate(case(model, name, converted), [stage]))
    assert verdicts
    assert not [validate.cells(verdict) for verdict in verdicts if not verdict.held]


@pytest.mark.parametrize("name", ["text_cases", "qwen_emotion"])
def test_cases_equal_reference(model, converted, name):
    found = Golden(validate.read(FIXTURES / "golden" / f"{name}.json"))
    verdicts = list(validate.validate(Case(model, found, lambda: checkpoint.load_reader(converted))))
    assert len(verdicts) >= {"text_cases": 5 * 51, "qwen_emotion": 16 + 2 * 2}[name]
    assert not [validate.cells(verdict) for verdict in verdicts if not verdict.held]


# ---- a fault is named -----------------------------------------------------------------------------------------------

# Leaves on which the result does not depend, by kind: a convolution whose scale the norm after it takes away, and the
# query of one latent whose attention is all but even.
INERT = {
    "w2vbert": {"encoder/layer_#/convolution/depthwise/kernel"},
    "conditioner": {"emotion/encoder/perceiver/attention_#/q/kernel"},
}
# Where a fault shows, for leaves that lie in no module of that name.
SHOWN = {
    "text/embedding": "prefix", "text_position/embedding": "prefix", "code/embedding": "prefix",
    "code_position/embedding": "prefix", "speed/embedding": "prefix", "vector": "emotion.resolve",
    "quantizer/codebook/embedding": "quantizer/out",
}  # fmt: skip


def leaves(tree):
    """One leaf of each kind: names that differ in numbers alone are one kind, of which chance chooses."""
    kinds: dict[str, list[str]] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(str(key.key) for key in path)
        kinds.setdefault(kind(name), []).append(name)
    return [paths[zlib.crc32(name.encode()) % len(paths)] for name, paths in kinds.items()]


def scaled(tree, path):
    """The tree with one leaf 1.01 times as large."""
    name, _, rest = path.partition("/")
    return {**tree, name: scaled(tree[name], rest) if rest else tree[name] * np.float32(1.01)}


def kind(path):
    return re.sub(r"\d+", "#", path)


def names(where, path):
    """Whether a verdict names the leaf's module, a span that begins or ends with it, or the first part that uses it."""
    shown = SHOWN.get(path, path)
    owner = f"{shown.rpartition('/')[0]}/"
    return any(f"{shown}/".startswith(f"{part}/") or part.startswith(owner) for part in where.split(" … "))


@pytest.mark.parametrize("component", ["w2vbert", "repcodec", "campplus", "conditioner", "gpt", "s2mel", "bigvgan"])
def test_a_scaled_weight_is_named(model, component):
    known, missed = case(model, "en_layers"), []
    for path in leaves(model.params[component]):
        params = {**model.params, component: scaled(model.params[component], path)}
        verdicts = validate.validate(known._replace(model=replace(model, params=params)), [component])
        first = next((verdict for verdict in verdicts if not verdict.held), None)  # the stages after it do not run
        if not first or not names(first.where, path):
            missed.append((path, first and first.where))
    assert {kind(path) for path, _ in missed} == INERT.get(component, set()), missed


def test_a_scaled_emotion_is_named(model):
    params = {**model.params, "prototypes": scaled(model.params["prototypes"], "vector")}
    known = case(replace(model, params=params), "zh_beam3_emotion_vector")
    assert [verdict.where for verdict in validate.validate(known, ["conditioner"]) if not verdict.held] == [
        "emotion.resolve"
    ]


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command; -> its exit status, output and errors."""

    def run(*arguments):
        status = validate.main(list(map(str, arguments)))
        return (status, *capsys.readouterr())

    monkeypatch.setattr(jax.config, "update", lambda *change: None)  # the tests' own settings stay
    return run


LAYERS = FIXTURES / "golden" / "en_layers.npz"


def test_command(converted, run, tmp_path):
    """Files and folders, one component, details, JSON, pictures; status 1 and the name of what differs."""
    status, out, _ = run("--model", converted, "--golden", LAYERS, "--component", "gpt", "--verbose")
    assert status == 0
    assert "| gpt | decoder/layer_1 | seg0.gpt.prefill.h1 |" in out
    assert "| held |" in out
    assert "DIFFERS" not in out
    assert "from 1e-0" in out  # the histogram
    assert re.search(r"\n(\d+) of \1 tensors held\.\n", out)

    folder, arrays = tmp_path / "npy", golden("en_layers")
    folder.mkdir()
    for key, value in arrays.items():
        if key.startswith(("seg0.gpt", "seg0.text_tokens", "meta")):
            changed = key == "seg0.gpt.prefill.h1"
            np.save(folder / f"{key}.npy", value * np.float32(1.001) if changed else value)
    status, out, _ = run("--model", converted, "--golden", folder, "--component", "gpt", "--json")
    found = json.loads(out)
    assert (status, found["held"]) == (1, False)
    assert found["first"][0].startswith("First divergence: gpt, decoder/layer_1 (seg0.gpt.prefill.h1): ")
    rows = {row["key"]: row for row in found["tensors"]}
    assert not rows["seg0.gpt.prefill.h1"]["held"]
    assert 9e-4 < rows["seg0.gpt.prefill.h1"]["relative"] < 1.1e-3
    assert rows["seg0.gpt.prefill.h0"]["held"]
    assert rows["seg0.gpt.latent.out"]["held"]


def test_pictures(converted, run, tmp_path):
    pytest.importorskip("matplotlib")
    options = ("--component", "audio", "--component", "gpt", "--plot", tmp_path / "pictures")
    status, _, err = run("--model", converted, "--golden", LAYERS, *options)
    assert status == 0
    written = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"audio.ref_mel.png", "gpt.seg0.gpt.prefill.attention2.png"} <= written
    assert all(str(tmp_path / "pictures" / name) in err for name in written)


def test_what_is_read_of_the_recording(converted, run, tmp_path):
    voice = FIXTURES / "audio" / "voice_24k.wav"
    path = FIXTURES / "golden" / "en_greedy.npz"
    options = ("--model", converted, "--golden", path, "--component", "audio", "--speaker")
    assert run(*options, voice)[0] == 0
    status, out, _ = run(*options, FIXTURES / "audio" / "voice_24k_odd.wav")
    assert status == 1
    assert "First divergence: audio, load_speaker (audio.spk_22k_librosa)" in out
    # An emotion of its own recording is not looked for in the speaker's.
    mixed = ("--model", converted, "--golden", FIXTURES / "golden" / "zh_greedy_emotion_audio.npz", *options[4:])
    assert run(*mixed, FIXTURES / "audio" / "voice_24k_odd.wav")[0] == 0
    assert run(*mixed, voice, "--emotion-audio", voice)[0] == 1


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("gone.npz", None, "gone.npz: no such file"),
        ("text.npz", b"no arrays", "text.npz: not a golden file"),
        ("cut.npz", LAYERS.read_bytes()[:3000], "cut.npz: not a golden file"),
        ("cases.json", b"{", "cases.json: not a golden file"),
        ("empty", "folder", "empty: not a golden file"),
    ],
)
def test_bad_golden_files(converted, run, tmp_path, path, content, message):
    if content == "folder":
        (tmp_path / path).mkdir()
    elif content is not None:
        (tmp_path / path).write_bytes(content)
    status, out, err = run("--model", converted, "--golden", tmp_path / path)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_another_model_and_nothing_to_compare(converted, run, tmp_path):
    np.savez(tmp_path / "wide.npz", **{"seg0.gpt.emo_vec": np.zeros((1, 1280), np.float32)})
    status, _, err = run("--model", converted, "--golden", tmp_path / "wide.npz")
    assert (status, "made with another model (width 1280)" in err) == (2, True)
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    status, _, err = run("--model", converted, "--golden", tmp_path / "other.npz", "--component", "text")
    assert (status, "holds nothing that text could be compared with" in err) == (2, True)
    status, _, err = run("--model", tmp_path, "--golden", LAYERS)
    assert (status, "model.json: no such file" in err) == (2, True)
    (tmp_path / "text.wav").write_text("no recording")
    status, _, err = run("--model", converted, "--golden", LAYERS, "--speaker", tmp_path / "text.wav")
    assert (status, "text.wav cannot be read as audio" in err) == (2, True)


def test_judging_what_is_no_number():
    """Infinities must be at the same places; a tensor of another shape does not hold; NaN never does."""
    one, inf, nan = np.float32(1), np.float32(np.inf), np.float32(np.nan)

    def held(ours, reference, allowed="scores"):
        return validate.judge(validate.Comparison("gpt", "x", "k", np.array(ours), np.array(reference), allowed)).held

    assert held([one, -inf], [one, -inf])
    assert not held([one, one], [one, -inf])
    assert not held([one, -inf], [one, one])
    assert not held([one, nan], [one, one])
    assert not held([one], [one, one])
    assert held("a", "a", None)
    assert not held("a", "b", None)
