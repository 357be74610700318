"""Options of a Beam pipeline, from text."""

import contextlib
import io
import shlex
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.native_logs import silent_native_stderr


def pipeline_options(runner: str, beam_options: str) -> Any:
    """Returns the options of Beam.

    Raises:
        BadInput: Beam is not installed, or the runner or an option does not exist.
    """
    try:
        with silent_native_stderr():
            from apache_beam.options.pipeline_options import PipelineOptions
            from apache_beam.runners.runner import create_runner
    except ImportError:
        raise BadInput("data cache needs apache_beam, which is not installed: pip install 'pplx-jax[data]'") from None

    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise BadInput(f"--runner={runner}: {str(error).splitlines()[0].rstrip('.')}; name another runner") from None
    complaint = io.StringIO()  # argparse prints the error after its usage
    try:
        with contextlib.redirect_stderr(complaint):
            options = PipelineOptions([f"--runner={runner}", *shlex.split(beam_options)])
            options.get_all_options()
    except (SystemExit, ValueError) as error:
        reason = (complaint.getvalue().splitlines() or [str(error)])[-1].rpartition("error: ")[2]
        raise BadInput(f"--beam_options={beam_options}: {reason}; give options of Beam's {runner}") from None
    return options
