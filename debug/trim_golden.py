"""Cut the golden files down to what the tests need: python -m debug.trim_golden FROM TO.

The full files (every array of every stage, 37 MB) can be used instead by pointing INDEXTTS_GOLDEN at their folder.
"""

import fnmatch
import sys
from pathlib import Path

import numpy as np

# The first matching pattern decides; an array that none matches is left out.
BEAMS = (
    "seg0.text_tokens", "seg0.gpt.codes", "seg0.gpt.emo_vec", "seg0.gpt.emovec_merged", "seg0.gpt.beam_*",
    "seg0.gpt.speech_conditioning_latent", "seg0.gpt.sequence_score",
)  # fmt: skip
SEGMENT = ("text_tokens", "gpt.codes", "gpt.emo_vec", "cfm.noise", "bigvgan.in")
KEEP = {
    "en_greedy": (
        "text.*", "audio.spk_22k_librosa", "audio.spk_16k", "audio.emo_16k_librosa", "ref_mel", "campplus.*",
        "w2v.spk.input_features", "w2v.spk.attention_mask", "w2v.spk.hidden[019]", "w2v.spk.hidden17",
        "w2v.*.normalized", "w2v.emo.input_features", "codec.encoder.out", "codec.in_project.out", "codec.codes",
        "codec.S_ref", "prompt_condition*", "seg0.gpt.*", "seg0.text_tokens", "seg0.s2mel.*", "seg0.vq2emb",
        "seg0.cfm.noise", "seg0.cfm.mu", "seg0.cfm.t", "seg0.cfm.trajectory", "seg0.cfm.mel_with_prompt",
        "seg0.dit0.in.*", "seg0.dit0.t_embedder*", "seg0.dit0.cond_x_merge_linear", "seg0.dit0.layer0*",
        "seg0.dit0.layer[24]", "seg0.dit0.transformer", "seg0.dit0.skip_linear", "seg0.dit0.conv1",
        "seg0.dit0.wavenet", "seg0.dit0.wavenet.*[02]", "seg0.dit0.final_layer", "seg0.dit0.out", "seg0.bigvgan.*",
        "wav_int16", "meta",
    ),
    "en_segments": (*(f"seg?.{name}" for name in SEGMENT), "wav_int16", "meta", "text.*"),
    "en_stop_greedy": (*(f"seg?.{name}" for name in SEGMENT), "wav_int16", "meta"),
    "zh_greedy_emotion_audio": (
        *(f"seg?.{name}" for name in SEGMENT), "wav_int16", "meta", "w2v.*.input_features", "w2v.*.attention_mask",
        "w2v.emo.normalized", "audio.emo_16k_librosa", "campplus.out", "codec.codes", "seg0.gpt.emovec_merged",
    ),
    "en_beam3": BEAMS,
    "en_stop_beam3": BEAMS,
    "zh_beam3_emotion_vector": (*BEAMS, *(f"seg?.{name}" for name in SEGMENT), "wav_int16", "meta"),
    "en_beam3_sample": (*BEAMS, "seg0.gpt.processed_scores_per_step"),
    "en_sample": ("seg0.gpt.processed_scores_per_step", *(f"seg?.{name}" for name in SEGMENT[:3]), "meta"),
}  # fmt: skip
TRAJECTORY = (0, 1, 13, 24, 25)
ROW_0 = ("seg0.dit0.layer*", "seg0.dit0.wavenet*", "seg0.dit0.[csf]*", "seg0.dit0.transformer")


def trim(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays to keep of one golden file; inside the estimator only the row with the prompt."""
    kept = {}
    for key, value in arrays.items():
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in KEEP[name]):
            if key == "seg0.cfm.trajectory":
                kept["seg0.cfm.trajectory_steps"] = np.array(TRAJECTORY)
                value = value[list(TRAJECTORY)]
            elif any(fnmatch.fnmatchcase(key, pattern) for pattern in ROW_0):
                value = value[:1]
            kept[key] = value
    return kept


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    for name in KEEP:
        with np.load(source / f"{name}.npz") as arrays:
            np.savez_compressed(target / f"{name}.npz", **trim(name, dict(arrays)))  # type: ignore[arg-type]
