"""Every expected failure is an Error, and still what Python calls it."""

import pickle

import pytest

from indextts_jax import audio, checkpoint, config, convert, errors, files


@pytest.mark.parametrize(
    "kind", [audio.AudioError, files.FileError, checkpoint.ModelError, config.ConfigError, convert.CheckpointError]
)
def test_expected_failures_have_one_base(kind):
    assert issubclass(kind, errors.Error)
    assert issubclass(kind, ValueError)


def test_what_is_not_there_is_both():
    error = errors.NotFound("x: no such file; check the path")
    assert isinstance(error, errors.Error)
    assert isinstance(error, FileNotFoundError)
    assert str(error) == "x: no such file; check the path"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
