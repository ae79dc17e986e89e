"""Cut the golden files down to what the tests need: python -m debug.trim_golden FROM TO.

The full files (every array of every stage, 37 MB) can be used instead by pointing INDEXTTS_GOLDEN at their folder.
"""

import fnmatch
import sys
from pathlib import Path

import numpy as np

# An array that no pattern matches is left out.
BEAMS = (
    "seg0.text_tokens", "seg0.gpt.codes", "seg0.gpt.emo_vec", "seg0.gpt.emovec_merged", "seg0.gpt.beam_*",
    "seg0.gpt.speech_conditioning_latent", "seg0.gpt.sequence_score", "meta",
)  # fmt: skip
SEGMENT = (
    "text_tokens", "gpt.codes", "gpt.emo_vec", "gpt.speech_conditioning_latent", "cfm.noise", "bigvgan.in",
)  # fmt: skip
KEEP = {
    "en_greedy": (
        "text.*", "audio.spk_22k_librosa", "audio.spk_16k", "audio.emo_16k_librosa", "ref_mel", "campplus.in",
        "campplus.out", "w2v.*.input_features", "w2v.*.attention_mask", "w2v.spk.normalized", "codec.encoder.out",
        "codec.in_project.out", "codec.codes", "codec.S_ref", "prompt_condition*", "seg0.gpt.*.out",
        "seg0.gpt.prefill.inputs_embeds", "seg0.gpt.logits_per_step", "seg0.gpt.processed_scores_per_step",
        *(f"seg0.{name}" for name in SEGMENT), "seg0.gpt.emovec_merged", "seg0.s2mel.*", "seg0.vq2emb", "seg0.cfm.t",
        "seg0.cfm.mel_with_prompt", "seg0.dit0.in.*", "seg0.dit0.out", "seg0.bigvgan.out", "wav_int16", "meta",
    ),
    "en_segments": (*(f"seg?.{name}" for name in SEGMENT), "wav_int16", "meta", "text.*"),
    "en_stop_greedy": (*(f"seg?.{name}" for name in SEGMENT), "wav_int16", "meta"),
    "zh_greedy_emotion_audio": (
        *(f"seg?.{name}" for name in SEGMENT), "wav_int16", "meta", "w2v.*.input_features", "w2v.*.attention_mask",
        "w2v.*.normalized", "audio.emo_16k_librosa", "campplus.out", "codec.codes", "seg0.gpt.emovec_merged",
    ),
    "en_beam3": BEAMS,
    "en_stop_beam3": BEAMS,
    "zh_beam3_emotion_vector": (*BEAMS, "seg0.cfm.style", *(f"seg?.{name}" for name in SEGMENT), "wav_int16"),
    "en_beam3_sample": (*BEAMS, "seg0.gpt.processed_scores_per_step"),
    "v25_greedy": (
        "w2v.*.normalized", "campplus.out", "ref_mel", "codec.*", "prompt_condition", "prompt_condition.in",
        "prompt_condition.ylens", "prompt_condition.project", "seg0.text_tokens", "seg0.language", "seg0.gpt.*",
        "seg0.vq2emb", "seg0.codec.*", "seg0.s2mel.*", "seg0.cfm.noise", "seg0.cfm.t", "seg0.bigvgan.in",
        "seg0.bigvgan.out", "meta",
    ),
    "v25_segments": (
        "seg?.text_tokens", "seg?.language", "seg?.gpt.codes", "seg?.gpt.emo_vec", "seg?.gpt.prefill.inputs_embeds",
        "seg?.gpt.speech_conditioning_latent", "seg?.gpt.emovec_merged", "seg?.gpt.logits_per_step", "seg?.gpt.beam_*",
        "seg?.gpt.sequence_score", "seg?.s2mel.length_regulator.ylens", "campplus.out", "meta",
    ),
    "v25_sample": (
        *(f"seg0.{name}" for name in SEGMENT[:4]), "seg0.language", "seg0.gpt.processed_scores_per_step", "meta",
    ),
    "v25_beam3_sample": (*BEAMS, "seg0.language", "seg0.gpt.processed_scores_per_step"),
    # Their noise is that of v25_greedy.
    **{f"v25_{language}": ("seg0.text_tokens", "seg0.gpt.codes", "seg0.bigvgan.in", "wav_int16", "meta")
       for language in ("en", "zh", "es", "ja", "ar")},
    "en_sample": ("seg0.gpt.processed_scores_per_step", *(f"seg?.{name}" for name in SEGMENT[:4]), "meta"),
}  # fmt: skip


def trim(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays to keep of one golden file."""
    return {key: value for key, value in arrays.items() if any(fnmatch.fnmatchcase(key, p) for p in KEEP[name])}


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    for name in KEEP:
        if not (source / f"{name}.npz").is_file():  # one system's files alone
            continue
        with np.load(source / f"{name}.npz") as arrays:
            np.savez_compressed(target / f"{name}.npz", **trim(name, dict(arrays)))  # type: ignore[arg-type]
