"""Before any test: which build of the compiled core they are for."""

from tests import builds

builds.use_chosen()
