"""Filterbanks and log-mel: against the reference, against float64, and under padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr

from debug.golden import FIXTURES, TOLERANCE, absolute, golden
from indextts_jax import audio
from indextts_jax.features import (
    MelConfig,
    campplus_features,
    fbank,
    kaldi_filterbank,
    mel,
    slaney_filterbank,
    w2vbert_features,
)
from tests.small import speech

RECORDINGS = FIXTURES / "audio"
FRONT_END = TOLERANCE["front end"]
REFERENCE_ROUNDING = TOLERANCE["front end rounding"]


def padded(rows: list[np.ndarray], extra: int = 0, fill: float = 0.0) -> tuple[jax.Array, jax.Array]:
    batch = np.full((len(rows), max(map(len, rows)) + extra), fill, np.float32)
    for line, row in zip(batch, rows, strict=True):
        line[: len(row)] = row
    return jnp.asarray(batch), jnp.asarray([len(row) for row in rows])


def one(samples: np.ndarray) -> tuple[jax.Array, jax.Array]:
    return padded([samples])


# The two front ends again, frame by frame in float64.


def exact_fbank(samples: np.ndarray) -> np.ndarray:
    frames = []
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame -= frame.mean()
        frame = np.append(0.03 * frame[0], frame[1:] - 0.97 * frame[:-1])
        power = np.abs(np.fft.rfft(frame * window, 512)) ** 2
        frames.append(np.log(np.maximum(power @ kaldi_filterbank(), 2.0**-23)))
    return np.stack(frames)


def exact_w2vbert(samples: np.ndarray) -> np.ndarray:
    features = exact_fbank(samples * np.float32(32768))
    features = (features - features.mean(0)) / np.sqrt(features.var(0, ddof=1) + 1e-7)
    if len(features) % 2:
        features = np.concatenate([features, np.ones((1, 80))])
    return features.reshape(-1, 160)


def exact_mel(samples: np.ndarray) -> np.ndarray:
    samples = np.pad(samples.astype(np.float64), 384, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = [samples[start : start + 1024] * window for start in range(0, len(samples) - 1023, 256)]
    amplitude = np.sqrt(np.abs(np.fft.rfft(np.stack(frames))) ** 2 + 1e-9)
    return np.log(np.maximum(amplitude @ slaney_filterbank(), 1e-5))


@pytest.mark.parametrize(
    ("name", "key", "samples"),
    [
        ("en_greedy", "w2v.spk", "audio.spk_16k"),
        ("en_greedy", "w2v.emo", "audio.emo_16k_librosa"),
        ("zh_greedy_emotion_audio", "w2v.emo", "audio.emo_16k_librosa"),
    ],
)
def test_w2vbert_features_equal_reference(name: str, key: str, samples: str):
    arrays = golden(name)
    features, lengths, mask = w2vbert_features(*one(arrays[samples][0]))
    assert absolute(features, arrays[f"{key}.input_features"]) <= FRONT_END
    assert lengths.tolist() == [features.shape[1]]
    assert mask.all()


def test_odd_frame_count_equals_reference():
    arrays = golden("zh_greedy_emotion_audio")
    speaker = audio.load_speaker(RECORDINGS / "voice_24k_odd.wav")
    features, lengths, mask = w2vbert_features(*one(speaker.samples_16k))
    assert absolute(features, arrays["w2v.spk.input_features"]) <= FRONT_END
    assert lengths.tolist() == [features.shape[1]] == [227]
    np.testing.assert_array_equal(mask, arrays["w2v.spk.attention_mask"])
    assert not mask[0, -1]


def test_campplus_features_equal_reference():
    arrays = golden("en_greedy")
    features, lengths = campplus_features(*one(arrays["audio.spk_16k"][0]))
    assert absolute(features, arrays["campplus.in"]) <= REFERENCE_ROUNDING
    assert np.mean(np.abs(features - arrays["campplus.in"]) > FRONT_END) < 0.003
    exact = exact_fbank(arrays["audio.spk_16k"][0])
    assert absolute(features[0], exact - exact.mean(0)) <= FRONT_END
    assert lengths.tolist() == [features.shape[1]]


def test_mel_equals_reference():
    arrays = golden("en_greedy")
    features, lengths = mel(*one(arrays["audio.spk_22k_librosa"][0]))
    expected = arrays["ref_mel"].transpose(0, 2, 1)
    assert absolute(features, expected) <= REFERENCE_ROUNDING
    assert np.mean(np.abs(features - expected) > FRONT_END) < 0.001
    assert absolute(features[0], exact_mel(arrays["audio.spk_22k_librosa"][0])) <= FRONT_END
    assert lengths.tolist() == [features.shape[1]]


def test_kaldi_filters_follow_the_formula():
    bank = kaldi_filterbank()
    assert bank.shape == (257, 80)
    # 20 Hz is 31.749 mel, 8 kHz 2840.038 mel: 81 steps of 34.670. Bin 1 (31.25 Hz, 49.222 mel) rises in the first
    # triangle; bin 2 (62.5 Hz, 96.383 mel) falls in it towards 101.089 mel, the peak of the second.
    assert bank[1, 0] == pytest.approx((49.2218 - 31.7486) / 34.6702, abs=1e-5)
    assert bank[2, 0] == pytest.approx((101.0891 - 96.3835) / 34.6702, abs=1e-5)
    assert bank[2, 1] == pytest.approx(1 - bank[2, 0], abs=1e-12)  # neighbours sum to one between the outer peaks
    np.testing.assert_allclose(bank[2:248].sum(1), 1.0, atol=1e-12)
    assert bank[0].max() == 0.0
    assert bank[256].max() < 1e-12


def test_slaney_filters_follow_the_formula():
    bank = slaney_filterbank()
    assert bank.shape == (513, 80)
    # 11 025 Hz is 15 + 27 ln(11.025) / ln(6.4) = 49.911 mel; 81 steps of 0.61618 mel, 41.079 Hz each below 1 kHz.
    # Bin 1 (21.533 Hz) rises in the first filter, whose height is 2 / 82.157.
    assert bank[1, 0] == pytest.approx(21.533 / 41.079 * 2 / 82.157, rel=1e-4)
    assert bank[2, 0] == pytest.approx((82.157 - 43.066) / 41.079 * 2 / 82.157, rel=1e-4)
    np.testing.assert_allclose(bank[:, 20:].sum(0) * 22050 / 1024, 1.0, atol=0.05)  # equal area
    assert slaney_filterbank(MelConfig(fmin=500.0, fmax=8000.0))[[23, 372]].max() == 0.0  # 495, 8010 Hz


def test_quiet_bands_beside_loud_ones_are_exact():
    # A telephone recording: above 4 kHz only the rounding of float32 samples is left, and each band is scaled up to
    # unit variance.
    voice, rate = audio.read(RECORDINGS / "voice_24k.wav")
    samples = audio.emotion(soxr.resample(voice, rate, 8000), 8000)
    assert absolute(w2vbert_features(*one(samples)).features[0], exact_w2vbert(samples)) <= FRONT_END
    tone = 0.9 * np.sin(2 * np.pi * 200 * np.arange(22050) / 22050)
    tone = (tone + 1e-5 * np.random.default_rng(0).standard_normal(22050)).astype(np.float32)
    assert absolute(mel(*one(tone))[0][0], exact_mel(tone)) <= FRONT_END


def test_an_offset_is_removed_to_the_floor():
    features, _ = jax.jit(fbank)(jnp.full((1, 1600), 0.9 * 2**15), jnp.array([1600]))
    assert absolute(features, np.full((1, 8, 80), np.log(2.0**-23))) <= 1e-5


def test_mel_sizes_are_arguments():
    cfg = MelConfig(rate=16000, n_fft=512, window=400, hop=128, mels=40, fmin=50.0, fmax=7000.0)
    samples = speech(0.4)
    features, lengths = mel(*one(samples), cfg)
    assert features.shape == (1, len(samples) // 128, 40)
    assert lengths.tolist() == [features.shape[1]]
    window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400), 56)
    middle = samples[10 * 128 - 192 : 10 * 128 - 192 + 512] * window
    amplitude = np.sqrt(np.abs(np.fft.rfft(middle)) ** 2 + 1e-9)
    expected = np.log(np.maximum(amplitude @ slaney_filterbank(cfg), 1e-5))
    assert absolute(features[0, 10], expected) <= FRONT_END


FRONT_ENDS = {
    "w2vbert": lambda samples, lengths: w2vbert_features(samples, lengths)[:2],
    "campplus": campplus_features,
    "mel": mel,
}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_padding_and_neighbours_change_nothing(name: str):
    front_end = jax.jit(FRONT_ENDS[name])
    rows = [speech(seconds, seed=seed) for seed, seconds in enumerate((0.31, 0.5, 0.4237))]
    alone = [front_end(*one(row)) for row in rows]
    for fill in (0.0, 0.7, np.nan):
        features, lengths = front_end(*padded(rows, extra=777, fill=fill))
        assert lengths.tolist() == [frames.shape[1] for frames, _ in alone] == [int(own[0]) for _, own in alone]
        for frames, length, (expected, _) in zip(features, lengths.tolist(), alone, strict=True):
            np.testing.assert_allclose(frames[:length], expected[0], atol=2e-5)
            assert not np.any(frames[length:])


def test_w2vbert_mask_of_a_batch():
    rows = [speech(1.0)[: 400 + 160 * (frames - 1)] for frames in (8, 9, 10, 13)]
    features, lengths, mask = w2vbert_features(*padded(rows))
    assert lengths.tolist() == [4, 5, 5, 7]
    assert mask.sum(1).tolist() == [4, 4, 5, 6]
    np.testing.assert_array_equal(features[1, 4, 80:], 1.0)
    np.testing.assert_array_equal(features[1, 5:], 0.0)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_gradient_equals_finite_differences(name: str):
    front_end = FRONT_ENDS[name]
    rng = np.random.default_rng(1)
    samples, direction = speech(0.2), rng.standard_normal(3200)
    rate = 1e-6
    exact = {"w2vbert": exact_w2vbert, "mel": exact_mel}.get(name, lambda x: (f := exact_fbank(x)) - f.mean(0))
    weights = rng.standard_normal(exact(samples).shape)

    def value(x: jax.Array) -> jax.Array:
        return (front_end(x, jnp.array([3200]))[0][0] * weights.astype(np.float32)).sum()

    ahead, behind = (exact(samples.astype(np.float64) + step * direction) for step in (rate, -rate))
    expected = ((ahead - behind) * weights).sum() / (2 * rate)
    gradient = jax.jit(jax.grad(value))(jnp.asarray(samples)[None])[0]
    assert np.dot(gradient, direction) == pytest.approx(expected, rel=TOLERANCE["gradient"])


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_silent_and_empty_rows_have_finite_features_and_gradients(name: str):
    silence = [np.zeros(3200, np.float32), np.full(3200, 0.5, np.float32), speech(0.2) * np.float32(1e-12)]
    batch, lengths = padded([*silence, speech(0.2), np.zeros(0, np.float32)])

    def total(samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        features, _ = FRONT_ENDS[name](samples, lengths)
        # weighted, since the plain sum of features less their mean is zero whatever the samples
        return (
            features * jnp.cos(jnp.arange(features.size, dtype=jnp.float32)).reshape(features.shape)
        ).sum(), features

    gradient, features = jax.jit(jax.grad(total, has_aux=True))(batch)
    assert np.isfinite(features).all()
    assert np.isfinite(gradient).all()
    assert np.any(gradient[3])
    assert not np.any(features[4])


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_on_an_accelerator(name: str):
    # Matrix units round their inputs unless told otherwise, and a call of the host would stop the device.
    with jax.default_matmul_precision("bfloat16"):
        program = jax.jit(FRONT_ENDS[name]).lower(*one(speech(0.1))).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 7
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    assert "callback" not in program


def test_too_few_samples_for_a_frame():
    with pytest.raises(ValueError, match="399 samples are less than one frame of 400"):
        fbank(jnp.zeros((1, 399)), jnp.array([399]))


def test_shortest_recording_has_features():
    speaker = audio.recording(speech(0.1), 16000)
    assert w2vbert_features(*one(speaker.samples_16k)).lengths.tolist() == [4]
    assert mel(*one(speaker.samples_22k))[1].tolist() == [8]
