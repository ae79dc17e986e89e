"""Crops of a corpus of short recordings, none of which is a whole number of frames."""

import numpy as np

from indextts_jax.train import corpus, stages
from indextts_jax.train.batches import Chosen
from indextts_jax.train.corpus import Line, Utterance


def test_crops_have_the_samples_of_their_frames(tmp_path):
    """Of 40 frames and nearly another one, samples for each frame are rounded up to more than there are."""
    lines, utterances = [], []
    for i, rest in enumerate((3, 255, 255, 200)):
        frames = 40 + i
        samples = np.arange(frames * 256 + rest, dtype=np.int16)
        mel = np.repeat(np.arange(frames, dtype=np.float32)[:, None], 2, axis=1)
        nothing = np.zeros((5, 2), np.float16)
        codes = np.zeros(5, np.int32)
        utterances.append(Utterance(codes, codes, nothing, mel, samples, np.zeros(2, np.float32)))
        lines.append(Line(f"u{i}", "a", "A", "", len(samples), 5, frames, 5))
    corpus.write(tmp_path, 0, "made", lines, utterances)
    found = corpus.Corpus(tmp_path)
    assert found.hop == 256
    rows = stages.vocoder_rows(found, Chosen((0, 1, 2, 3), slice(None), 0, 0))
    assert rows.samples.shape == (4, stages.CROP * 256)
    np.testing.assert_array_equal((rows.samples[:, ::256] * 32767).round(), rows.mel[:, :, 0] * 256)
