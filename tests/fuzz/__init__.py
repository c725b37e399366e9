"""Input that nobody thought of: what makes it, what is fed with it, and what must hold then.

docs/testing.md tells how to run it. `driver` knows no target, and a target knows nothing but how to
make a case and how to try it.
"""

from tests.support import core_builds

core_builds.use_chosen()  # before anything imports the core

from tests.fuzz.configuration import Configuration
from tests.fuzz.driver import Target
from tests.fuzz.http import Http
from tests.fuzz.messages import Messages
from tests.fuzz.web_configuration import WebConfiguration

TARGETS: dict[str, type[Target]] = {
    each.name: each for each in (Messages, Configuration, WebConfiguration, Http)
}
