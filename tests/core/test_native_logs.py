"""Native messages are swallowed, and only while asked."""

import os

import pytest

from pplx_jax.core.native_logs import silent_native_stderr, skip_absent_tpu, write_last_line


def test_the_descriptor_is_silent_inside_and_itself_again_after(capfd):
    os.write(2, b"before ")
    with silent_native_stderr():
        os.write(2, b"inside ")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_the_last_line_of_a_process_is_seen_in_any_case(capfd):
    write_last_line("outside")
    with silent_native_stderr():
        os.write(2, b"a page about GPUs")
        write_last_line("inside")
    assert capfd.readouterr().err == "outside\ninside\n"


def test_an_exception_passes_and_the_descriptor_is_itself_again(capfd):
    with pytest.raises(ImportError), silent_native_stderr():
        raise ImportError
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


@pytest.mark.parametrize(("chips", "skips"), [((), True), (("accel0", "accel1"), False), (("vfio/0",), False)])
def test_only_where_there_is_no_tpu_is_none_looked_for(tmp_path, monkeypatch, chips, skips):
    names = ("TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "vfio").mkdir()
    for name in ("null", "vfio/vfio", *chips):
        (tmp_path / name).touch()
    skip_absent_tpu(tmp_path)
    assert [name in os.environ for name in names] == [skips] * 3
