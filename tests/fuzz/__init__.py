"""Fuzzing: generates unusual input, and checks that skyfast handles it.

docs/testing.md describes the targets, and how to run them.
"""

from tests.support import core_builds

core_builds.use_chosen()  # must run before the first import of the core

from tests.fuzz.configuration import Configuration
from tests.fuzz.driver import Target
from tests.fuzz.http import Http
from tests.fuzz.messages import Messages
from tests.fuzz.pieces import Pieces
from tests.fuzz.web_configuration import WebConfiguration

TARGETS: dict[str, type[Target]] = {
    target.name: target for target in (Messages, Configuration, WebConfiguration, Http, Pieces)
}
