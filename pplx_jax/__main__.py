"""`python -m pplx_jax VERB`, the same as `pplx-jax VERB`."""

import sys

from pplx_jax.cli.main import main

sys.exit(main())
