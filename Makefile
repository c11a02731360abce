# Every target sets itself up on a machine with Python >= 3.10 and make; nothing outside this folder is touched,
# save by `make system`, which installs Debian packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: accept test lint certify-8 system clean

accept: $(READY)  ## tiny on the CPU with real InternLM: proves the suite, not the machine
	$(BIN)/python -m pytest acceptance -k tiny

# Most tests wait for something most of the time: three at once fill two cores. A file stays with one worker, since
# its tests share what is dear to make (a Slurm cluster, a browser, a trained run).
test: $(READY)  ## the suite's own tests
	$(BIN)/python -m pytest tests -n 3 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

certify-8: $(READY)  ## the real run on eight devices: prints its parts; PART=n runs one, CPU=1 rehearses it; DEVICES=4, 2
	$(BIN)/python -m benchmarks.certify8 $(PART) $(if $(CPU),--cpu) $(if $(DEVICES),--devices $(DEVICES))

# torch first and pinned: InternEvo's own requirements would pull CUDA extensions that do not build without CUDA,
# hence --no-deps and its true requirements by hand.
$(READY): pyproject.toml requirements/trainer.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/trainer.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps InternEvo==0.4.9
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

system:  ## Debian packages that some tests need: a browser, Slurm with its accounting, and ssh
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk \
		slurm-wlm munge slurmdbd mariadb-server-core openssh-client openssh-server poppler-utils

# For machines without a network, whose torch is the vendor's own; PYTHON is of their Python's version. There:
#   pip install --no-index --find-links wheelhouse -r wheelhouse/requirements.txt
#   pip install --no-index --find-links wheelhouse --no-deps InternEvo==0.4.9
wheelhouse:  ## a folder of wheels: all that suite and trainer need, save torch
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --wheel-dir $@ .
	grep -v -e '^#' -e '^torch' requirements/trainer.txt > $@/requirements.txt
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --wheel-dir $@ -r $@/requirements.txt
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --wheel-dir $@ --no-deps InternEvo==0.4.9
	echo internlm-acceptance >> $@/requirements.txt

clean:
	rm -rf $(VENV) wheelhouse .pytest_cache .ruff_cache .hypothesis reports/output
