# All environments and tools are in .venv. `make clean` removes all generated files.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CORE := skyfast/_table.pyx skyfast/_table.pxd $(wildcard skyfast/table/*.pxi) skyfast/skydive/_json_split.pyx setup.py
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' skyfast/__init__.py)
COMMIT ?= $(shell git rev-parse HEAD)
NODE := tests/node/node_modules/.package-lock.json
BENCH ?= all
SOAK_S ?= 600

# The dependency groups that CI installs.
GROUPS := build test lint coverage

# More processes than CI has cores (two), because many tests wait. Tests of one xdist_group run in
# sequence.
WORKERS ?= 3
PARALLEL_TESTS := $(BIN)/pytest -q -n $(WORKERS) --dist loadgroup

# Overrides the -m option in pyproject.toml: also run slow tests.
WITH_SLOW := -m 'not nightly'

FUZZ_S ?= 60
FUZZ_SEED ?=

# The tests of `make sanitize`. The core's memory grows in the usual steps in the tests of
# SANITIZE_USUAL, and in small steps in the tests of SANITIZE_SMALL.
SANITIZE_USUAL ?= tests/table/test_table.py tests/table/test_table_model.py tests/table/test_rules.py tests/table/test_lookups.py \
	tests/table/test_parts.py tests/table/test_histograms.py \
	tests/table/test_model.py tests/skydive/test_ingest.py tests/skydive/test_json_split.py tests/web/test_cardinality.py
SANITIZE_SMALL ?= tests/table/test_invariants.py tests/fuzz/test_fuzz.py tests/table/test_stress.py
# Tests that `make sanitize` leaves out, because they take minutes with a sanitizer. They measure
# time, or tests/table/test_stress.py covers the same code.
NOT_SANITIZED ?= tests/table/test_table.py::test_threads_read_pages_while_another_thread_updates_the_table \
	tests/table/test_table.py::test_table_handles_two_hundred_thousand_connections
SANITIZED := $(BIN)/python -m tests.support.core_builds address $(BIN)/python -m

# A sanitizer ends the process after its report. With --capture=sys, pytest does not hide this report.
SANITIZED_TESTS := $(SANITIZED) pytest -q --capture=sys $(WITH_SLOW)

# Programs in Go that tests run. Debian does not have these programs, so they are built from pinned versions.
TOOLS := build/tools
# renders and lints the chart
helm := helm.sh/helm/v4/cmd/helm@v4.3.2
# renders the manifests of Kubernetes and OpenShift
kustomize := sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
# lints the workflows
actionlint := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
# builds an OpenTelemetry Collector with the parts that the scrape recipe needs
builder := go.opentelemetry.io/collector/cmd/builder@v0.165.0

.PHONY: run test test-slow coverage nightly sanitize tsan fuzz build tools otelcol lint format locked lock audit soak bench bench-plots \
	docs completion screenshots dist release-check image chart \
	chart-push github-release clean

run: $(VENV)/.built
	$(BIN)/skyfast --demo

# Runs all tests that are not slow. PYTEST_ARGS=-n0 runs them in one process.
test: $(VENV)/.built $(VENV)/.test
	$(PARALLEL_TESTS) $(PYTEST_ARGS)

test-slow: $(VENV)/.built $(VENV)/.test $(NODE)
	$(PARALLEL_TESTS) -m 'slow and not nightly' $(PYTEST_ARGS)

# HYPOTHESIS_PROFILE=thorough takes hours. CI=true uses the same examples in each run.
sanitize: $(VENV)/.built $(VENV)/.test
	SKYFAST_STEPS=usual $(SANITIZED_TESTS) $(SANITIZE_USUAL) $(NOT_SANITIZED:%=--deselect %)
	$(SANITIZED_TESTS) $(SANITIZE_SMALL)
	$(SANITIZED) tests.fuzz --target messages --seconds $(FUZZ_S) $(FUZZ_SEED:%=--seed %)

tsan: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m tests.support.core_builds thread $(BIN)/python -m pytest -q --capture=sys $(WITH_SLOW) tests/table/test_stress.py

fuzz: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S) $(FUZZ_SEED:%=--seed %)

# Lists the lines of Python and of the core that no test runs, and fails if one of them is not a
# known exception. The soak test is excluded, because the memory of coverage data would distort
# its measurements.
coverage: $(VENV)/.built $(VENV)/.test $(VENV)/.coverage $(NODE)
	rm -rf build/coverage
	$(BIN)/python -m tests.support.core_builds coverage $(BIN)/python -m coverage run -m pytest -q -n $(WORKERS) \
		--dist loadgroup $(WITH_SLOW) --ignore tests/app/test_soak.py $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
	$(BIN)/python -m tests.support.uncovered

# Runs checks that take too long to run for every change. Hypothesis uses new examples in each run.
nightly: $(VENV)/.built $(VENV)/.test
	$(MAKE) lint
	$(MAKE) test
	$(MAKE) test-slow
	$(MAKE) sanitize FUZZ_S=300
	$(MAKE) tsan
	$(MAKE) fuzz FUZZ_S=1200
	$(MAKE) soak
	$(MAKE) coverage
	$(BIN)/pytest -q -m nightly
	env --unset=CI HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -q $(WITH_SLOW) \
		tests/table/test_table_model.py tests/table/test_invariants.py
	$(MAKE) bench BENCH=storage

build: $(VENV)/.built

# Needs Go 1.26 or later. The first run compiles for two to four minutes.
tools: $(TOOLS)/helm $(TOOLS)/kustomize $(TOOLS)/actionlint

# The OpenTelemetry Collector for the nightly tests. Compiles for ten minutes.
otelcol: $(TOOLS)/otelcol

$(TOOLS)/otelcol: $(TOOLS)/builder tests/data/otelcol-builder.yml
	$(TOOLS)/builder --config tests/data/otelcol-builder.yml
	cp build/otelcol/otelcol $@

$(TOOLS)/%: Makefile
	GOBIN=$(CURDIR)/$(TOOLS) go install $($*)
	touch $@

# cython-lint only checks the layout of .pxi files. To check their code, copy them to .pyx files.
lint: $(VENV)/.built $(VENV)/.test $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --allowlist tests/table/stubtest_allowlist.txt skyfast._table \
		skyfast.skydive._json_split
	$(BIN)/codespell .
	$(BIN)/lint-imports --no-logo --cache-dir build/import-linter
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint skyfast/*.pyx skyfast/*/*.pyx skyfast/*.pxd skyfast/table/*.pxi
	rm -rf build/lint
	mkdir -p build/lint
	for file in skyfast/table/*.pxi; do cp $$file build/lint/$$(basename $$file .pxi).pyx || exit; done
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint --no-pycodestyle build/lint/*.pyx

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Creates the environment of CI, with the versions and hashes in requirements.lock.
locked: $(VENV)/.locked

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"

# Updates requirements.lock to the newest versions, for all supported versions of Python. The
# Dockerfile uses two subsets of this file: the packages for building skyfast, and the packages that
# skyfast needs at run time.
lock: $(VENV)/.lock
	$(COMPILE) --upgrade $(GROUPS:%=--group %) --output-file requirements.lock pyproject.toml
	$(COMPILE) --upgrade --constraint requirements.lock --group build --output-file requirements-build.lock
	$(COMPILE) --upgrade --constraint requirements.lock --output-file requirements-runtime.lock pyproject.toml

# Checks the packages in requirements.lock for known vulnerabilities. Needs network access.
audit: $(VENV)/.audit
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --require-hashes \
		--requirement requirements.lock

# Simulates thirty days in two minutes, and then runs a real process with traffic for SOAK_S
# seconds.
soak: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m tests.support.soak virtual
	$(BIN)/python -m tests.support.soak real --seconds $(SOAK_S)

bench: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m benchmarks $(BENCH)

bench-plots: $(VENV)/.built $(VENV)/.test $(VENV)/.plots
	$(BIN)/python -m benchmarks.plots

# Writes the generated parts of the documentation.
docs: $(VENV)/.built
	$(BIN)/python -m docs.generate

# Writes the shell completions. Needed after a change of command line options.
completion: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m tests.support.completion

# Creates the screenshots in docs/status.md. Takes a little more than ten minutes.
screenshots: $(VENV)/.built $(VENV)/.test
	$(BIN)/python -m tests.support.screenshots

# Builds the sdist and a wheel. After `make locked`, the build uses the versions in requirements.lock.
dist: $(VENV)/.build
	$(BIN)/python -m build --no-isolation --outdir dist .

# Checks that TAG (v1.2.3) matches the versions in all files, and writes the notes of the release.
release-check: $(VENV)/.built
	$(BIN)/python -m tests.support.release $(TAG)

# Builds the image IMAGE with docker buildx, and pushes it.
image:
	deploy/docker/build-release "$(IMAGE)" "$(VERSION)" "$(COMMIT)" "$(SOURCE)"

chart: $(TOOLS)/helm
	rm -rf build/chart
	$(TOOLS)/helm package deploy/helm/skyfast --destination build/chart

# Pushes the chart to the registry CHARTS (oci://...).
chart-push: chart
	$(TOOLS)/helm push build/chart/skyfast-$(VERSION).tgz "$(CHARTS)"

# Creates a release on GitHub with the sdist, the wheels and the chart.
github-release: chart release-check
	gh release create "$(TAG)" --verify-tag --title "$(TAG)" --notes-file build/release-notes.md \
		dist/* build/chart/*.tgz

clean:
	rm -rf $(VENV) tests/node/node_modules build dist skyfast.egg-info skyfast/_table.c skyfast/skydive/_json_split.c \
		skyfast/*.so skyfast/skydive/*.so \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache benchmarks/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: each marks that a part of the environment is up to date.

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade "pip>=25.1" "setuptools>=77" "cython>=3.1"
	touch $@

$(VENV)/.locked: requirements.lock
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --require-hashes --requirement requirements.lock
	touch $(VENV)/.made $(GROUPS:%=$(VENV)/.%) $@

$(VENV)/.built: $(VENV)/.made pyproject.toml $(CORE)
	$(PIP) install --quiet --no-build-isolation --editable .
	touch $@

# axe-core checks the pages, and the TypeScript compiler checks the dashboard. Without npm, these
# tests are skipped.
$(NODE): tests/node/package-lock.json
	if command -v npm >/dev/null; then \
		npm ci --prefix tests/node --silent --no-audit --no-fund && touch $@; \
	fi

$(patsubst %,$(VENV)/.%,$(GROUPS) audit lock plots): $(VENV)/.%: $(VENV)/.made pyproject.toml
	$(PIP) install --quiet --group $*
	touch $@
